#include "tile/materialize_over.h"

#include <unordered_map>
#include <utility>

namespace dormant::tile {

std::vector<Materialized> materialize_over(record::Snapshot& snapshot,
                                           c10::ArrayRef<c10::Storage> storages, Options options,
                                           std::vector<const c10::StorageImpl*>& begun) {
  std::vector<c10::Storage> wanted(storages.begin(), storages.end());
  const auto changed = snapshot.changed();
  for (const auto& storage : changed) {
    wanted.push_back(storage.storage);
  }
  std::unordered_map<const c10::StorageImpl*, Destination> destinations;
  if (!snapshot.needed_by(wanted)) {
    snapshot.begin_writing();
    for (const auto& storage : changed) {
      if (storage.memory != nullptr) {
        destinations[storage.storage.unsafeGetStorageImpl()].memory = storage.memory;
      }
    }
  }
  options.destinations = &destinations;
  begun.reserve(begun.size() + destinations.size());  // to say so must not fail
  const auto note_begun = [&] {
    for (const auto& [storage, destination] : destinations) {
      if (destination.begun) {
        begun.push_back(storage);
      }
    }
  };
  try {
    auto done = materialize(wanted, options);
    note_begun();
    return done;
  } catch (...) {
    note_begun();
    throw;
  }
}

}  // namespace dormant::tile
