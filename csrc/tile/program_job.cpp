#include "tile/program_job.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "tile/reader.h"

namespace dormant::tile {
namespace {

// Tiles begin where vectors and blocks of normal_ do.
constexpr int64_t kAlignment = 64;

}  // namespace

ProgramJob::ProgramJob(std::shared_ptr<const Program> program, Run elements, Medium medium)
    : program_(std::move(program)),
      elements_(elements),
      tiling_(*program_, elements, medium.rectangle, kAlignment, /*whole_units=*/false),
      to_memory_(medium.in_place) {}

size_t ProgramJob::thread_bytes(int64_t elements) const {
  const auto rows = tiling_.rows();
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
    const auto count = tiling_.cut(begin, std::min(tile, end - begin), runs);
    const auto nbytes = count * itemsize();
    if (in_place()) {
      reader.read(runs, memory() + begin * itemsize());
    } else {
      if (!to_memory_) {
        // What nobody initialized must not show what this process had in its memory.
        std::fill_n(buffer.begin(), nbytes, std::byte{0});
      }
      reader.read(runs, buffer.data());
      for_each_row(runs, [&](int64_t first, int64_t many, int64_t element) {
        store(first - elements_.begin, buffer.data() + element * itemsize(),
              static_cast<size_t>(many * itemsize()));
      });
    }
    begin += count;
    if (!after_tile(static_cast<size_t>(nbytes))) {
      return false;
    }
  }
  return true;
}

}  // namespace dormant::tile
