// What the tile engine works on: elements that are made once, in pieces, for the memory of one or
// more storages.
#pragma once

#include <c10/core/Storage.h>

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <vector>

#include "record/lazy_storage.h"
#include "system/pages.h"
#include "tile/mapping.h"
#include "tile/program.h"
#include "tile/sole_view.h"
#include "tile/walk.h"

namespace dormant::tile {

/// A lazy storage and the memory that it will get.
struct Target {
  c10::Storage storage;
  record::History history;  ///< what the work was planned from
  size_t result = 0;        ///< index of its Materialized
  c10::DataPtr memory;
  /// Where its bytes go instead, if anywhere: memory that somebody else keeps.
  void* destination = nullptr;

  /// The part of the storage that is made; all of it where there is none.
  std::optional<Part> part;

  std::byte* data() const {
    return static_cast<std::byte*>(destination != nullptr ? destination : memory.get());
  }
};

class Job {
 public:
  virtual ~Job() = default;

  /// Elements that are made, and bytes of each while it is.
  virtual int64_t numel() const = 0;
  virtual int64_t itemsize() const = 0;
  /// Pieces and tiles begin at multiples of so many elements.
  virtual int64_t unit() const = 0;

  /// Bytes that a thread needs for a tile of so many elements.
  virtual size_t thread_bytes(int64_t elements) const = 0;
  /// Bytes besides the final tensors that the job needs from its first piece to its last.
  virtual size_t shared_bytes() const = 0;

  /// Called once, before the first piece.
  virtual void allocate() = 0;
  /// Makes elements [begin, end), a tile of `tile` at a time; `after_tile(bytes)` says whether to
  /// go on. False if it did not.
  virtual bool run(int64_t begin, int64_t end, int64_t tile, system::Pages& pages,
                   const std::function<bool(size_t)>& after_tile) = 0;
  /// Called once, after the last piece.
  virtual void finish() = 0;

  /// What elements [begin, end) are read from, if it is one range of one source.
  virtual std::optional<Program::Range> read_range(int64_t begin, int64_t end) const = 0;

  virtual Program::Origins origins() const = 0;

  std::optional<uint64_t> fast_seed;  ///< for Reader
  std::vector<Target> targets;
  std::once_flag allocated;
  std::atomic<int64_t> pieces_left{0};
  std::atomic<int64_t> nanoseconds{0};
  std::atomic<bool> begun{false};
  std::atomic<bool> finished{false};
};

/// Memory for a target that has none yet.
void allocate_target(Target& target);

/// A storage whose history is `program`.
std::unique_ptr<Job> make_job(Target target, std::shared_ptr<const Program> program);

/// The same, where the program is best run by rectangles.
std::unique_ptr<Job> make_turned_job(Target target, std::shared_ptr<const Program> program,
                                     Transposed transposed);

/// Storages that one quantise node writes, some or all of them. Null where the tensor that it reads
/// has no program.
std::unique_ptr<Job> make_quantize_job(std::vector<Target> targets);

}  // namespace dormant::tile
