#include "decode/scaled_fp8.h"

#include <c10/util/Exception.h>

#include <algorithm>
#include <iterator>

#include "decode/output_format.h"
#include "decode/scales.h"
#include "simd/kernels.h"

namespace dormant::decode {
namespace {

using record::ElementRun;
using record::Geometry;

int64_t blocks(int64_t size, int64_t block) { return size / block + (size % block != 0 ? 1 : 0); }

/// Sizes without ones: scales are kept as [rows], as [rows, 1], or as [experts, 1, 1].
std::vector<int64_t> squeezed(c10::IntArrayRef sizes) {
  std::vector<int64_t> rest;
  std::copy_if(sizes.begin(), sizes.end(), std::back_inserter(rest),
               [](int64_t size) { return size != 1; });
  return rest;
}

}  // namespace

ScaledFp8::ScaledFp8(c10::ScalarType weight, c10::IntArrayRef sizes, c10::ScalarType scales,
                     c10::IntArrayRef scale_sizes, int64_t block_rows, int64_t block_columns,
                     c10::ScalarType output)
    : weight_(weight),
      sizes_(sizes.vec()),
      scales_(scales),
      scale_sizes_(scale_sizes.vec()),
      output_(output),
      format_(output_format(output)),
      grid_{},
      single_(Geometry::contiguous(scale_sizes, scales).numel() == 1) {
  TORCH_CHECK_VALUE(
      weight == c10::ScalarType::Float8_e4m3fn || weight == c10::ScalarType::Float8_e5m2,
      "dormant: fp8: got a weight of ", weight, "; expected float8_e4m3fn or float8_e5m2");
  TORCH_CHECK_VALUE(is_scale(scales), "dormant: fp8: got scales of ", scales,
                    "; expected float32, bfloat16, float16, float8_e8m0fnu or uint8");
  const int64_t rank = static_cast<int64_t>(sizes.size());
  grid_.columns = rank >= 1 ? std::max<int64_t>(sizes[rank - 1], 1) : 1;
  grid_.rows = rank >= 2 ? std::max<int64_t>(sizes[rank - 2], 1) : 1;
  if (single_) {
    grid_.block_rows = grid_.rows;
    grid_.block_columns = grid_.columns;
    grid_.grid_columns = 1;
    grid_.stride = 0;
    return;
  }
  TORCH_CHECK_VALUE(rank >= 2 && block_rows >= 1 && block_columns >= 1,
                    "dormant: fp8: got blocks of ", block_rows, "x", block_columns,
                    " for a weight of sizes ", sizes, "; expected positive numbers, and a matrix");
  auto expected = sizes.vec();
  expected[rank - 2] = blocks(sizes[rank - 2], block_rows);
  expected[rank - 1] = blocks(sizes[rank - 1], block_columns);
  TORCH_CHECK_VALUE(squeezed(scale_sizes) == squeezed(expected),
                    "dormant: fp8: got scales of sizes ", scale_sizes, " for a weight of sizes ",
                    sizes, " in blocks of ", block_rows, "x", block_columns, "; expected ",
                    c10::IntArrayRef(expected));
  grid_.block_rows = block_rows;
  grid_.block_columns = block_columns;
  grid_.grid_columns = expected[rank - 1];
  grid_.stride = expected[rank - 2] * expected[rank - 1];
}

Geometry ScaledFp8::output() const { return Geometry::contiguous(sizes_, output_); }

std::vector<Geometry> ScaledFp8::parts() const {
  return {Geometry::contiguous(sizes_, weight_), Geometry::contiguous(scale_sizes_, scales_)};
}

void ScaledFp8::wanted(size_t part, int64_t begin, int64_t count,
                       c10::ArrayRef<const void*> /*earlier*/,
                       std::vector<ElementRun>& runs) const {
  if (part == 0) {
    runs.push_back({begin, count});
  } else {
    grid_.runs(begin, count, runs);
  }
}

void ScaledFp8::run(int64_t begin, int64_t count, c10::ArrayRef<const void*> parts,
                    void* out) const {
  const auto& kernels = simd::kernels<FloatKernels>();
  const auto kind = weight_ == c10::ScalarType::Float8_e4m3fn ? Fp8::e4m3 : Fp8::e5m2;
  const auto* codes = static_cast<const uint8_t*>(parts[0]) - begin;
  auto* to = static_cast<char*>(out);
  const auto width = static_cast<int64_t>(c10::elementSize(output_));
  grid_.walk(begin, count, [&](int64_t at, int64_t n, int64_t, int64_t index) {
    kernels.fp8(kind, format_, codes + at, static_cast<size_t>(n), scale(scales_, parts[1], index),
                to + (at - begin) * width);
  });
}

std::string ScaledFp8::name() const {
  const std::string kind = weight_ == c10::ScalarType::Float8_e4m3fn ? "fp8 e4m3" : "fp8 e5m2";
  if (single_) {
    return kind + ", one scale";
  }
  if (grid_.block_rows == 1 && grid_.block_columns == grid_.columns) {
    return kind + ", a scale for each row";
  }
  return kind + ", blocks of " + std::to_string(grid_.block_rows) + "x" +
         std::to_string(grid_.block_columns);
}

}  // namespace dormant::decode
