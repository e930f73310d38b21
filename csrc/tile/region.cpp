#include "tile/region.h"

#include <algorithm>

namespace dormant::tile {

std::optional<Region> Region::of(const record::Geometry& geometry) {
  Region region;
  region.begin_ = region.end_ = geometry.offset;
  region.numel_ = geometry.numel();
  if (region.numel_ == 0) {
    return region;
  }
  for (const auto i : memory_order(geometry)) {
    const auto size = geometry.sizes[i];
    const auto stride = geometry.strides[i];
    if (!region.sizes_.empty() && region.strides_.back() == stride * size) {
      region.sizes_.back() *= size;
      region.strides_.back() = stride;
    } else {
      region.sizes_.push_back(size);
      region.strides_.push_back(stride);
    }
  }
  if (region.sizes_.empty()) {
    region.sizes_.push_back(1);
    region.strides_.push_back(1);
  }
  int64_t reach = 1;  // elements from the first to the last one of the dimensions seen
  for (size_t i = region.sizes_.size(); i-- > 0;) {
    if (region.strides_[i] < reach) {
      return std::nullopt;
    }
    reach += (region.sizes_[i] - 1) * region.strides_[i];
  }
  region.end_ = region.begin_ + reach;
  return region;
}

int64_t Region::places_before(int64_t element) const {
  auto rest = element - begin_;
  if (rest <= 0) {
    return 0;
  }
  int64_t place = 0;
  auto block = numel_;  // places of one index of the dimension
  for (size_t i = 0; i < sizes_.size(); ++i) {
    block /= sizes_[i];
    const auto index = rest / strides_[i];
    if (index >= sizes_[i]) {
      return place + sizes_[i] * block;
    }
    place += index * block;
    rest -= index * strides_[i];
  }
  return rest > 0 ? place + 1 : place;
}

int64_t Region::element_at(int64_t place) const {
  auto element = begin_;
  for (size_t i = sizes_.size(); i-- > 0;) {
    element += place % sizes_[i] * strides_[i];
    place /= sizes_[i];
  }
  return element;
}

int64_t Region::row_distance(int64_t columns) const {
  if (dense()) {
    return columns;
  }
  const bool rows_of_that_length =
      sizes_.size() == 2 && sizes_.back() == columns && strides_.back() == 1;
  return rows_of_that_length ? strides_.front() : 0;
}

void Region::intersect(const Run& run, std::vector<Segment>& segments) const {
  if (numel_ == 0) {
    return;
  }
  const auto last = places_before(run.begin + run.count);
  for (auto place = places_before(run.begin); place < last;) {
    const auto row = std::min(last - place, sizes_.back() - place % sizes_.back());
    const auto element = element_at(place);
    if (strides_.back() == 1) {
      segments.push_back({place, element, row});
    } else {
      for (int64_t i = 0; i < row; ++i) {
        segments.push_back({place + i, element + i * strides_.back(), 1});
      }
    }
    place += row;
  }
}

}  // namespace dormant::tile
