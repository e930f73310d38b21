#include "decode/scaled_bytes.h"

#include <c10/util/ArrayRef.h>
#include <c10/util/Exception.h>

#include <utility>

#include "decode/output_format.h"
#include "decode/scales.h"
#include "simd/kernels.h"

namespace dormant::decode {
namespace {

using c10::ScalarType;
using record::ElementRun;
using record::Geometry;

}  // namespace

ScaledBytes::ScaledBytes(Layout layout)
    : layout_(std::move(layout)),
      format_(output_format(layout_.output)),
      grid_(layout_.sizes, layout_.block_rows, layout_.block_columns, layout_.scale_sizes) {
  const bool is_int8 = layout_.weight == ScalarType::Char;
  TORCH_CHECK_VALUE(is_int8 || layout_.weight == ScalarType::Float8_e4m3fn ||
                        layout_.weight == ScalarType::Float8_e5m2,
                    "got a weight of ", layout_.weight,
                    ", expected float8_e4m3fn, float8_e5m2 or int8");
  TORCH_CHECK_VALUE(is_scale(layout_.scales), "got scales of ", layout_.scales,
                    ", expected float32, bfloat16, float16, float8_e8m0fnu or uint8");
  TORCH_CHECK_VALUE(!layout_.zeros || (is_int8 && *layout_.zeros == ScalarType::Char),
                    "got zeros for a weight of ", layout_.weight, ", expected both to be int8");
}

Geometry ScaledBytes::output() const { return Geometry::contiguous(layout_.sizes, layout_.output); }

std::vector<Geometry> ScaledBytes::parts() const {
  std::vector<Geometry> parts = {Geometry::contiguous(layout_.sizes, layout_.weight),
                                 Geometry::contiguous(layout_.scale_sizes, layout_.scales)};
  if (layout_.zeros) {
    parts.push_back(Geometry::contiguous(layout_.scale_sizes, *layout_.zeros));
  }
  return parts;
}

void ScaledBytes::wanted(size_t part, int64_t begin, int64_t count,
                         c10::ArrayRef<const void*> /*earlier*/,
                         std::vector<ElementRun>& runs) const {
  if (part == 0) {
    runs.push_back({begin, count});
  } else {
    grid_.runs(begin, count, runs);
  }
}

void ScaledBytes::run(int64_t begin, int64_t count, c10::ArrayRef<const void*> parts,
                      void* out) const {
  const auto& kernels = simd::kernels<FloatKernels>();
  const auto* codes = static_cast<const uint8_t*>(parts[0]);
  const auto* zeros = layout_.zeros ? static_cast<const int8_t*>(parts[2]) : nullptr;
  auto* to = static_cast<char*>(out);
  const auto width = static_cast<int64_t>(c10::elementSize(layout_.output));
  const auto kind = layout_.weight == ScalarType::Float8_e4m3fn ? Fp8::e4m3 : Fp8::e5m2;
  grid_.walk(begin, count, [&](int64_t at, int64_t n, int64_t index) {
    const auto* from = codes + (at - begin);
    auto* there = to + (at - begin) * width;
    const float by = scale(layout_.scales, parts[1], index);
    if (layout_.weight == ScalarType::Char) {
      const float zero = zeros == nullptr ? 0 : zeros[index];
      kernels.int8(format_, reinterpret_cast<const int8_t*>(from), static_cast<size_t>(n), zero, by,
                   layout_.factor, there);
    } else {
      kernels.fp8(kind, format_, from, static_cast<size_t>(n), by, there);
    }
  });
}

std::string ScaledBytes::name() const {
  const std::string kind = layout_.weight == ScalarType::Char            ? "int8"
                           : layout_.weight == ScalarType::Float8_e4m3fn ? "fp8 e4m3"
                                                                         : "fp8 e5m2";
  return kind + ", " + grid_.name();
}

}  // namespace dormant::decode
