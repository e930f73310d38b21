// Which elements of a source a copy reads: logical positions, in order, to runs of storage
// elements.
#pragma once

#include <c10/util/ArrayRef.h>
#include <c10/util/SmallVector.h>
#include <dormant/export.h>

#include <cstdint>
#include <optional>
#include <vector>

#include "record/geometry.h"

namespace dormant::tile {

/// Consecutive elements of a storage.
struct Run {
  int64_t begin;
  int64_t count;

  bool operator==(const Run& other) const = default;
};
using Runs = c10::ArrayRef<Run>;

/// Number of elements in all runs.
int64_t total(Runs runs);

class DORMANT_API Mapping {
 public:
  /// The mapping of a copy from `source` to a tensor that fills elements [destination.offset, +
  /// numel) of its storage. None where the two differ in sizes, the destination isn't dense, or
  /// walking it in memory order reads the source element by element.
  static std::optional<Mapping> between(const record::Geometry& destination,
                                        const record::Geometry& source);

  /// Appends the source elements of positions [begin, begin + count).
  void append(int64_t begin, int64_t count, std::vector<Run>& runs) const;

  /// The most runs that `count` positions in `ranges` ranges can take.
  int64_t most_runs(int64_t count, int64_t ranges) const;

 private:
  // Outermost first; dimensions that follow each other in memory are merged. The innermost has
  // stride one.
  c10::SmallVector<int64_t, 5> sizes_;
  c10::SmallVector<int64_t, 5> strides_;
  int64_t offset_ = 0;
};

}  // namespace dormant::tile
