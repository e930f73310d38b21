// Numbers of four bits (e2m1), two in a byte, times a scale for each block: mxfp4 and nvfp4.
#pragma once

#include <c10/core/ScalarType.h>

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "decode/float_kernels.h"
#include "decode/scale_grid.h"
#include "record/decoder.h"
#include "system/export.h"

namespace dormant::decode {

/// number * scale, or number * (scale / global scale), in float32, rounded to the output's dtype.
///
/// Parts: the packed bytes, the scales, and the global scale where there is one. The low half of a
/// byte comes first.
class DORMANT_BINDINGS_API PackedFp4 final : public record::Decoder {
 public:
  struct Layout {
    c10::ScalarType packed;             ///< uint8, int8 or float4_e2m1fn_x2
    std::vector<int64_t> packed_sizes;  ///< half as many as numbers, in any dimensions
    std::vector<int64_t> sizes;         ///< of the result: [.., rows, columns], columns even
    c10::ScalarType scales;
    /// [.., blocks down, blocks across], with or without sizes of one; or a single number.
    std::vector<int64_t> scale_sizes;
    int64_t block_rows = 1;
    int64_t block_columns;
    c10::ScalarType output;  ///< float32, bfloat16 or float16
    /// Of float32: sizes of the number that scales are divided by.
    std::optional<std::vector<int64_t>> global_sizes = std::nullopt;
    /// Of scales of uint8: 255 is 2^128, as in torch.ldexp, instead of infinity.
    bool exact_exponents = false;
  };

  /// c10::ValueError where sizes or dtypes do not fit.
  explicit PackedFp4(Layout layout);

  record::Geometry output() const override;
  std::vector<record::Geometry> parts() const override;
  int64_t unit() const override { return 2; }
  void wanted(size_t part, int64_t begin, int64_t count, c10::ArrayRef<const void*> earlier,
              std::vector<record::ElementRun>& runs) const override;
  void run(int64_t begin, int64_t count, c10::ArrayRef<const void*> parts,
           void* out) const override;
  std::string name() const override;

 private:
  Layout layout_;
  Format format_;
  ScaleGrid grid_;
};

}  // namespace dormant::decode
