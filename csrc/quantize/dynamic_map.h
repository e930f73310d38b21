// 8-bit codes for the absmax of blocks: double quantization, as bitsandbytes' quantize_blockwise
// does it on a CPU.
#pragma once

#include <c10/util/ArrayRef.h>

#include <array>
#include <cstdint>

namespace dormant::quantization {

/// The codes by value. bitsandbytes looks the nearest one up in a table of 65,536 steps, which
/// isn't always the nearest; this is the same table.
class DynamicMap {
 public:
  static constexpr int64_t kBlock = 256;  ///< numbers that share an absmax

  /// `values` are 256, finite and ascending: bitsandbytes' create_dynamic_map(), which depends on
  /// the processor. ValueError otherwise.
  explicit DynamicMap(c10::ArrayRef<float> values);

  /// The codes of numbers[i] - offset, in blocks, whose absmax goes to `absmax`.
  void quantize(const float* numbers, int64_t n, float offset, uint8_t* codes, float* absmax) const;

 private:
  // The first step of each code, and the end: the table is made from them when it is needed, since
  // every quantized layer of a model may hold a map.
  std::array<uint32_t, 257> first_step_;
};

}  // namespace dormant::quantization
