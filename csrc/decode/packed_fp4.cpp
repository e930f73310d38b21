#include "decode/packed_fp4.h"

#include <c10/util/ArrayRef.h>
#include <c10/util/Exception.h>

#include <cmath>
#include <utility>

#include "decode/output_format.h"
#include "decode/scales.h"
#include "simd/kernels.h"

namespace dormant::decode {
namespace {

using c10::ScalarType;
using record::ElementRun;
using record::Geometry;

constexpr FourBitValues kE2m1 = {{0.0f, 0.5f, 1.0f, 1.5f, 2.0f, 3.0f, 4.0f, 6.0f, -0.0f, -0.5f,
                                  -1.0f, -1.5f, -2.0f, -3.0f, -4.0f, -6.0f}};

/// Twice the numbers: times 2^127 they are those of the exponent 2^128.
constexpr FourBitValues kTwice = [] {
  auto twice = kE2m1;
  for (auto& value : twice.value) {
    value *= 2;
  }
  return twice;
}();

}  // namespace

PackedFp4::PackedFp4(Layout layout)
    : layout_(std::move(layout)),
      format_(output_format(layout_.output)),
      grid_(layout_.sizes, layout_.block_rows, layout_.block_columns, layout_.scale_sizes) {
  TORCH_CHECK_VALUE(layout_.packed == ScalarType::Byte || layout_.packed == ScalarType::Char ||
                        layout_.packed == ScalarType::Float4_e2m1fn_x2,
                    "got packed numbers of ", layout_.packed, ", expected uint8");
  TORCH_CHECK_VALUE(is_scale(layout_.scales), "got scales of ", layout_.scales,
                    ", expected uint8, float8_e8m0fnu, float8_e4m3fn, float32, bfloat16 or "
                    "float16");
  TORCH_CHECK_VALUE(!layout_.exact_exponents || layout_.scales == ScalarType::Byte,
                    "got scales of ", layout_.scales, ", expected exponents of uint8");
  const auto columns = layout_.sizes.empty() ? 0 : layout_.sizes.back();
  TORCH_CHECK_VALUE(!layout_.sizes.empty() && columns % 2 == 0 && layout_.block_columns % 2 == 0,
                    "got rows of ", columns, " numbers in blocks of ", layout_.block_columns,
                    ", expected even numbers of them");
  const auto packed = Geometry::contiguous(layout_.packed_sizes, layout_.packed).numel();
  const auto numbers = Geometry::contiguous(layout_.sizes, layout_.output).numel();
  TORCH_CHECK_VALUE(numbers % 2 == 0 && packed == numbers / 2, "got ", packed, " bytes for ",
                    numbers, " numbers of four bits, expected half as many");
  TORCH_CHECK_VALUE(!layout_.global_sizes ||
                        Geometry::contiguous(*layout_.global_sizes, ScalarType::Float).numel() == 1,
                    "got a global scale of sizes ",
                    c10::IntArrayRef(layout_.global_sizes.value_or(std::vector<int64_t>())),
                    ", expected one number");
}

Geometry PackedFp4::output() const { return Geometry::contiguous(layout_.sizes, layout_.output); }

std::vector<Geometry> PackedFp4::parts() const {
  std::vector<Geometry> parts = {Geometry::contiguous(layout_.packed_sizes, layout_.packed),
                                 Geometry::contiguous(layout_.scale_sizes, layout_.scales)};
  if (layout_.global_sizes) {
    parts.push_back(Geometry::contiguous(*layout_.global_sizes, ScalarType::Float));
  }
  return parts;
}

void PackedFp4::wanted(size_t part, int64_t begin, int64_t count,
                       c10::ArrayRef<const void*> /*earlier*/,
                       std::vector<ElementRun>& runs) const {
  if (part == 0) {
    runs.push_back({begin / 2, count / 2});
  } else if (part == 1) {
    grid_.runs(begin, count, runs);
  } else {
    runs.push_back({0, 1});
  }
}

void PackedFp4::run(int64_t begin, int64_t count, c10::ArrayRef<const void*> parts,
                    void* out) const {
  const auto& kernels = simd::kernels<FloatKernels>();
  const auto* codes = static_cast<const uint8_t*>(parts[0]);
  const auto* global = layout_.global_sizes ? static_cast<const float*>(parts[2]) : nullptr;
  auto* to = static_cast<char*>(out);
  const auto width = static_cast<int64_t>(c10::elementSize(layout_.output));
  grid_.walk(begin, count, [&](int64_t at, int64_t n, int64_t index) {
    float by = scale(layout_.scales, parts[1], index);
    const bool largest = layout_.exact_exponents && std::isinf(by);
    if (largest) {
      by = 0x1p127f;
    }
    if (global != nullptr) {
      by /= *global;
    }
    kernels.four_bit(largest ? kTwice : kE2m1, Nibbles::low_first, format_,
                     codes + (at - begin) / 2, static_cast<size_t>(n), by,
                     to + (at - begin) * width);
  });
}

std::string PackedFp4::name() const {
  const std::string kind = layout_.scales == ScalarType::Float8_e4m3fn ? "nvfp4" : "mxfp4";
  return kind + ", " + grid_.name();
}

}  // namespace dormant::decode
