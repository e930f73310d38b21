// How the elements of a program are cut into tiles: in memory order, or into rectangles (walk.h).
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "tile/job.h"
#include "tile/mapping.h"
#include "tile/program.h"
#include "tile/walk.h"

namespace dormant::tile {

/// What suits the place where the rows of rectangles are stored one by one.
struct RectangleSize {
  int64_t row_bytes;  ///< shorter rows cost as much
  int64_t best;       ///< bytes of a rectangle
};

class Tiling {
 public:
  /// Of `elements` of the program; all of them where it is made by rectangles. Tiles have multiples
  /// of `unit` elements, and so have the rows of rectangles, if `whole_units`: then
  /// `fits(program, unit)` must hold.
  Tiling(const Program& program, Run elements, RectangleSize size, int64_t unit, bool whole_units);

  /// Whether rectangles narrower than their matrix have whole units in each row, or none are
  /// needed.
  static bool fits(const Program& program, int64_t unit);

  bool by_rectangles() const { return transposed_.has_value(); }
  /// Runs of a tile.
  int64_t rows() const { return transposed_ ? transposed_->rows : 1; }

  TileSize tile_size() const;
  /// Elements of a tile of about so many bytes, at least one unit or column. Those of rectangles
  /// are counted column by column.
  int64_t tile(int64_t bytes) const;

  /// The elements of the program that a tile of up to `most` from `begin` on makes, and their
  /// number.
  int64_t cut(int64_t begin, int64_t most, std::vector<Run>& runs) const;

  /// Those of Job, of a job that makes these tiles.
  std::optional<Program::Range> read_range(int64_t begin, int64_t end) const;
  void append_reads(int64_t begin, int64_t end, std::vector<Program::Range>& ranges) const;

 private:
  const Program& program_;
  const Run elements_;
  const std::optional<Transposed> transposed_;
  const RectangleSize size_;
  const int64_t unit_;
  const int64_t row_unit_;  ///< 0: rows of any length
};

/// Calls `take(begin, count, element)` for the runs of a tile: elements [begin, begin + count) of
/// the program are those from `element` on of the tile. Runs that follow each other are one.
template <typename Take>
void for_each_row(Runs runs, const Take& take) {
  int64_t element = 0;
  for (size_t i = 0; i < runs.size();) {
    const auto begin = runs[i].begin;
    auto end = begin;
    for (; i < runs.size() && runs[i].begin == end; ++i) {
      end += runs[i].count;
    }
    take(begin, end - begin, element);
    element += end - begin;
  }
}

}  // namespace dormant::tile
