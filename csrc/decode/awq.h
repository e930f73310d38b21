// AWQ, version "gemm": 4-bit integers packed along the columns of [in, out], the even ones of eight
// columns in the low half of a word, bit for bit as dequantize_gemm of AutoAWQ and gptqmodel makes
// them into numbers.
#pragma once

#include <string>

#include "decode/grouped_rows.h"

namespace dormant::decode {

/// The result is [in, out], the transpose of the weight, in the dtype of `scales`. Parts: qweight
/// (int32 [in, out / 8]), qzeros (int32 [groups, out / 8]) and scales ([groups, out]).
class DORMANT_BINDINGS_API Awq final : public GroupedRows {
 public:
  struct Layout {
    int64_t group_size;  ///< -1: one group
    Parts parts;
  };

  /// ValueError where sizes or dtypes don't fit each other or the configuration.
  explicit Awq(const Layout& layout);

  int64_t unit() const override { return kCodes; }
  std::string name() const override;

 private:
  static constexpr int64_t kBits = 4;
  static constexpr int64_t kCodes = 32 / kBits;  ///< of a word

  void append_codes(const Box& box, std::vector<record::ElementRun>& runs) const override;
  void decode_row(const IntegerKernels& kernels, const Box& box, const uint8_t* words, int64_t row,
                  int64_t column, int64_t end_column, const float* zeros, const float* scales,
                  void* out) const override;
  void decode_zeros(const IntegerKernels& kernels, const Box& box, const uint8_t* words,
                    int64_t column, int64_t end_column, float* zeros) const override;
};

}  // namespace dormant::decode
