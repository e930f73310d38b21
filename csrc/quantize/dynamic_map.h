// 8-bit codes for the absmax of blocks: double quantisation, as bitsandbytes' quantize_blockwise
// does it on a CPU.
#pragma once

#include <c10/util/ArrayRef.h>

#include <cstdint>
#include <vector>

namespace dormant::quantize {

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
  void quantize_block(const float* numbers, int64_t n, float offset, uint8_t* codes,
                      float& absmax) const;

  std::vector<uint8_t> nearest_;  // by (value + 1) / 2 * 65535
};

}  // namespace dormant::quantize
