#include "tile/held_tensors.h"

#include <unordered_map>
#include <utility>

namespace dormant::tile {
namespace {

std::vector<c10::Storage> storages_of(c10::ArrayRef<at::Tensor> tensors) {
  std::vector<c10::Storage> storages;
  for (const auto& tensor : tensors) {
    storages.push_back(tensor.storage());
  }
  return storages;
}

}  // namespace

HeldTensors::HeldTensors(std::vector<at::Tensor> tensors)
    : snapshot_(storages_of(tensors)), tensors_(std::move(tensors)) {
  settle();
}

HeldTensors::~HeldTensors() { restore(); }

std::vector<Materialized> HeldTensors::materialize(c10::ArrayRef<at::Tensor> tensors,
                                                   Options options) {
  auto wanted = storages_of(tensors);
  const auto changed = snapshot_.changed();
  for (const auto& storage : changed) {
    wanted.push_back(storage.storage);
  }
  std::unordered_map<const c10::StorageImpl*, Destination> destinations;
  if (!snapshot_.needed_by(wanted)) {
    snapshot_.begin_writing();
    for (const auto& storage : changed) {
      if (storage.memory != nullptr) {
        destinations[storage.storage.unsafeGetStorageImpl()].memory = storage.memory;
      }
    }
  }
  options.destinations = &destinations;
  begun_.reserve(begun_.size() + destinations.size());  // to say so must not fail
  const auto note_begun = [&] {
    for (const auto& [storage, destination] : destinations) {
      if (destination.begun) {
        begun_.push_back(storage);
      }
    }
  };
  const auto settle_all = [&] {
    for (const auto& tensor : tensors) {
      record::settle(tensor);
    }
  };
  try {
    auto done = tile::materialize(wanted, options);
    note_begun();
    settle_all();
    return done;
  } catch (...) {
    note_begun();
    settle_all();
    throw;
  }
}

std::vector<const c10::StorageImpl*> HeldTensors::touched() const { return snapshot_.touched(); }

void HeldTensors::restore() {
  snapshot_.restore();
  settle();
}

void HeldTensors::prepare_to_keep() { snapshot_.begin_writing(); }

void HeldTensors::keep() {
  snapshot_.keep();
  settle();
}

void HeldTensors::settle() const {
  for (const auto& tensor : tensors_) {
    record::settle(tensor);
  }
}

}  // namespace dormant::tile
