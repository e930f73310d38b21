#include "random/philox.h"

#include <c10/util/Exception.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <numbers>
#include <optional>

#include "random/philox_units.h"
#include "random/typed_kernels.h"
#include "simd/kernels.h"

namespace dormant::random {
namespace {

Format checked_format(const char* operation, c10::ScalarType dtype) {
  const std::optional<Format> format = format_of(dtype);
  TORCH_CHECK_NOT_IMPLEMENTED(format.has_value(), "fast ", operation, ": got ", dtype,
                              "; expected float32, bfloat16, float16 or float64. Fill a float32 "
                              "tensor and convert it.");
  return *format;
}

// Box-Muller in double precision, on neighboring pairs of 53-bit numbers.
void normal_double(const PhiloxKey& key, void* out, uint64_t begin, size_t n, double mean,
                   double std) {
  constexpr size_t kElements = kPhiloxWords / 2;
  const auto uniform53 = [](const uint32_t* words) {
    const uint64_t number = uint64_t{words[0]} << 32 | words[1];
    return static_cast<double>(number & ((uint64_t{1} << 53) - 1)) * 0x1p-53;
  };
  const PhiloxKernels& kernels = simd::kernels<PhiloxKernels>();
  for_units<kElements, sizeof(double)>(begin, n, out, [&](uint64_t first, size_t units, void* to) {
    auto* element = static_cast<double*>(to);
    for (size_t i = 0; i < units; ++i) {
      uint32_t words[kPhiloxWords];
      kernels.words(key, first + i, 1, words);
      for (size_t word = 0; word < kPhiloxWords; word += 4) {
        const double radius = std::sqrt(-2.0 * std::log1p(-uniform53(words + word)));
        const double angle = 2.0 * std::numbers::pi * uniform53(words + word + 2);
        *element++ = radius * std::cos(angle) * std + mean;
        *element++ = radius * std::sin(angle) * std + mean;
      }
    }
  });
}

/// A number for a generator's place: its words and how many of them are left, mixed by the
/// finalizer of SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number
/// generators", 2014).
uint64_t stream_of(const at::mt19937_data_pod& place) {
  uint64_t mixed = static_cast<uint64_t>(place.left_);
  for (const uint64_t word : place.state_) {
    mixed = (mixed ^ word) + 0x9e3779b97f4a7c15;
    mixed = (mixed ^ mixed >> 30) * 0xbf58476d1ce4e5b9;
    mixed = (mixed ^ mixed >> 27) * 0x94d049bb133111eb;
    mixed ^= mixed >> 31;
  }
  return mixed;
}

}  // namespace

Philox::Philox(uint64_t seed, const at::mt19937_data_pod& place) : key_{seed, stream_of(place)} {}

void Philox::uniform(c10::ScalarType dtype, void* out, uint64_t begin, size_t n, double from,
                     double to) const {
  const Format format = checked_format("uniform", dtype);
  const double largest = format == Format::float64 ? std::numeric_limits<double>::max()
                                                   : std::numeric_limits<float>::max();
  TORCH_CHECK_VALUE(from <= to && to - from <= largest, "fast uniform: got bounds ", from, " and ",
                    to, "; expected from <= to, and to - from finite in ", dtype);
  simd::kernels<PhiloxKernels>().uniform(key_, format, out, begin, n, from, to);
}

void Philox::normal(c10::ScalarType dtype, void* out, uint64_t begin, size_t n, double mean,
                    double std) const {
  const Format format = checked_format("normal", dtype);
  TORCH_CHECK_VALUE(std >= 0, "fast normal: got a standard deviation of ", std,
                    "; expected zero or more");
  if (format == Format::float64) {
    normal_double(key_, out, begin, n, mean, std);
  } else {
    simd::kernels<PhiloxKernels>().normal(key_, format, out, begin, n, mean, std);
  }
}

void Philox::bernoulli(c10::ScalarType dtype, void* out, uint64_t begin, size_t n, double p) const {
  const One one = one_of(dtype);
  TORCH_CHECK_NOT_IMPLEMENTED(one.width != 0, "fast bernoulli: got ", dtype,
                              "; expected a floating point, integer or bool dtype. Fill a float32 "
                              "tensor and convert it.");
  TORCH_CHECK_VALUE(p >= 0 && p <= 1, "fast bernoulli: got a probability of ", p,
                    "; expected a number from 0 to 1");
  const double successes = std::ceil(p * 0x1p32);  // of 2^32 words
  if (successes == 0) {
    if (n > 0) {
      std::memset(out, 0, n * one.width);
    }
    return;
  }
  const auto last = static_cast<uint32_t>(successes - 1);
  simd::kernels<PhiloxKernels>().bernoulli(key_, one.width, one.bits, out, begin, n, last);
}

}  // namespace dormant::random
