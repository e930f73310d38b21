// What the tile engine works on: elements that are made once, in pieces, on all threads (pass.h).
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
#include "tile/program.h"
#include "tile/sole_view.h"

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

/// Bytes of a tile: how many are best, and below how many fewer threads are better than smaller
/// tiles.
struct TileSize {
  int64_t best;
  int64_t comfortable;
};

/// Tiles are never asked to be smaller.
constexpr int64_t kSmallestTileBytes = 4 * 1024;
/// A tile in order, and what it is made from, stay in a core's cache; a write of one to a file
/// costs little beside it.
constexpr TileSize kTileInOrder{128 * 1024, kSmallestTileBytes};

/// One thread makes it and destroys it; any number of threads may call `begin` and `run` at a time.
class Job {
 public:
  Job() = default;
  virtual ~Job() = default;
  Job(const Job&) = delete;
  Job& operator=(const Job&) = delete;

  /// Elements that are made, and bytes of each while it is.
  virtual int64_t numel() const = 0;
  virtual int64_t itemsize() const = 0;

  virtual TileSize tile_size() const { return kTileInOrder; }
  /// Elements of a tile of about so many bytes, at least one. Pieces begin at multiples of it.
  virtual int64_t tile(int64_t bytes) const = 0;

  /// Bytes that a thread needs for a tile of so many elements.
  virtual size_t thread_bytes(int64_t elements) const = 0;
  /// Bytes besides the final tensors that the job needs from its first piece to its last.
  virtual size_t shared_bytes() const { return 0; }

  /// Allocates, once: a thread that comes meanwhile waits. Where memory is exhausted, whoever calls
  /// next tries again.
  void begin();

  /// Makes elements [begin, end), a tile of `tile` at a time; `after_tile(bytes)` says whether to
  /// go on. False if it did not.
  virtual bool run(int64_t begin, int64_t end, int64_t tile, system::Pages& pages,
                   const std::function<bool(size_t)>& after_tile) = 0;
  /// Called once, after the last piece.
  virtual void finish() {}

  /// What elements [begin, end) are read from, if it is one range of one source.
  virtual std::optional<Program::Range> read_range(int64_t /*begin*/, int64_t /*end*/) const {
    return std::nullopt;
  }

  /// Appends which bytes of sources elements [begin, end) are read from (Program::append_reads).
  virtual void append_reads(int64_t /*begin*/, int64_t /*end*/,
                            std::vector<Program::Range>& /*ranges*/) const {}

  virtual Program::Origins origins() const { return {}; }

  std::optional<uint64_t> fast_seed;  ///< for Reader
  std::vector<Target> targets;
  std::atomic<int64_t> pieces_left{0};
  std::atomic<int64_t> nanoseconds{0};
  std::atomic<bool> begun{false};
  std::atomic<bool> finished{false};

 private:
  /// Also after a call that threw.
  virtual void allocate() {}

  std::mutex allocating_;
};

using Jobs = std::vector<std::unique_ptr<Job>>;

/// A storage whose history is `program`.
std::unique_ptr<Job> make_storage_job(Target target, std::shared_ptr<const Program> program);

/// Takes packed elements as they are made, `nbytes` from byte `begin` of all of them; any number of
/// threads.
using StorePacked = std::function<void(int64_t begin, const std::byte* data, int64_t nbytes)>;

/// Storages that the quantize node `node` writes, some or all of them. Its packed elements go to
/// `store`, too, if there is one, and are kept only where they are wanted. Null where the tensor
/// that it reads has no program.
std::unique_ptr<Job> make_quantize_job(record::NodePtr node, std::vector<Target> targets,
                                       StorePacked store = {});

}  // namespace dormant::tile
