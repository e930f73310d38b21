#include "tile/mapping.h"

#include <algorithm>

namespace dormant::tile {
namespace {

// Reading so many elements that nobody wants costs no more than another run.
constexpr int64_t kSmallGap = 64;

/// Sizes of the inner dimensions' blocks: how many places one step in each dimension is.
std::vector<int64_t> blocks_of(c10::IntArrayRef sizes) {
  std::vector<int64_t> blocks(sizes.size(), 1);
  for (auto i = sizes.size() - 1; i-- > 0;) {
    blocks[i] = blocks[i + 1] * sizes[i + 1];
  }
  return blocks;
}

/// The distance between the begins of runs that are equally long and equally far apart; 0 where
/// they are not.
int64_t distance(Runs runs) {
  const auto step = runs[1].begin - runs[0].begin;
  for (size_t i = 1; i < runs.size(); ++i) {
    if (runs[i].count != runs[0].count || runs[i].begin - runs[i - 1].begin != step) {
      return 0;
    }
  }
  return step;
}

}  // namespace

int64_t total(Runs runs) {
  int64_t sum = 0;
  for (const auto& run : runs) {
    sum += run.count;
  }
  return sum;
}

std::optional<Mapping> Mapping::between(const record::Geometry& destination,
                                        const record::Geometry& source) {
  const auto missing =
      static_cast<int64_t>(destination.sizes.size()) - static_cast<int64_t>(source.sizes.size());
  if (missing < 0) {
    return std::nullopt;
  }
  std::vector<int64_t> strides(destination.sizes.size(), 0);
  for (size_t i = 0; i < source.sizes.size(); ++i) {
    const auto to = i + static_cast<size_t>(missing);
    if (source.sizes[i] == destination.sizes[to]) {
      strides[to] = source.strides[i];
    } else if (source.sizes[i] != 1) {
      return std::nullopt;
    }
  }
  Mapping mapping;
  mapping.layout_.offset = source.offset;
  for (const auto i : memory_order(destination)) {
    mapping.layout_.append(destination.sizes[i], strides[i]);
  }
  return mapping;
}

int64_t Mapping::most_runs(int64_t count, int64_t ranges) const {
  if (!in_rows()) {
    return count;
  }
  return sizes().size() == 1 ? ranges : std::min(count, count / sizes().back() + 2 * ranges);
}

void Mapping::append(int64_t begin, int64_t count, std::vector<Run>& runs) const {
  const auto inner = in_rows() ? sizes().back() : 1;
  while (count > 0) {
    const auto element = layout_.element_at(begin);
    const auto length = std::min(count, inner - begin % inner);
    if (!runs.empty() && runs.back().begin + runs.back().count == element) {
      runs.back().count += length;
    } else {
      runs.push_back({element, length});
    }
    begin += length;
    count -= length;
  }
}

void Mapping::append(Runs places, std::vector<Box>& boxes) const {
  const auto blocks = blocks_of(sizes());
  int64_t out = 0;
  const auto append_run = [&](const Run& run) {
    for (auto begin = run.begin, end = run.begin + run.count; begin < end;) {
      // The outermost dimension of which whole blocks begin here.
      size_t outer = 0;
      while (begin % blocks[outer] != 0 || end - begin < blocks[outer]) {
        ++outer;
      }
      Box box{layout_.element_at(begin), out, {}};
      const auto index = begin / blocks[outer] % sizes()[outer];
      auto size = std::min((end - begin) / blocks[outer], sizes()[outer] - index);
      const auto count = size * blocks[outer];
      for (auto i = outer; i < sizes().size(); size = ++i < sizes().size() ? sizes()[i] : 0) {
        box.dimensions.push_back({size, strides()[i], blocks[i]});
      }
      boxes.push_back(std::move(box));
      begin += count;
      out += count;
    }
  };
  if (places.size() > 1) {
    // Rows of a rectangle of places: one box, or a few, instead of some for each row.
    const auto step = distance(places);
    const auto rows = static_cast<int64_t>(places.size());
    for (size_t i = 0; step > 0 && i < sizes().size(); ++i) {
      const auto& first = places.front();
      const bool inside =
          first.begin % blocks[i] + first.count <= blocks[i] &&
          first.begin / blocks[i] % sizes()[i] + step / blocks[i] * (rows - 1) < sizes()[i];
      if (step % blocks[i] == 0 && inside) {
        const auto begin = boxes.size();
        append_run(first);
        for (auto at = begin; at < boxes.size(); ++at) {
          boxes[at].dimensions.insert(boxes[at].dimensions.begin(),
                                      {rows, step / blocks[i] * strides()[i], first.count});
        }
        return;
      }
    }
  }
  for (const auto& run : places) {
    append_run(run);
  }
}

BoxReading reading_of(const Box& box) {
  BoxReading reading;
  reading.strides.resize(box.dimensions.size(), 0);
  c10::SmallVector<size_t, 6> order;  // innermost in the source first
  for (size_t i = 0; i < box.dimensions.size(); ++i) {
    if (box.dimensions[i].size != 1 && box.dimensions[i].stride != 0) {
      order.push_back(i);
    }
  }
  std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) {
    return box.dimensions[a].stride < box.dimensions[b].stride;
  });
  // Inner dimensions that are close enough together to be read as one run.
  int64_t length = 1;
  int64_t wanted = 1;
  size_t inner = 0;
  for (; inner < order.size(); ++inner) {
    const auto& dimension = box.dimensions[order[inner]];
    const auto longer = dimension.stride * (dimension.size - 1) + length;
    const bool close = dimension.stride - length <= kSmallGap &&
                       longer <= kMostReadPerElement * wanted * dimension.size;
    if (dimension.stride != length && !close) {
      break;
    }
    reading.strides[order[inner]] = dimension.stride;
    length = longer;
    wanted *= dimension.size;
  }
  int64_t runs = 1;
  for (auto i = inner; i < order.size(); ++i) {
    reading.strides[order[i]] = runs * length;
    runs *= box.dimensions[order[i]].size;
  }
  reading.runs.reserve(static_cast<size_t>(runs));
  for (int64_t i = 0; i < runs; ++i) {
    auto element = box.element;
    auto rest = i;
    for (auto k = inner; k < order.size(); ++k) {
      const auto& dimension = box.dimensions[order[k]];
      element += rest % dimension.size * dimension.stride;
      rest /= dimension.size;
    }
    reading.runs.push_back({element, length});
  }
  return reading;
}

}  // namespace dormant::tile
