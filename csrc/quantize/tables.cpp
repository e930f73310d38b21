#include "quantize/tables.h"

#include <ATen/TensorOperators.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/linspace.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <vector>

#include "system/dispatch_state.h"

namespace dormant::quantization {

std::array<float, 16> nf4_values() {
  constexpr std::array<double, 16> kLevels = {
      -1.0,
      -0.6961928009986877,
      -0.5250730514526367,
      -0.39491748809814453,
      -0.28444138169288635,
      -0.18477343022823334,
      -0.09105003625154495,
      0.0,
      0.07958029955625534,
      0.16093020141124725,
      0.24611230194568634,
      0.33791524171829224,
      0.44070982933044434,
      0.5626170039176941,
      0.7229568362236023,
      1.0,
  };
  std::array<float, 16> values{};
  std::transform(kLevels.begin(), kLevels.end(), values.begin(),
                 [](double level) { return static_cast<float>(level); });
  return values;
}

std::array<float, 16> fp4_values() {
  constexpr std::array<float, 8> kMagnitudes = {0.0f, 0.0625f, 8.0f, 12.0f, 4.0f, 6.0f, 2.0f, 3.0f};
  std::array<float, 16> values{};
  for (size_t i = 0; i < kMagnitudes.size(); ++i) {
    values[i] = kMagnitudes[i] / 12.0f;
    values[i + kMagnitudes.size()] = i == 0 ? 0.0f : -values[i];
  }
  return values;
}

std::array<float, 256> dynamic_map_values() {
  constexpr std::array kPowers = {1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0};
  const system::PlainDispatch plain;
  std::vector<float> all = {0.0f, 1.0f};
  int64_t fractions = 1;
  for (const double power : kPowers) {
    const auto bounds =
        at::linspace(0.1, 1, fractions + 1, at::TensorOptions(at::kFloat).device(at::kCPU));
    const auto means = (bounds.slice(0, 0, -1) + bounds.slice(0, 1)) / 2.0;
    for (const double factor : {power, -power}) {
      const auto values = means * factor;
      all.insert(all.end(), values.const_data_ptr<float>(),
                 values.const_data_ptr<float>() + fractions);
    }
    fractions *= 2;
  }
  std::sort(all.begin(), all.end());
  std::array<float, 256> values{};
  TORCH_INTERNAL_ASSERT(all.size() == values.size());
  std::copy(all.begin(), all.end(), values.begin());
  return values;
}

}  // namespace dormant::quantization
