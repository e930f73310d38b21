// Which elements of a source a copy reads, for each place that it writes.
//
// Places are the elements of the destination in memory order (region.h). Where the source lies in
// the same order, places are runs of its elements. Where it doesn't (a transposed copy, every other
// element, a broadcast row), they are boxes: the source is read in its own order, and elements are
// put in their places from cache.
#pragma once

#include <c10/util/ArrayRef.h>
#include <c10/util/SmallVector.h>
#include <cstdint>
#include <optional>
#include <vector>

#include "record/decoder.h"
#include "record/geometry.h"
#include "tile/layout.h"

namespace dormant::tile {

/// Consecutive elements of a storage, or consecutive places.
using Run = record::ElementRun;
using Runs = c10::ArrayRef<Run>;

/// Number of elements in all runs.
int64_t total(Runs runs);

/// Source elements as a strided tensor, and where they go.
struct Box {
  struct Dimension {
    int64_t size;
    int64_t stride;      ///< in the source
    int64_t out_stride;  ///< in the output
  };
  int64_t element;  ///< of the source, the first
  int64_t out;      ///< place of the first in the output
  c10::SmallVector<Dimension, 6> dimensions;
};

class Mapping {
 public:
  /// The mapping of a copy from `source`, broadcast as copy_ does, to `destination`, no two
  /// elements of which share memory. None where the sizes don't fit.
  static std::optional<Mapping> between(const record::Geometry& destination,
                                        const record::Geometry& source);

  /// Whether the source is read in rows, in the order of places; else in boxes.
  bool in_rows() const { return layout_.strides.back() == 1; }

  /// Appends the source elements of places [begin, begin + count), in the order of places.
  void append(int64_t begin, int64_t count, std::vector<Run>& runs) const;

  /// Appends boxes that fill an output with the source elements of `places`, one after the other.
  void append(Runs places, std::vector<Box>& boxes) const;

  /// The most runs of source elements that `count` places in `ranges` ranges can take.
  int64_t most_runs(int64_t count, int64_t ranges) const;

  /// Sizes and strides in the source, outermost first; dimensions that follow each other in memory
  /// are merged.
  c10::IntArrayRef sizes() const { return layout_.sizes; }
  c10::IntArrayRef strides() const { return layout_.strides; }

 private:
  Layout layout_;  ///< places are those of the destination, elements the source's
};

/// How the elements of a box are read: in ascending runs, into a buffer in which they lie with
/// strides of their own.
struct BoxReading {
  std::vector<Run> runs;
  c10::SmallVector<int64_t, 6> strides;  ///< in the buffer, of the box's dimensions
};

/// At most this many elements are read for one that is wanted, where runs lie close together.
constexpr int64_t kMostReadPerElement = 4;

BoxReading reading_of(const Box& box);

}  // namespace dormant::tile
