#include "checkpoint/encodings/mxfp4.h"

#include <c10/util/ArrayRef.h>
#include <c10/util/Exception.h>
#include <c10/util/safe_numerics.h>

#include <string>

#include "decode/output_format.h"
#include "decode/packed_fp4.h"
#include "text/printable.h"

namespace dormant::checkpoint {
namespace {

using c10::ScalarType;
using text::in_quotes;

constexpr std::string_view kBlocks = "_blocks";
constexpr std::string_view kScales = "_scales";

}  // namespace

void find_mxfp4(Scan& scan) {
  const bool expected = scan.configuration().method == "mxfp4";
  for (const auto& blocks : scan.tensors()) {
    if (!blocks.name.ends_with(kBlocks)) {
      continue;
    }
    const auto name = blocks.name.substr(0, blocks.name.size() - kBlocks.size());
    const auto scales_name = name + std::string(kScales);
    const auto& sizes = blocks.sizes;
    const bool fits = blocks.dtype == ScalarType::Byte && sizes.size() == 4;
    if (!expected && (!fits || scan.find(scales_name) == nullptr)) {
      continue;  // something else is called so
    }
    const auto& scales = scan.part(scales_name, name);
    std::vector<int64_t> plain;
    bool overflow = false;
    if (fits) {
      plain = {sizes[0], sizes[1], 0};
      overflow = c10::mul_overflows(sizes[2], sizes[3], &plain[2]) ||
                 c10::mul_overflows(plain[2], int64_t{2}, &plain[2]);
    }
    TORCH_CHECK_VALUE(fits && sizes[3] >= 1 && !overflow, scan.about(), in_quotes(blocks.name),
                      " has sizes ", c10::IntArrayRef(sizes), " of ", blocks.dtype,
                      ", expected uint8 [experts, rows, blocks, 16]. ", kNextRaw);
    const auto dtype = scan.dtype(ScalarType::BFloat16);
    scan.add<decode::PackedFp4>(name, {blocks.name, scales.name},
                                {.packed = blocks.dtype,
                                 .packed_sizes = sizes,
                                 .sizes = plain,
                                 .scales = scales.dtype,
                                 .scale_sizes = scales.sizes,
                                 .block_rows = 1,
                                 .block_columns = 2 * sizes[3],
                                 .output = decode::nearest_output(dtype),
                                 .exact_exponents = true},
                                dtype, /*transposed=*/true);
  }
}

}  // namespace dormant::checkpoint
