// Programs that read a source against its memory order, as a transposed copy does.
//
// Made element by element in memory order, each tile of a transposed copy would want a few elements
// of every row of its source, and the next tile the ones beside them: every tile would go through
// the whole source again. So tiles of such a program are not ranges but rectangles: few columns,
// and all rows.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "tile/program.h"

namespace dormant::tile {

/// A storage as matrices of so many rows and columns, one after the other, in memory order.
struct Transposed {
  int64_t rows;
  int64_t columns;

  bool operator==(const Transposed& other) const = default;
};

/// How the elements of a program are best made.
struct Walk {
  bool possible = true;  ///< false: any order goes through some source again and again
  std::optional<Transposed> transposed;  ///< undefined: in memory order
};

Walk walk_of(const Program& program);

/// How many columns a rectangle of about so many elements has: a multiple of `unit`, which divides
/// their number; if that is 0, whole cache lines, where it can.
int64_t rectangle_width(const Transposed& transposed, int64_t elements, int64_t unit = 0);

/// The elements of up to `most` columns from `column` on, a run for each row; columns are counted
/// through all matrices, and those of one matrix make a rectangle. Returns how many they are.
int64_t cut_rectangle(const Transposed& transposed, int64_t column, int64_t most,
                      std::vector<Run>& runs);

}  // namespace dormant::tile
