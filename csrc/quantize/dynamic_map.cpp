#include "quantize/dynamic_map.h"

#include <ATen/Parallel.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <cmath>
#include <vector>

namespace dormant::quantization {
namespace {

constexpr uint32_t kSteps = 65536;

// A task should take much longer than handing it to a thread.
constexpr int64_t kBlocksPerTask = 32;

void quantize_block(const uint8_t* nearest, const float* numbers, int64_t n, float offset,
                    uint8_t* codes, float& absmax) {
  float largest = 0.0f;
  for (int64_t i = 0; i < n; ++i) {
    const float magnitude = std::abs(numbers[i] - offset);
    largest = magnitude > largest ? magnitude : largest;  // ignores NaN
  }
  absmax = largest;
  if (largest == 0.0f) {
    std::fill_n(codes, n, uint8_t{0});
    return;
  }
  const float scale = 1.0f / largest;
  for (int64_t i = 0; i < n; ++i) {
    float value = (numbers[i] - offset) * scale;
    value = value < -1.0f ? -1.0f : value;
    value = value > 1.0f ? 1.0f : value;
    const float half = (value + 1.0f) * 0.5f;
    // A fused multiply-add: the product of 24 and 16 bits and the sum are exact in double.
    const auto step = static_cast<float>(static_cast<double>(half) * 65535.0 + 0.5);
    codes[i] = std::isnan(step) ? uint8_t{0} : nearest[static_cast<uint16_t>(step)];
  }
}

}  // namespace

DynamicMap::DynamicMap(c10::ArrayRef<float> values) {
  TORCH_CHECK_VALUE(values.size() == 256, "dormant: nested map: got ", values.size(),
                    " values, expected 256");
  for (size_t i = 0; i < values.size(); ++i) {
    TORCH_CHECK_VALUE(std::abs(values[i]) <= 1 && (i == 0 || values[i - 1] <= values[i]),
                      "dormant: nested map: value ", i, " is ", values[i],
                      "; expected values from -1 to 1 in ascending order, as "
                      "bitsandbytes.functional.create_dynamic_map() gives them");
  }
  first_step_.fill(kSteps);
  first_step_[0] = 0;
  size_t code = 0;
  for (uint32_t step = 0; step < kSteps; ++step) {
    const float value = 2.0f * static_cast<float>(step) / 65535.0f - 1.0f;
    while (code + 1 < values.size() && (values[code] + values[code + 1]) / 2 < value) {
      first_step_[++code] = step;
    }
  }
}

void DynamicMap::quantize(const float* numbers, int64_t n, float offset, uint8_t* codes,
                          float* absmax) const {
  std::vector<uint8_t> nearest(kSteps);
  for (size_t code = 0; code + 1 < first_step_.size(); ++code) {
    std::fill(nearest.begin() + first_step_[code], nearest.begin() + first_step_[code + 1],
              static_cast<uint8_t>(code));
  }
  const int64_t blocks = n / kBlock + (n % kBlock != 0 ? 1 : 0);
  at::parallel_for(0, blocks, kBlocksPerTask, [&](int64_t first, int64_t last) {
    for (int64_t block = first; block < last; ++block) {
      const int64_t begin = block * kBlock;
      quantize_block(nearest.data(), numbers + begin, std::min(kBlock, n - begin), offset,
                     codes + begin, absmax[block]);
    }
  });
}

}  // namespace dormant::quantization
