// Which scale belongs to which element: a number for each block of a matrix, or of a stack of them.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "record/decoder.h"

namespace dormant::decode {

/// Rows of a stack of matrices [.., rows, columns], one after the other, cut into blocks. Those at
/// the edges may be smaller. Scales [.., grid_rows, grid_columns] are flat, too.
struct ScaleGrid {
  int64_t rows;  ///< of one matrix
  int64_t columns;
  int64_t block_rows;     ///< at least one
  int64_t block_columns;  ///< at least one
  int64_t grid_columns;   ///< scales of a row of blocks
  int64_t stride;         ///< scales of one matrix; 0 where all have the same

  /// Calls segment(begin, count, scale, at) for the pieces of [begin, begin + count) with one scale
  /// each, in order: `scale` counts all scales, `at` those of `runs` for the same range.
  template <class Segment>
  void walk(int64_t begin, int64_t count, Segment&& segment) const {
    int64_t first = -1;  // the scales of the row before, and where they are among those wanted
    int64_t last = -1;
    int64_t at = 0;
    const int64_t end = begin + count;
    while (begin < end) {
      const int64_t row = begin / columns;
      const int64_t column = begin % columns;
      const int64_t row_end = std::min(end, begin - column + columns);
      const int64_t scales = row / rows * stride + row % rows / block_rows * grid_columns;
      const int64_t from = scales + column / block_columns;
      const int64_t to = scales + (column + row_end - begin - 1) / block_columns;
      if (from != first || to != last) {
        at += last < 0 ? 0 : last - first + 1;
        first = from;
        last = to;
      }
      int64_t block_end = begin + block_columns - column % block_columns;
      for (int64_t scale = from; begin < row_end; ++scale, block_end += block_columns) {
        const int64_t piece = std::min(row_end, block_end);
        segment(begin, piece - begin, scale, at + scale - from);
        begin = piece;
      }
    }
  }

  /// Appends the scales of [begin, begin + count).
  void runs(int64_t begin, int64_t count, std::vector<record::ElementRun>& runs) const {
    const size_t start = runs.size();
    int64_t wanted = 0;
    walk(begin, count, [&](int64_t, int64_t, int64_t scale, int64_t at) {
      if (at < wanted) {
        return;  // that of a row before
      }
      wanted = at + 1;
      if (runs.size() > start && runs.back().begin + runs.back().count == scale) {
        ++runs.back().count;
      } else {
        runs.push_back({scale, 1});
      }
    });
  }
};

}  // namespace dormant::decode
