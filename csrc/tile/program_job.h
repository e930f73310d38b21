// A job that makes the elements of a program, in order or by rectangles (walk.h), for memory or for
// a file.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>

#include "tile/job.h"
#include "tile/mapping.h"
#include "tile/program.h"
#include "tile/tiling.h"

namespace dormant::tile {

/// What elements go to, as far as it decides how they are made.
struct Medium {
  /// Memory of the process: tiles in order are made where they belong, not in a buffer.
  bool in_place;
  RectangleSize rectangle;
};

class ProgramJob : public Job {
 public:
  int64_t numel() const override { return elements_.count; }
  int64_t itemsize() const override { return static_cast<int64_t>(program_->itemsize()); }
  TileSize tile_size() const override { return tiling_.tile_size(); }
  int64_t tile(int64_t bytes) const override { return tiling_.tile(bytes); }
  size_t thread_bytes(int64_t elements) const override;
  bool run(int64_t begin, int64_t end, int64_t tile, system::Pages& pages,
           const std::function<bool(size_t)>& after_tile) override;
  std::optional<Program::Range> read_range(int64_t begin, int64_t end) const override {
    return tiling_.read_range(begin, end);
  }
  void append_reads(int64_t begin, int64_t end,
                    std::vector<Program::Range>& ranges) const override {
    tiling_.append_reads(begin, end, ranges);
  }
  Program::Origins origins() const override { return program_->origins(); }

  bool by_rectangles() const { return tiling_.by_rectangles(); }

 protected:
  /// Of the `elements` of the program; all of them where it is made by rectangles.
  ProgramJob(std::shared_ptr<const Program> program, Run elements, Medium medium);

  bool in_place() const { return to_memory_ && !by_rectangles(); }

 private:
  /// Where the first element is made, if `in_place`.
  virtual std::byte* memory() const { return nullptr; }
  /// Takes the bytes of elements from `element` on, the first being 0.
  virtual void store(int64_t element, const std::byte* data, size_t nbytes) const = 0;

  const std::shared_ptr<const Program> program_;
  const Run elements_;
  const Tiling tiling_;
  const bool to_memory_;
};

}  // namespace dormant::tile
