#include "decode/scale_grid.h"

#include <c10/util/Exception.h>

#include <iterator>

namespace dormant::decode {
namespace {

int64_t blocks(int64_t size, int64_t block) { return size / block + (size % block != 0 ? 1 : 0); }

/// Scales are kept as [rows], as [rows, 1], or as [experts, 1, 1].
std::vector<int64_t> without_ones(c10::IntArrayRef sizes) {
  std::vector<int64_t> rest;
  std::copy_if(sizes.begin(), sizes.end(), std::back_inserter(rest),
               [](int64_t size) { return size != 1; });
  return rest;
}

}  // namespace

ScaleGrid::ScaleGrid(c10::IntArrayRef sizes, int64_t block_rows, int64_t block_columns,
                     c10::IntArrayRef scales) {
  const auto rank = sizes.size();
  columns_ = rank >= 1 ? std::max<int64_t>(sizes[rank - 1], 1) : 1;
  rows_ = rank >= 2 ? std::max<int64_t>(sizes[rank - 2], 1) : 1;
  if (without_ones(scales).empty()) {
    block_rows_ = rows_;
    block_columns_ = columns_;
    return;
  }
  TORCH_CHECK_VALUE(rank >= 2 && block_rows >= 1 && block_columns >= 1, "got blocks of ",
                    block_rows, "x", block_columns, " for sizes ", sizes,
                    ", expected positive numbers, and a matrix");
  auto expected = sizes.vec();
  expected[rank - 2] = blocks(sizes[rank - 2], block_rows);
  expected[rank - 1] = blocks(sizes[rank - 1], block_columns);
  TORCH_CHECK_VALUE(without_ones(scales) == without_ones(expected), "got scales of sizes ", scales,
                    " for sizes ", sizes, " in blocks of ", block_rows, "x", block_columns,
                    ", expected ", c10::IntArrayRef(expected));
  block_rows_ = block_rows;
  block_columns_ = block_columns;
  across_ = expected[rank - 1];
  stride_ = expected[rank - 2] * expected[rank - 1];
}

void ScaleGrid::runs(int64_t begin, int64_t count, std::vector<record::ElementRun>& runs) const {
  const size_t start = runs.size();
  int64_t wanted = 0;
  walk_rows(begin, count, [&](int64_t, int64_t, int64_t first, int64_t last, int64_t at) {
    const int64_t n = last - first + 1;
    if (at + n <= wanted) {
      return;  // those of the row before
    }
    wanted = at + n;
    if (runs.size() > start && runs.back().begin + runs.back().count == first) {
      runs.back().count += n;
    } else {
      runs.push_back({first, n});
    }
  });
}

std::string ScaleGrid::name() const {
  if (stride_ == 0) {
    return "one scale";
  }
  if (block_columns_ == columns_ && block_rows_ == rows_) {
    return "a scale for each matrix";
  }
  if (block_columns_ == columns_ && block_rows_ == 1) {
    return "a scale for each row";
  }
  if (block_rows_ == 1) {
    return "blocks of " + std::to_string(block_columns_);
  }
  return "blocks of " + std::to_string(block_rows_) + "x" + std::to_string(block_columns_);
}

}  // namespace dormant::decode
