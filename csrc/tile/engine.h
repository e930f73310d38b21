// The tile engine: gives lazy storages their memory and values, in parallel, in one pass.
//
// Every storage whose history is a program is cut into pieces, and each piece into tiles that stay
// in cache while all writes of the history are applied to them, straight in the final memory.
// Histories that are no programs are replayed whole on the calling thread (record/replay.h).
#pragma once

#include <c10/core/Storage.h>
#include <dormant/export.h>

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <unordered_map>
#include <vector>

#include "record/replay.h"
#include "tile/sole_view.h"

namespace dormant::tile {

enum class Way : uint8_t {
  tiles,   ///< its program was run
  mapped,  ///< it is bytes of a file, shown in place
  replay,  ///< its history was replayed whole
};

/// Whether a storage that is nothing but bytes of a file may show them in place, privately, rather
/// than copy them.
enum class Mmap : uint8_t {
  never,
  automatic,  ///< where that is as safe as reading: not on a network filesystem
  always,     ///< wherever the system can; bytes misaligned for their dtype are copied all the same
};

struct Materialized {
  const c10::StorageImpl* storage;
  size_t nbytes;
  size_t operators;
  double seconds;  ///< on one thread
  Way way;
  size_t read_bytes;         ///< of elements made from a source's bytes
  size_t initialised_bytes;  ///< of elements drawn or filled, overwritten ones included
  std::vector<std::string> sources;
};

/// Memory that a storage's bytes go to, in place of new memory; the storage stays lazy.
struct Destination {
  void* memory = nullptr;
  bool begun = false;  ///< whether any byte was written
};

/// The seed of Values::fast: the first hexadecimal digits of pi's fraction. The values of a tensor
/// also depend on where PyTorch's generator stood when it was recorded.
constexpr uint64_t kFastSeed = 0x243f6a8885a308d3;

struct Options {
  record::Values values = record::Values::exact;
  uint64_t seed = kFastSeed;  ///< of Values::fast
  /// Most bytes that tiles and everything else besides the final tensors may take.
  std::optional<size_t> memory_budget;
  Mmap mmap = Mmap::automatic;
  /// Views that nothing else shares a storage with: the rest of their storages isn't made.
  SoleViews sole_views;
  /// Only of storages that have a program; the others get memory of their own.
  std::unordered_map<const c10::StorageImpl*, Destination>* destinations = nullptr;
  /// Called on the calling thread with (done, total) bytes, at least every tenth of a second while
  /// tiles are run; may throw to stop.
  std::function<void(size_t, size_t)> on_step;
};

/// Materialises the lazy ones among `storages`, each once. A storage gets its memory when all of it
/// is done, so whatever stops the work leaves the others lazy as they were. ValueError where
/// `memory_budget` is too small to work in.
DORMANT_API std::vector<Materialized> materialize(c10::ArrayRef<c10::Storage> storages,
                                                  const Options& options);

/// The smallest `memory_budget` with which they can be materialised.
DORMANT_API size_t smallest_budget(c10::ArrayRef<c10::Storage> storages, const Options& options);

}  // namespace dormant::tile
