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
#include "tile/walk.h"

namespace dormant::tile {

/// What elements go to, as far as it decides how they are made.
struct Medium {
  /// Memory of the process: tiles in order are made where they belong, not in a buffer.
  bool in_place;
  /// The rows of a rectangle are stored one by one: shorter ones cost as much.
  int64_t row_bytes;
  int64_t rectangle_bytes;  ///< that are best
};

class ProgramJob : public Job {
 public:
  int64_t numel() const override { return elements_.count; }
  int64_t itemsize() const override { return static_cast<int64_t>(program_->itemsize()); }
  TileSize tile_size() const override;
  int64_t tile(int64_t bytes) const override;
  size_t thread_bytes(int64_t elements) const override;
  bool run(int64_t begin, int64_t end, int64_t tile, system::Pages& pages,
           const std::function<bool(size_t)>& after_tile) override;
  std::optional<Program::Range> read_range(int64_t begin, int64_t end) const override;
  void append_reads(int64_t begin, int64_t end, std::vector<Program::Range>& ranges) const override;
  Program::Origins origins() const override { return program_->origins(); }

  bool by_rectangles() const { return transposed_.has_value(); }

 protected:
  /// Of the `elements` of the program; all of them where it is made by rectangles.
  ProgramJob(std::shared_ptr<const Program> program, Run elements, Medium medium);

  bool in_place() const { return medium_.in_place && !transposed_; }

 private:
  /// Where the first element is made, if `in_place`.
  virtual std::byte* memory() const { return nullptr; }
  /// Takes the bytes of elements from `element` on, the first being 0.
  virtual void store(int64_t element, const std::byte* data, size_t nbytes) const = 0;

  int64_t cut(int64_t begin, int64_t most, std::vector<Run>& runs) const;
  void store_rows(Runs runs, const std::byte* data) const;

  const std::shared_ptr<const Program> program_;
  const Run elements_;
  const std::optional<Transposed> transposed_;
  const Medium medium_;
};

}  // namespace dormant::tile
