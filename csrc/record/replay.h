// Replay: giving lazy storages their memory and their values.
//
// The nodes that the wanted storages depend on are run over memory that belongs to the replay
// alone, in the order in which they were recorded, but what shares no memory one after the other;
// nothing recorded changes. A storage receives its memory (is committed) once the last node that
// touches its bytes has run, all of it or nothing: whatever stops a replay leaves the other
// storages lazy as they were, and it can be asked for again.
#pragma once

#include <c10/core/DispatchKeySet.h>
#include <c10/core/Storage.h>

#include <cstdint>
#include <functional>
#include <vector>

#include "record/lazy_storage.h"

namespace dormant::record {

struct Materialized {
  const c10::StorageImpl* storage;
  size_t nbytes;
  size_t operators;  ///< length of its history
  double seconds;    ///< time of its own nodes
};

struct ReplayOptions {
  bool values = true;  ///< false: memory without values
  /// Also give memory to live storages whose history happens to be run completely.
  bool keep_intermediates = false;
  /// Called before every node with (done, total); may throw to stop.
  std::function<void(size_t, size_t)> on_step;
};

/// Materializes the lazy ones among `storages`, each once, by whichever thread comes first
/// (claims.h). Atomic per storage. Any thread, with or without Python's lock; nothing is locked
/// while operators and `on_step` run.
std::vector<Materialized> materialize(c10::ArrayRef<c10::Storage> storages,
                                      const ReplayOptions& options);

/// Bytes of memory, besides the final tensors, that materializing `storages` by replay takes at its
/// peak, as far as storages tell: what operators allocate inside is not counted.
size_t scratch_bytes(c10::ArrayRef<c10::Storage> storages, const ReplayOptions& options);

/// Runs one in-place node on `tensor` in place of the operand it writes; its other operands must be
/// captured ones. `generator`, where given, is used in place of a new one at the node's position.
/// Modes and recording must be off.
void run_in_place(const Node& node, const at::Tensor& tensor, const at::Generator& generator = {});

/// Runs one functional node with one result on `tensors` in place of its lazy operands, which are
/// the defined ones.
at::Tensor run_functional(const Node& node, const std::vector<at::Tensor>& tensors);

}  // namespace dormant::record
