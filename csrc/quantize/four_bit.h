// The 4-bit formats of bitsandbytes, nf4 and fp4, bit for bit as its quantize_4bit makes them on a
// CPU.
#pragma once

#include <c10/util/ArrayRef.h>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "quantize/dynamic_map.h"
#include "quantize/kernels.h"
#include "record/quantizer.h"
#include "system/export.h"

namespace dormant::quantization {

/// Outputs for N elements in B blocks: the packed codes, uint8 [(N + 1) / 2, 1], and the absmax,
/// float32 [B]. Nested: the packed codes, the absmax as codes, uint8 [B], the absmax of those, one
/// for 256, and the number subtracted from them, float32 [].
class DORMANT_BINDINGS_API FourBit final : public record::Quantizer {
 public:
  /// `kind` is a name; `values` are those of the 16 codes, within [-1, 1] (bitsandbytes'
  /// get_4bit_type); `block_size` is a power of two from 32 to 4096; `nested_map` quantizes the
  /// absmax again (DynamicMap). ValueError otherwise.
  FourBit(std::string kind, int64_t block_size, c10::ArrayRef<float> values,
          std::optional<c10::ArrayRef<float>> nested_map = std::nullopt);

  std::vector<record::Geometry> outputs(c10::IntArrayRef sizes) const override;
  std::vector<record::Geometry> scratch(c10::IntArrayRef sizes) const override;
  int64_t unit(c10::IntArrayRef sizes) const override;
  int64_t packed_bytes(int64_t count) const override { return (count + 1) / 2; }
  void run(const void* source, c10::ScalarType dtype, c10::IntArrayRef sizes, int64_t begin,
           int64_t count, c10::ArrayRef<void*> memory) const override;
  void finish(c10::IntArrayRef sizes, int threads, c10::ArrayRef<void*> memory) const override;
  std::string name() const override;

  /// Nested only: quantizes the absmax of all blocks, as `finish` does. Ranks that made some of
  /// them each do it when they have them all.
  struct Nested {
    uint8_t* codes;  ///< [count]
    float* absmax;   ///< [count / 256, rounded up]
    float* offset;   ///< []
  };
  void nest(const float* absmax, int64_t count, int threads, const Nested& nested) const;

 private:
  int64_t blocks(c10::IntArrayRef sizes) const;

  std::string kind_;
  int64_t block_size_;
  FourBitTable table_;
  std::optional<DynamicMap> nested_;
};

}  // namespace dormant::quantization
