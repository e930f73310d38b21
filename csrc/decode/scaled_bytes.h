// Numbers of a byte, times a scale for each block: the fp8 of DeepSeek and transformers, fp8 and
// int8 of compressed-tensors, FBGEMM's rows, bitsandbytes' int8.
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

/// (weight - zero) * scale * factor, each product rounded to float32, and the last one to the
/// output's dtype. (Of numbers of a byte and scales of bfloat16 or float16 the product is exact in
/// float32, so that is their product in that dtype, too.)
///
/// Parts: the weight [.., rows, columns], the scales, and the zeros where there are any.
class DORMANT_BINDINGS_API ScaledBytes final : public record::Decoder {
 public:
  struct Layout {
    c10::ScalarType weight;  ///< float8_e4m3fn, float8_e5m2 or int8
    std::vector<int64_t> sizes;
    c10::ScalarType scales;
    /// [.., blocks down, blocks across], with or without sizes of one; or a single number.
    std::vector<int64_t> scale_sizes;
    int64_t block_rows = 1;
    int64_t block_columns = 1;
    c10::ScalarType output;                               ///< float32, bfloat16 or float16
    float factor = 1;                                     ///< of int8 only
    std::optional<c10::ScalarType> zeros = std::nullopt;  ///< int8, of int8 only, as many as scales
  };

  /// c10::ValueError where sizes or dtypes do not fit.
  explicit ScaledBytes(Layout layout);

  record::Geometry output() const override;
  std::vector<record::Geometry> parts() const override;
  int64_t unit() const override { return 1; }
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
