#include "tile/tiling.h"

#include <algorithm>

namespace dormant::tile {
namespace {

// Matrices that are taller are cut into rectangles with shorter rows.
constexpr int64_t kMostComfortable = 64 << 20;

}  // namespace

Tiling::Tiling(const Program& program, Run elements, RectangleSize size, int64_t unit,
               bool whole_units)
    : program_(program),
      elements_(elements),
      transposed_(walk_of(program).transposed),
      size_(size),
      unit_(unit),
      row_unit_(whole_units ? unit : 0) {}

bool Tiling::fits(const Program& program, int64_t unit) {
  const auto transposed = walk_of(program).transposed;
  return !transposed || (unit < transposed->columns && transposed->columns % unit == 0);
}

/// Rectangles have all rows of their matrix, so tall ones are large.
TileSize Tiling::tile_size() const {
  if (!transposed_) {
    return kTileInOrder;
  }
  const auto comfortable =
      std::clamp(transposed_->rows * size_.row_bytes, size_.best / 8, kMostComfortable);
  return {std::max(size_.best, comfortable), comfortable};
}

int64_t Tiling::tile(int64_t bytes) const {
  const auto elements = bytes / static_cast<int64_t>(program_.itemsize());
  return transposed_ ? rectangle_width(*transposed_, elements, row_unit_) * transposed_->rows
                     : std::max(elements / unit_, int64_t{1}) * unit_;
}

int64_t Tiling::cut(int64_t begin, int64_t most, std::vector<Run>& runs) const {
  if (!transposed_) {
    runs.assign(1, Run{elements_.begin + begin, most});
    return most;
  }
  const auto rows = transposed_->rows;
  return cut_rectangle(*transposed_, begin / rows, most / rows, runs) * rows;
}

std::optional<Program::Range> Tiling::read_range(int64_t begin, int64_t end) const {
  return transposed_ ? program_.read_range(0, program_.numel())
                     : program_.read_range(elements_.begin + begin, end - begin);
}

void Tiling::append_reads(int64_t begin, int64_t end, std::vector<Program::Range>& ranges) const {
  std::vector<Run> runs;
  while (begin < end) {
    begin += cut(begin, end - begin, runs);
    program_.append_reads(runs, ranges);
  }
}

}  // namespace dormant::tile
