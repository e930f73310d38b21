#include "tile/mapping.h"

#include <algorithm>

namespace dormant::tile {

int64_t total(Runs runs) {
  int64_t sum = 0;
  for (const auto& run : runs) {
    sum += run.count;
  }
  return sum;
}

std::optional<Mapping> Mapping::between(const record::Geometry& destination,
                                        const record::Geometry& source) {
  if (destination.sizes != source.sizes || !destination.dense()) {
    return std::nullopt;
  }
  // Memory order of the destination: by descending stride.
  c10::SmallVector<size_t, 5> order;
  for (size_t i = 0; i < source.sizes.size(); ++i) {
    if (source.sizes[i] != 1) {
      order.push_back(i);
    }
  }
  std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) {
    return destination.strides[a] > destination.strides[b];
  });
  Mapping mapping;
  mapping.offset_ = source.offset;
  for (const auto i : order) {
    const auto size = source.sizes[i];
    const auto stride = source.strides[i];
    if (!mapping.sizes_.empty() && mapping.strides_.back() == stride * size) {
      mapping.sizes_.back() *= size;
      mapping.strides_.back() = stride;
    } else {
      mapping.sizes_.push_back(size);
      mapping.strides_.push_back(stride);
    }
  }
  if (mapping.sizes_.empty()) {
    mapping.sizes_.push_back(1);
    mapping.strides_.push_back(1);
  }
  if (mapping.strides_.back() != 1) {
    return std::nullopt;
  }
  return mapping;
}

int64_t Mapping::most_runs(int64_t count, int64_t ranges) const {
  return sizes_.size() == 1 ? ranges : std::min(count, count / sizes_.back() + 2 * ranges);
}

void Mapping::append(int64_t begin, int64_t count, std::vector<Run>& runs) const {
  const auto inner = sizes_.back();
  while (count > 0) {
    // Row that holds `begin`, and the place in it.
    int64_t row = begin / inner;
    const int64_t column = begin % inner;
    int64_t element = offset_ + column;
    for (size_t i = sizes_.size() - 1; i-- > 0;) {
      element += (row % sizes_[i]) * strides_[i];
      row /= sizes_[i];
    }
    const auto length = std::min(count, inner - column);
    if (!runs.empty() && runs.back().begin + runs.back().count == element) {
      runs.back().count += length;
    } else {
      runs.push_back({element, length});
    }
    begin += length;
    count -= length;
  }
}

}  // namespace dormant::tile
