// Numbers of a byte, times a scale for each block: DeepSeek's and transformers' fp8, and that of
// compressed-tensors and FBGEMM.
#pragma once

#include <c10/core/ScalarType.h>
#include <c10/util/ArrayRef.h>

#include <cstdint>
#include <string>
#include <vector>

#include "decode/float_kernels.h"
#include "decode/scale_grid.h"
#include "record/decoder.h"
#include "system/export.h"

namespace dormant::decode {

/// The product of two float32 numbers, rounded once to the output's dtype.
///
/// Parts: the weight, float8_e4m3fn or float8_e5m2 [.., rows, columns], and the scales.
class DORMANT_BINDINGS_API ScaledFp8 final : public record::Decoder {
 public:
  /// The scales are one for each block of `block_rows` x `block_columns` elements, [.., the blocks
  /// down, the blocks across], with or without sizes of one, or a single one. c10::ValueError where
  /// sizes or dtypes do not fit; `output` is float32, bfloat16 or float16.
  ScaledFp8(c10::ScalarType weight, c10::IntArrayRef sizes, c10::ScalarType scales,
            c10::IntArrayRef scale_sizes, int64_t block_rows, int64_t block_columns,
            c10::ScalarType output);

  record::Geometry output() const override;
  std::vector<record::Geometry> parts() const override;
  int64_t unit() const override { return 1; }
  void wanted(size_t part, int64_t begin, int64_t count, c10::ArrayRef<const void*> earlier,
              std::vector<record::ElementRun>& runs) const override;
  void run(int64_t begin, int64_t count, c10::ArrayRef<const void*> parts,
           void* out) const override;
  std::string name() const override;

 private:
  c10::ScalarType weight_;
  std::vector<int64_t> sizes_;
  c10::ScalarType scales_;
  std::vector<int64_t> scale_sizes_;
  c10::ScalarType output_;
  Format format_;
  ScaleGrid grid_;
  bool single_;
};

}  // namespace dormant::decode
