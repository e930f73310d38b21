#include "tile/program_job.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "tile/reader.h"

namespace dormant::tile {
namespace {

// Tiles begin where vectors and blocks of normal_ do.
constexpr int64_t kAlignment = 64;
// Matrices that are taller are cut into rectangles with shorter rows.
constexpr int64_t kMostComfortable = 64 << 20;

}  // namespace

ProgramJob::ProgramJob(std::shared_ptr<const Program> program, Run elements, Medium medium)
    : program_(std::move(program)),
      elements_(elements),
      transposed_(walk_of(*program_).transposed),
      medium_(medium) {}

/// Rectangles have all rows of their matrix, so tall ones are large.
TileSize ProgramJob::tile_size() const {
  if (!transposed_) {
    return kTileInOrder;
  }
  const auto best = medium_.rectangle_bytes;
  const auto comfortable =
      std::clamp(transposed_->rows * medium_.row_bytes, best / 8, kMostComfortable);
  return {std::max(best, comfortable), comfortable};
}

/// Elements of rectangles are counted column by column.
int64_t ProgramJob::tile(int64_t bytes) const {
  const auto elements = bytes / itemsize();
  return transposed_ ? rectangle_width(*transposed_, elements) * transposed_->rows
                     : std::max(elements / kAlignment, int64_t{1}) * kAlignment;
}

size_t ProgramJob::thread_bytes(int64_t elements) const {
  const auto rows = transposed_ ? transposed_->rows : 1;
  return static_cast<size_t>(in_place() ? 0 : elements * itemsize()) +
         static_cast<size_t>(rows) * sizeof(Run) + program_->scratch_bytes(elements, rows);
}

bool ProgramJob::run(int64_t begin, int64_t end, int64_t tile, system::Pages& /*pages*/,
                     const std::function<bool(size_t)>& after_tile) {
  Reader reader(*program_, fast_seed);
  std::vector<Run> runs;
  std::vector<std::byte> buffer;
  if (!in_place()) {
    buffer.resize(static_cast<size_t>(std::min(tile, end - begin) * itemsize()));
  }
  while (begin < end) {
    const auto count = cut(begin, std::min(tile, end - begin), runs);
    const auto nbytes = count * itemsize();
    if (in_place()) {
      reader.read(runs, memory() + begin * itemsize());
    } else {
      if (!medium_.in_place) {
        // What nobody initialized must not show what this process had in its memory.
        std::fill_n(buffer.begin(), nbytes, std::byte{0});
      }
      reader.read(runs, buffer.data());
      store_rows(runs, buffer.data());
    }
    begin += count;
    if (!after_tile(static_cast<size_t>(nbytes))) {
      return false;
    }
  }
  return true;
}

std::optional<Program::Range> ProgramJob::read_range(int64_t begin, int64_t end) const {
  return transposed_ ? program_->read_range(0, program_->numel())
                     : program_->read_range(elements_.begin + begin, end - begin);
}

void ProgramJob::append_reads(int64_t begin, int64_t end,
                              std::vector<Program::Range>& ranges) const {
  std::vector<Run> runs;
  while (begin < end) {
    begin += cut(begin, end - begin, runs);
    program_->append_reads(runs, ranges);
  }
}

/// The elements of the program that a tile of up to `most` from `begin` on makes, and their number.
int64_t ProgramJob::cut(int64_t begin, int64_t most, std::vector<Run>& runs) const {
  if (!transposed_) {
    runs.assign(1, Run{elements_.begin + begin, most});
    return most;
  }
  const auto rows = transposed_->rows;
  return cut_rectangle(*transposed_, begin / rows, most / rows, runs) * rows;
}

void ProgramJob::store_rows(Runs runs, const std::byte* data) const {
  for (size_t i = 0; i < runs.size();) {
    const auto begin = runs[i].begin;
    auto end = begin;
    // Rows of all columns follow each other.
    for (; i < runs.size() && runs[i].begin == end; ++i) {
      end += runs[i].count;
    }
    const auto nbytes = static_cast<size_t>((end - begin) * itemsize());
    store(begin - elements_.begin, data, nbytes);
    data += nbytes;
  }
}

}  // namespace dormant::tile
