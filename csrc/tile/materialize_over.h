// Materializing what was recorded over a snapshot: tensors that had memory are written in place.
#pragma once

#include <c10/core/Storage.h>
#include <dormant/export.h>

#include <vector>

#include "record/snapshot.h"
#include "tile/engine.h"

namespace dormant::tile {

/// Materializes the lazy ones among `storages`, and every storage that had memory when the snapshot
/// was taken and has been written to since. The bytes of the latter go straight to the memory that
/// they had, unless something still reads what it holds. `begun` gets the storages whose memory was
/// written, wholly or in part, also where it throws; what to do then, restore or keep, is the
/// caller's.
DORMANT_API std::vector<Materialized> materialize_over(record::Snapshot& snapshot,
                                                       c10::ArrayRef<c10::Storage> storages,
                                                       Options options,
                                                       std::vector<const c10::StorageImpl*>& begun);

}  // namespace dormant::tile
