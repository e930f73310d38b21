// GPTQ: integers of 2, 3, 4 or 8 bits packed along the rows of [in, out], bit for bit as
// TorchLinear.dequantize_weight of gptqmodel makes them into numbers on a CPU.
#pragma once

#include <string>

#include "decode/grouped_rows.h"

namespace dormant::decode {

/// The result is [in, out], the transpose of the weight, in the dtype of `scales`. The first part
/// is g_idx if there is one (int32 [in]); then qweight (int32 [in * bits / 32, out]), qzeros (int32
/// [groups, out * bits / 32]) and scales ([groups, out]), quotients rounded up.
class DORMANT_BINDINGS_API Gptq final : public GroupedRows {
 public:
  struct Config {
    int64_t bits = 4;
    /// Rows of a group; -1: all of them. 0: not known, which needs a g_idx.
    int64_t group_size = 128;
    /// checkpoint_format "gptq": qzeros has zeros less one, to which gptqmodel adds 0x11111111 (of
    /// 4 bits), with carries from one zero into the next. False: "gptq_v2".
    bool zeros_less_one = true;
  };
  struct Layout {
    Config config;
    Parts parts;
  };

  /// ValueError where sizes or dtypes don't fit each other or the configuration.
  explicit Gptq(const Layout& layout);

  int64_t unit() const override { return 1; }
  std::string name() const override;

 private:
  void append_codes(const Box& box, std::vector<record::ElementRun>& runs) const override;
  void decode_row(const IntegerKernels& kernels, const Box& box, const uint8_t* words, int64_t row,
                  int64_t column, int64_t end_column, const float* zeros, const float* scales,
                  void* out) const override;
  void decode_zeros(const IntegerKernels& kernels, const Box& box, const uint8_t* words,
                    int64_t column, int64_t end_column, float* zeros) const override;

  const Config config_;
};

}  // namespace dormant::decode
