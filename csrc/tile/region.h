// Which elements of a storage a write covers, numbered in memory order.
#pragma once

#include <c10/util/SmallVector.h>
#include <cstdint>
#include <optional>
#include <vector>

#include "record/geometry.h"
#include "tile/layout.h"
#include "tile/mapping.h"

namespace dormant::tile {

/// The elements of a tensor over a storage. Its places 0, 1, ... numel() - 1 are its elements in
/// the order in which they lie in memory.
class Region {
 public:
  /// None where two places might share memory.
  static std::optional<Region> of(const record::Geometry& geometry);

  int64_t begin() const { return layout_.offset; }  ///< the first element
  int64_t end() const { return end_; }              ///< one past the last element
  int64_t numel() const { return numel_; }
  /// Whether nothing between the first and the last element is left out.
  bool dense() const { return end_ - begin() == numel_; }

  /// How far apart in the storage rows are that are `columns` places long; 0 where it differs.
  int64_t row_distance(int64_t columns) const;

  /// Places [place, place + count) are elements [element, element + count) of the storage.
  struct Segment {
    int64_t place;
    int64_t element;
    int64_t count;

    bool operator==(const Segment& other) const = default;
  };

  /// Appends the segments of the region that lie in `run`, in order.
  void intersect(const Run& run, std::vector<Segment>& segments) const;

 private:
  int64_t places_before(int64_t element) const;

  Layout layout_;  ///< in memory order
  int64_t end_ = 0;
  int64_t numel_ = 0;
};

}  // namespace dormant::tile
