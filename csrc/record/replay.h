// Replay: giving lazy storages their memory and their values.
//
// The nodes that the wanted storages depend on are run in the order in which they were recorded,
// over memory that belongs to the replay alone; nothing recorded changes. A storage receives its
// memory (is committed) once the last node that touches its bytes has run, all of it or nothing:
// whatever stops a replay leaves the other storages lazy as they were, and it can be asked for
// again.
#pragma once

#include <dormant/export.h>

#include <c10/core/Storage.h>

#include <cstdint>
#include <functional>
#include <vector>

#include "record/lazy_storage.h"

namespace dormant::record {

enum class Values : uint8_t {
  exact,  ///< what eager construction would have given, bit for bit
  empty,  ///< memory without values
};

struct Materialized {
  const c10::StorageImpl* storage;
  size_t nbytes;
  size_t operators;  ///< length of its history
  double seconds;    ///< time of its own nodes
};

struct ReplayOptions {
  Values values = Values::exact;
  /// Also give memory to live storages whose history happens to be run completely.
  bool keep_intermediates = false;
  /// Called before every node with (done, total); may throw to stop.
  std::function<void(size_t, size_t)> on_step;
};

/// Materialises the lazy ones among `storages`, each once. Atomic per storage.
DORMANT_API std::vector<Materialized> materialize(c10::ArrayRef<c10::Storage> storages,
                                                  const ReplayOptions& options);

}  // namespace dormant::record
