#include <cstddef>
#include <cstdint>

#include "random/bernoulli_map.h"
#include "random/normal_map.h"
#include "random/philox_kernels.h"
#include "random/philox_schedule.h"
#include "random/philox_units.h"
#include "random/uniform_map.h"

namespace dormant::random {
namespace {

void words(const PhiloxKey& key, uint64_t first_unit, size_t units, uint32_t* out) {
  const PhiloxSchedule schedule(key);
  for (size_t i = 0; i < units; ++i) {
    schedule.unit(first_unit + i, out + i * kPhiloxWords);
  }
}

// Writes elements [begin, begin + n) by a map (uniform_map.h).
template <class Map>
void fill(const PhiloxKey& key, void* out, uint64_t begin, size_t n, const Map& map) {
  // Words are made a few units ahead, in cache: the chain of rounds is long, and so is that of
  // Box-Muller; each loop alone overlaps more units than both in one.
  constexpr size_t kAhead = 16;
  constexpr size_t kElements = kPhiloxWords / Map::kWords * Map::kElements;  // of a unit
  static_assert(kPhiloxWords % Map::kWords == 0);
  const PhiloxSchedule schedule(key);
  for_units<kElements, Map::kWidth>(begin, n, out, [&](uint64_t first, size_t units, void* to) {
    alignas(64) uint32_t words[kAhead * kPhiloxWords];
    auto* at = static_cast<unsigned char*>(to);
    for (size_t done = 0; done < units;) {
      const size_t count = units - done < kAhead ? units - done : kAhead;
      for (size_t i = 0; i < count; ++i) {
        schedule.unit(first + done + i, words + i * kPhiloxWords);
      }
      for (size_t i = 0; i < count * kPhiloxWords; i += Map::kWords) {
        map(words + i, at);
        at += Map::kElements * Map::kWidth;
      }
      done += count;
    }
  });
}

void uniform(const PhiloxKey& key, Format format, void* out, uint64_t begin, size_t n, double from,
             double to) {
  simd::with_format(
      format, [&]<Format kFormat>() { fill(key, out, begin, n, UniformMap<kFormat>(from, to)); });
}

// Blocks of 16 words make 16 elements, as in PyTorch's normal_.
void normal(const PhiloxKey& key, Format format, void* out, uint64_t begin, size_t n, double mean,
            double std) {
  simd::with_format(format, [&]<Format kFormat>() {
    if constexpr (kFormat != Format::float64) {  // excluded by the contract
      fill(key, out, begin, n, NormalMap<kFormat>(mean, std));
    }
  });
}

void bernoulli(const PhiloxKey& key, size_t width, uint64_t one, void* out, uint64_t begin,
               size_t n, uint32_t last) {
  with_width(width, [&]<size_t kWidth>() {
    fill(key, out, begin, n, BernoulliMap<kWidth, AtMost32>({last}, one));
  });
}

constexpr PhiloxKernels kKernels = {simd::kLevelName, words, uniform, normal, bernoulli};

}  // namespace

const PhiloxKernels& PhiloxKernels::at(simd::Compiled) { return kKernels; }

}  // namespace dormant::random
