#include "quantize/four_bit.h"

#include <c10/util/Exception.h>
#include <c10/util/accumulate.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <iterator>
#include <numeric>
#include <utility>

#include "quantize/cascade_mean.h"
#include "quantize/source_format.h"
#include "simd/kernels.h"

namespace dormant::quantization {
namespace {

using record::Geometry;

constexpr int64_t kLargestBlock = 4096;

FourBitTable table_of(c10::ArrayRef<float> values) {
  FourBitTable table = {};
  TORCH_CHECK_VALUE(values.size() == std::size(table.code), "dormant: 4-bit quantization: got ",
                    values.size(), " values of codes, expected ", std::size(table.code));
  for (const float value : values) {
    TORCH_CHECK_VALUE(std::abs(value) <= 1, "dormant: 4-bit quantization: got ", value,
                      " as the value of a code, expected a number from -1 to 1");
  }
  std::iota(std::begin(table.code), std::end(table.code), uint8_t{0});
  // Stable: of fp4's zeros, code 0 comes first.
  std::stable_sort(std::begin(table.code), std::end(table.code),
                   [&](uint8_t a, uint8_t b) { return values[a] < values[b]; });
  for (size_t i = 0; i + 1 < values.size(); ++i) {
    table.middle[i] = (values[table.code[i]] + values[table.code[i + 1]]) / 2;
  }
  // The kernels don't clamp to [-1, 1] what rounding took beyond: no middle may notice.
  TORCH_CHECK_VALUE(table.middle[0] > -1 && table.middle[14] < 1,
                    "dormant: 4-bit quantization: two codes have the same value, 1 or -1");
  return table;
}

}  // namespace

FourBit::FourBit(std::string kind, int64_t block_size, c10::ArrayRef<float> values,
                 std::optional<c10::ArrayRef<float>> nested_map)
    : kind_(std::move(kind)), block_size_(block_size), table_(table_of(values)) {
  TORCH_CHECK_VALUE(block_size >= static_cast<int64_t>(kGroup) && block_size <= kLargestBlock &&
                        std::has_single_bit(static_cast<uint64_t>(block_size)),
                    "dormant: ", kind_, " quantization: got blocks of ", block_size,
                    " elements; expected 32, 64, 128, 256, 512, 1024, 2048 or 4096");
  if (nested_map) {
    nested_.emplace(*nested_map);
  }
}

int64_t FourBit::blocks(c10::IntArrayRef sizes) const {
  const int64_t n = c10::multiply_integers(sizes);
  return n / block_size_ + (n % block_size_ != 0 ? 1 : 0);
}

std::vector<Geometry> FourBit::outputs(c10::IntArrayRef sizes) const {
  const int64_t n = c10::multiply_integers(sizes);
  const int64_t count = blocks(sizes);
  std::vector<Geometry> outputs = {Geometry::contiguous({n / 2 + n % 2, 1}, c10::ScalarType::Byte)};
  if (!nested_) {
    outputs.push_back(Geometry::contiguous({count}, c10::ScalarType::Float));
    return outputs;
  }
  const int64_t nested = count / DynamicMap::kBlock + (count % DynamicMap::kBlock != 0 ? 1 : 0);
  outputs.push_back(Geometry::contiguous({count}, c10::ScalarType::Byte));
  outputs.push_back(Geometry::contiguous({nested}, c10::ScalarType::Float));
  outputs.push_back(Geometry::contiguous({}, c10::ScalarType::Float));
  return outputs;
}

std::vector<Geometry> FourBit::scratch(c10::IntArrayRef sizes) const {
  if (!nested_) {
    return {};
  }
  return {Geometry::contiguous({blocks(sizes)}, c10::ScalarType::Float)};
}

int64_t FourBit::unit(c10::IntArrayRef /*sizes*/) const { return block_size_; }

void FourBit::run(const void* source, c10::ScalarType dtype, c10::IntArrayRef /*sizes*/,
                  int64_t begin, int64_t count, c10::ArrayRef<void*> memory) const {
  const Format format = source_format(dtype);
  auto* packed = static_cast<uint8_t*>(memory[0]);
  auto* absmax = static_cast<float*>(memory[nested_ ? 4 : 1]) + begin / block_size_;
  const int64_t full = count / block_size_;
  const auto block_size = static_cast<size_t>(block_size_);
  const Kernels& level = simd::kernels<Kernels>();
  level.four_bit(table_, Scaling::multiply, format, source, block_size, static_cast<size_t>(full),
                 packed, absmax);

  const auto rest = static_cast<size_t>(count % block_size_);
  if (rest == 0) {
    return;
  }
  // Zeros after the last elements don't change their absmax.
  const size_t width = c10::elementSize(dtype);
  alignas(64) unsigned char padded[kLargestBlock * sizeof(float)] = {};
  std::memcpy(padded, static_cast<const char*>(source) + full * block_size_ * width, rest * width);
  const size_t padded_size = (rest + kGroup - 1) / kGroup * kGroup;
  uint8_t codes[kLargestBlock / 2];
  level.four_bit(table_, Scaling::divide, format, padded, padded_size, 1, codes, absmax + full);
  if (rest % 2 != 0) {
    // An odd last one is paired with a zero that is not scaled, by NaN perhaps.
    const auto* below = std::lower_bound(table_.middle, table_.middle + 15, 0.0f);
    codes[rest / 2] =
        static_cast<uint8_t>((codes[rest / 2] & 0xf0) | table_.code[below - table_.middle]);
  }
  std::memcpy(packed + full * block_size_ / 2, codes, (rest + 1) / 2);
}

void FourBit::finish(c10::IntArrayRef sizes, int threads, c10::ArrayRef<void*> memory) const {
  if (!nested_) {
    return;
  }
  nest(static_cast<const float*>(memory[4]), blocks(sizes), threads,
       {static_cast<uint8_t*>(memory[1]), static_cast<float*>(memory[2]),
        static_cast<float*>(memory[3])});
}

void FourBit::nest(const float* absmax, int64_t count, int threads, const Nested& nested) const {
  TORCH_CHECK_VALUE(nested_, "dormant: ", kind_, " quantization: the absmax are not quantized");
  *nested.offset = cascade_mean(absmax, count, threads);
  nested_->quantize(absmax, count, *nested.offset, nested.codes, nested.absmax);
}

std::string FourBit::name() const {
  return kind_ + ", blocks of " + std::to_string(block_size_) + (nested_ ? ", nested" : "");
}

}  // namespace dormant::quantization
