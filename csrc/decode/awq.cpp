#include "decode/awq.h"

#include <array>

#include "decode/integer_parts.h"

namespace dormant::decode {

using record::ElementRun;
using record::Geometry;

Awq::Awq(const Layout& layout)
    : GroupedRows([&] {
        const auto& [module, qweight, qzeros, scales, g_idx] = layout.parts;
        if (g_idx) {
          refuse("AWQ with a g_idx; expected none");
        }
        check_dimensions("qweight", qweight, 2);
        check_dimensions("scales", scales, 2);
        const auto in = qweight.sizes[0];
        const auto out = qweight.sizes[1] * kCodes;
        const auto group = layout.group_size == -1 ? in : layout.group_size;
        if (group <= 0 || in % group != 0) {
          refuse("AWQ in groups of " + std::to_string(layout.group_size) +
                 " rows; expected -1 or a number that divides the " + std::to_string(in) +
                 " rows of qweight");
        }
        check_sizes("scales", scales, {in / group, out},
                    "qweight has " + std::to_string(in) + " rows, in groups of " +
                        std::to_string(group) + ", and eight columns in a word");
        check_sizes("qzeros", qzeros, {in / group, qweight.sizes[1]},
                    "that is the number of groups, and of words in a row of qweight");
        return Layer{layout.parts, in, out, group, kBits};
      }()) {}

std::string Awq::name() const {
  return "awq gemm, 4 bits, groups of " + std::to_string(layer().group_size);
}

void Awq::append_codes(const Box& box, std::vector<ElementRun>& runs) const {
  const auto words = layer().out / kCodes;
  for (auto row = box.row; row < box.end_row; ++row) {
    append_run(row * words + box.column / kCodes, box.columns() / kCodes, runs);
  }
}

void Awq::decode_row(const IntegerKernels& kernels, const Box& box, const uint8_t* words,
                     int64_t row, int64_t column, int64_t end_column, const float* zeros,
                     const float* scales, void* out) const {
  alignas(64) std::array<uint8_t, kStrip> codes;
  const auto first = ((row - box.row) * box.columns() + column - box.column) / kCodes;
  kernels.unpack_awq(words + first * 4, static_cast<size_t>((end_column - column) / kCodes),
                     codes.data());
  kernels.scale(codes.data(), zeros, scales, static_cast<size_t>(end_column - column), format(),
                out);
}

void Awq::decode_zeros(const IntegerKernels& kernels, const Box& box, const uint8_t* words,
                       int64_t column, int64_t end_column, float* zeros) const {
  alignas(64) std::array<uint8_t, kStrip> codes;
  kernels.unpack_awq(words + (column - box.column) / kCodes * 4,
                     static_cast<size_t>((end_column - column) / kCodes), codes.data());
  kernels.to_floats(codes.data(), static_cast<size_t>(end_column - column), zeros);
}

}  // namespace dormant::decode
