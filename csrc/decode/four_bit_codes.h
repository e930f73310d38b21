// Codes of four bits with a scale for each block of a flat tensor: nf4 and fp4 of bitsandbytes.
#pragma once

#include <c10/core/ScalarType.h>

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "decode/float_kernels.h"
#include "record/decoder.h"
#include "system/export.h"

namespace dormant::decode {

/// As bitsandbytes' dequantize_4bit: the number that a code stands for times its block's absmax, in
/// float32, rounded to the output's dtype. (For matrices whose rows are no whole number of blocks
/// the library's kernel for AVX-512 takes the absmax of other blocks; this is what its other ones
/// do, and what its quantize_4bit means.)
///
/// Parts: the packed codes, the first in the high half of a byte; the absmax, float32, or nested:
/// codes of uint8, and their absmax, float32.
class DORMANT_BINDINGS_API FourBitCodes final : public record::Decoder {
 public:
  enum class Kind : uint8_t { nf4, fp4 };

  struct Nested {
    std::array<float, 256> values;  ///< of the codes
    int64_t block;                  ///< codes that share an absmax
    float offset;                   ///< added to the result
  };

  struct Layout {
    Kind kind;
    c10::ScalarType packed;  ///< any that has as many bytes
    std::vector<int64_t> packed_sizes;
    std::vector<int64_t> absmax_sizes;
    std::vector<int64_t> nested_sizes;  ///< of the absmax of nested ones
    std::vector<int64_t> sizes;         ///< of the result
    int64_t block;                      ///< even
    c10::ScalarType output;             ///< float32, bfloat16 or float16
    std::optional<Nested> nested = std::nullopt;
  };

  /// c10::ValueError where sizes or dtypes do not fit.
  explicit FourBitCodes(Layout layout);

  record::Geometry output() const override;
  std::vector<record::Geometry> parts() const override;
  int64_t unit() const override { return 2 * width_; }
  void wanted(size_t part, int64_t begin, int64_t count, c10::ArrayRef<const void*> earlier,
              std::vector<record::ElementRun>& runs) const override;
  void run(int64_t begin, int64_t count, c10::ArrayRef<const void*> parts,
           void* out) const override;
  std::string name() const override;

 private:
  float absmax(int64_t block, int64_t first, c10::ArrayRef<const void*> parts) const;

  Layout layout_;
  Format format_;
  int64_t width_;  ///< bytes of an element of the packed tensor
};

}  // namespace dormant::decode
