#include "tile/region.h"

#include <algorithm>

namespace dormant::tile {

std::optional<Region> Region::of(const record::Geometry& geometry) {
  Region region;
  auto& [sizes, strides, begin] = region.layout_;
  begin = region.end_ = geometry.offset;
  region.numel_ = geometry.numel();
  if (region.numel_ == 0) {
    return region;
  }
  for (const auto i : memory_order(geometry)) {
    region.layout_.append(geometry.sizes[i], geometry.strides[i]);
  }
  int64_t reach = 1;  // elements from the first to the last one of the dimensions seen
  for (size_t i = sizes.size(); i-- > 0;) {
    if (strides[i] < reach) {
      return std::nullopt;
    }
    reach += (sizes[i] - 1) * strides[i];
  }
  region.end_ = begin + reach;
  return region;
}

int64_t Region::places_before(int64_t element) const {
  const auto& [sizes, strides, begin] = layout_;
  auto rest = element - begin;
  if (rest <= 0) {
    return 0;
  }
  int64_t place = 0;
  auto block = numel_;  // places of one index of the dimension
  for (size_t i = 0; i < sizes.size(); ++i) {
    block /= sizes[i];
    const auto index = rest / strides[i];
    if (index >= sizes[i]) {
      return place + sizes[i] * block;
    }
    place += index * block;
    rest -= index * strides[i];
  }
  return rest > 0 ? place + 1 : place;
}

int64_t Region::row_distance(int64_t columns) const {
  const auto& [sizes, strides, begin] = layout_;
  if (dense()) {
    return columns;
  }
  const bool rows_of_that_length =
      sizes.size() == 2 && sizes.back() == columns && strides.back() == 1;
  return rows_of_that_length ? strides.front() : 0;
}

void Region::intersect(const Run& run, std::vector<Segment>& segments) const {
  if (numel_ == 0) {
    return;
  }
  const auto& [sizes, strides, begin] = layout_;
  const auto last = places_before(run.begin + run.count);
  for (auto place = places_before(run.begin); place < last;) {
    const auto row = std::min(last - place, sizes.back() - place % sizes.back());
    const auto element = layout_.element_at(place);
    if (strides.back() == 1) {
      segments.push_back({place, element, row});
    } else {
      for (int64_t i = 0; i < row; ++i) {
        segments.push_back({place + i, element + i * strides.back(), 1});
      }
    }
    place += row;
  }
}

}  // namespace dormant::tile
