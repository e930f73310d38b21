// The tile engine: gives lazy storages their memory and values, in parallel, in one pass.
//
// Every storage whose history is a program is cut into pieces, and each piece into tiles that stay
// in cache while all writes of the history are applied to them, straight in the final memory.
// Histories that are no programs are replayed whole on the calling thread (record/replay.h).
#pragma once

#include <c10/core/Storage.h>
#include <dormant/dormant.h>
#include <cstdint>
#include <string>
#include <unordered_map>
#include <vector>

#include "record/replay.h"
#include "system/export.h"
#include "tile/sole_view.h"

namespace dormant::tile {

enum class Way : uint8_t {
  tiles,   ///< its program was run
  mapped,  ///< it is bytes of a file, shown in place
  replay,  ///< its history was replayed whole
};

/// `seconds` are those of one thread.
struct Materialized : record::Materialized {
  Way way;
  size_t read_bytes;         ///< of elements made from a source's bytes
  size_t initialized_bytes;  ///< of elements drawn or filled, overwritten ones included
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

/// `values`, `memory_budget` and `mmap` are those that the public interface describes. `on_step` is
/// called on the calling thread with (done, total) bytes, at least every tenth of a second while
/// tiles are run; may throw to stop.
struct Options : MaterializeOptions {
  uint64_t seed = kFastSeed;  ///< of Values::fast
  /// Views that nothing else shares a storage with: the rest of their storages isn't made.
  SoleViews sole_views = {};
  /// Only of storages that have a program; the others get memory of their own.
  std::unordered_map<const c10::StorageImpl*, Destination>* destinations = nullptr;
};

/// Materializes the lazy ones among `storages`, each once. A storage gets its memory soon
/// after all of it is done, so whatever stops the work leaves the others lazy as they were.
/// ValueError where `memory_budget` is too small to work in.
std::vector<Materialized> materialize(c10::ArrayRef<c10::Storage> storages, const Options& options);

/// The same of tensors, of which each storage may have several. The keys of all of them, real ones
/// too, agree with their storages afterwards, also where it throws. Of a view that alone refers to
/// its storage only that part is made (sole_view.h).
DORMANT_BINDINGS_API std::vector<Materialized> materialize_tensors(
    c10::ArrayRef<at::Tensor> tensors, Options options);

/// What materialize_tensors() of a lazy tensor would return, without making anything: seconds are
/// 0, and nothing is mapped. Empty for a real one.
std::vector<Materialized> planned(const at::Tensor& tensor, const MaterializeOptions& options);

/// The smallest `memory_budget` with which they can be materialized.
size_t smallest_budget(c10::ArrayRef<c10::Storage> storages, const Options& options);

}  // namespace dormant::tile
