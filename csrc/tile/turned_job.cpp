// A job whose tiles are rectangles (walk.h).
#include <algorithm>
#include <cstring>
#include <utility>
#include <vector>

#include "tile/job.h"
#include "tile/reader.h"

namespace dormant::tile {
namespace {

// Rectangles are so many times larger than other tiles: their rows have to be a cache line or more.
constexpr int64_t kLarger = 16;

class TurnedJob final : public Job {
 public:
  TurnedJob(Target target, std::shared_ptr<const Program> program, Transposed transposed)
      : program_(std::move(program)), transposed_(transposed) {
    targets.push_back(std::move(target));
  }

  // Elements are counted column by column.
  int64_t numel() const override { return program_->numel(); }
  int64_t itemsize() const override { return static_cast<int64_t>(program_->itemsize()); }
  int64_t unit() const override { return transposed_.rows; }

  size_t thread_bytes(int64_t elements) const override {
    const auto rectangle = width(elements) * transposed_.rows;
    return static_cast<size_t>(rectangle * itemsize()) +
           static_cast<size_t>(transposed_.rows) * sizeof(Run) +
           program_->scratch_bytes(rectangle, transposed_.rows);
  }
  size_t shared_bytes() const override { return 0; }

  void allocate() override { allocate_target(targets.front()); }

  bool run(int64_t begin, int64_t end, int64_t tile, system::Pages& /*pages*/,
           const std::function<bool(size_t)>& after_tile) override {
    Reader reader(*program_, fast_seed);
    const auto widest = width(tile);
    std::vector<std::byte> rectangle(static_cast<size_t>(widest * transposed_.rows * itemsize()));
    std::vector<Run> runs;
    const auto last = end / transposed_.rows;
    for (auto column = begin / transposed_.rows; column < last;) {
      const auto count = cut_rectangle(transposed_, column, std::min(widest, last - column), runs);
      reader.read(runs, rectangle.data());
      store(runs, rectangle.data());
      column += count;
      if (!after_tile(static_cast<size_t>(count * transposed_.rows * itemsize()))) {
        return false;
      }
    }
    return true;
  }

  void finish() override {}

  std::optional<Program::Range> read_range(int64_t /*begin*/, int64_t /*end*/) const override {
    return program_->read_range(0, program_->numel());
  }

  Program::Origins origins() const override { return program_->origins(); }

 private:
  int64_t width(int64_t tile) const { return rectangle_width(transposed_, tile * kLarger); }

  void store(Runs runs, const std::byte* rectangle) const {
    for (const auto& run : runs) {
      const auto nbytes = static_cast<size_t>(run.count * itemsize());
      std::memcpy(targets.front().data() + run.begin * itemsize(), rectangle, nbytes);
      rectangle += nbytes;
    }
  }

  const std::shared_ptr<const Program> program_;
  const Transposed transposed_;
};

}  // namespace

std::unique_ptr<Job> make_turned_job(Target target, std::shared_ptr<const Program> program,
                                     Transposed transposed) {
  return std::make_unique<TurnedJob>(std::move(target), std::move(program), transposed);
}

}  // namespace dormant::tile
