#include "tile/layout.h"

#include <algorithm>

namespace dormant::tile {

void Layout::append(int64_t size, int64_t stride) {
  if (sizes.back() == 1) {
    sizes.back() = size;
  } else if (strides.back() == stride * size) {
    sizes.back() *= size;
  } else {
    sizes.push_back(size);
    strides.emplace_back();
  }
  strides.back() = stride;
}

int64_t Layout::element_at(int64_t place) const {
  auto element = offset;
  for (size_t i = sizes.size(); i-- > 0;) {
    element += place % sizes[i] * strides[i];
    place /= sizes[i];
  }
  return element;
}

c10::SmallVector<size_t, 5> memory_order(const record::Geometry& geometry) {
  c10::SmallVector<size_t, 5> order;
  for (size_t i = 0; i < geometry.sizes.size(); ++i) {
    if (geometry.sizes[i] != 1) {
      order.push_back(i);
    }
  }
  std::stable_sort(order.begin(), order.end(),
                   [&](size_t a, size_t b) { return geometry.strides[a] > geometry.strides[b]; });
  return order;
}

bool is_contiguous(const record::Geometry& geometry) {
  Layout layout;
  for (size_t i = 0; i < geometry.sizes.size(); ++i) {
    if (geometry.sizes[i] != 1) {
      layout.append(geometry.sizes[i], geometry.strides[i]);
    }
  }
  return layout.sizes.size() == 1 && layout.strides[0] == 1;
}

}  // namespace dormant::tile
