// Which scale belongs to which element: a number for each block of a matrix, or of a stack of them.
#pragma once

#include <c10/util/ArrayRef.h>

#include <algorithm>
#include <cstdint>
#include <string>
#include <vector>

#include "record/decoder.h"

namespace dormant::decode {

/// A stack of matrices [.., rows, columns], cut into blocks, of which those at the edges may be
/// smaller; the scales [.., blocks down, blocks across] are flat, too. Immutable.
class ScaleGrid {
 public:
  /// `scales` may lack sizes of one or have more of them, and may be a single number for
  /// everything. c10::ValueError where there are not as many as blocks.
  ScaleGrid(c10::IntArrayRef sizes, int64_t block_rows, int64_t block_columns,
            c10::IntArrayRef scales);

  /// Calls segment(begin, count, at) for the pieces of [begin, begin + count) with one scale each,
  /// in order: `at` is the place of the scale among those that `runs` wants for the same range.
  template <class Segment>
  void walk(int64_t begin, int64_t count, Segment&& segment) const {
    walk_rows(
        begin, count, [&](int64_t row_begin, int64_t row_count, int64_t, int64_t, int64_t at) {
          const int64_t row_end = row_begin + row_count;
          int64_t block_end = row_begin + block_columns_ - row_begin % columns_ % block_columns_;
          while (row_begin < row_end) {
            const int64_t piece = std::min(row_end, block_end);
            segment(row_begin, piece - row_begin, at++);
            row_begin = piece;
            block_end += block_columns_;
          }
        });
  }

  /// Appends the scales of [begin, begin + count).
  void runs(int64_t begin, int64_t count, std::vector<record::ElementRun>& runs) const;

  /// Such as "blocks of 128x128".
  std::string name() const;

 private:
  /// Calls row(begin, count, first, last, at) for each row, or part of one: its scales are `first`
  /// to `last` of all, and at `at` among those wanted. Rows of blocks that follow one another share
  /// them.
  template <class Row>
  void walk_rows(int64_t begin, int64_t count, Row&& row) const {
    int64_t before_first = 0;
    int64_t before_last = -1;
    int64_t at = 0;
    for (const int64_t end = begin + count; begin < end;) {
      const int64_t index = begin / columns_;
      const int64_t column = begin % columns_;
      const int64_t here = std::min(end - begin, columns_ - column);
      const int64_t scales = index / rows_ * stride_ + index % rows_ / block_rows_ * across_;
      const int64_t first = scales + column / block_columns_;
      const int64_t last = scales + (column + here - 1) / block_columns_;
      if (first != before_first || last != before_last) {
        at += before_last - before_first + 1;
        before_first = first;
        before_last = last;
      }
      row(begin, here, first, last, at);
      begin += here;
    }
  }

  int64_t rows_ = 1;  ///< of one matrix, at least one
  int64_t columns_ = 1;
  int64_t block_rows_ = 1;
  int64_t block_columns_ = 1;
  int64_t across_ = 1;  ///< blocks in a row of them
  int64_t stride_ = 0;  ///< scales of one matrix; 0 where all have the same
};

}  // namespace dormant::decode
