#include "record/snapshot.h"

#include <algorithm>
#include <cstring>
#include <iterator>
#include <map>
#include <span>
#include <unordered_set>
#include <utility>

#include "record/source_node.h"

namespace dormant::record {

Snapshot::Snapshot(c10::ArrayRef<c10::Storage> storages) : Snapshot() {
  // The destructor runs also where this throws half-way, and puts back what was held.
  lazy_.reserve(storages.size());
  real_.reserve(storages.size());
  std::unordered_set<const c10::StorageImpl*> seen;
  for (const auto& storage : storages) {
    if (seen.insert(storage.unsafeGetStorageImpl()).second) {
      hold(storage);
    }
  }
}

void Snapshot::hold(const c10::Storage& storage) {
  auto* impl = storage.unsafeGetStorageImpl();
  while (!try_to_hold(storage, history_or_memory_of(impl))) {
  }
}

bool Snapshot::try_to_hold(const c10::Storage& storage,
                           const std::variant<History, Memory>& found) {
  if (const auto* history = std::get_if<History>(&found)) {
    lazy_.push_back({storage, storage.nbytes(), *history, lazy_data_ptr(*history)});
    return true;
  }
  const auto memory = std::get<Memory>(found);
  if (storage.device_type() != c10::DeviceType::CPU || memory.nbytes == 0) {
    return true;
  }
  auto* impl = storage.unsafeGetStorageImpl();
  Real real;
  real.storage = storage;
  real.nbytes = memory.nbytes;
  real.source = std::make_shared<HeldMemory>(memory.data, real.nbytes);
  real.history = read_history(real.source, 0, make_buffer(real.nbytes, impl), c10::kByte);
  auto taken = take_memory(impl, memory.data, real.history, real.copies_on_write);
  if (!taken) {
    return false;
  }
  real.memory = *std::move(taken);
  real_.push_back(std::move(real));
  return true;
}

Snapshot::~Snapshot() { restore(); }

std::vector<Snapshot::Changed> Snapshot::changed() const {
  std::vector<Changed> found;
  for (const auto& real : real_) {
    const auto history = history_of(real.storage.unsafeGetStorageImpl());
    if (!history || *history != real.history) {
      const bool fits = history && real.fits(history->buffer->nbytes);
      found.push_back({real.storage, fits ? real.memory.get() : nullptr});
    }
  }
  return found;
}

std::vector<const c10::StorageImpl*> Snapshot::touched() const {
  std::vector<const c10::StorageImpl*> found;
  const auto compare = [&](const c10::Storage& storage, const History& before) {
    const auto* impl = storage.unsafeGetStorageImpl();
    const auto history = history_of(impl);
    if (!history || *history != before) {
      found.push_back(impl);
    }
  };
  for (const auto& lazy : lazy_) {
    compare(lazy.storage, lazy.history);
  }
  for (const auto& real : real_) {
    compare(real.storage, real.history);
  }
  return found;
}

bool Snapshot::needed_by(c10::ArrayRef<c10::Storage> storages) const {
  // Where memory that is held begins, and where the furthest that begins there or before ends: a
  // source may read it by another way than the snapshot's own, as a copy of a real tensor does.
  std::map<uintptr_t, uintptr_t> ends;
  for (const auto& real : real_) {
    const auto begin = reinterpret_cast<uintptr_t>(real.memory.get());
    auto& end = ends[begin];
    end = std::max(end, begin + real.nbytes);
  }
  uintptr_t furthest = 0;
  for (auto& [begin, end] : ends) {
    furthest = end = std::max(end, furthest);
  }
  const auto is_held = [&](std::span<const std::byte> memory) {
    const auto begin = reinterpret_cast<uintptr_t>(memory.data());
    const auto after = ends.lower_bound(begin + memory.size());
    return !memory.empty() && after != ends.begin() && std::prev(after)->second > begin;
  };
  std::vector<History> histories;
  std::vector<Node*> tails;
  for (const auto& storage : storages) {
    if (auto history = history_of(storage.unsafeGetStorageImpl())) {
      tails.push_back(history->tail.get());
      histories.push_back(std::move(*history));
    }
  }
  const auto nodes = closure(tails);
  return std::any_of(nodes.begin(), nodes.end(), [&](const Node* node) {
    return node->source != nullptr && is_held(node->source->memory());
  });
}

void Snapshot::begin_writing() {
  for (auto& real : real_) {
    if (is_read_by_others(real)) {
      real.source->detach();
    }
  }
}

/// Nobody but the snapshot and the storage itself refers to the read unless another history leads
/// to it.
bool Snapshot::is_read_by_others(const Real& real) {
  const auto is_unchanged = [&] {
    const auto history = history_of(real.storage.unsafeGetStorageImpl());
    return history && *history == real.history;
  };
  return real.history.tail.use_count() > (is_unchanged() ? 2U : 1U);
}

void Snapshot::give_back(Real& real) noexcept {
  // What the storage was meanwhile is dropped first, so that its own history does not count.
  static_cast<void>(swap_memory(real.storage.unsafeGetStorageImpl(), std::move(real.memory),
                                real.nbytes, real.copies_on_write));
  if (real.history.tail.use_count() > 1) {
    real.source->detach_or_lose();
  }
}

void Snapshot::restore() noexcept {
  for (auto& lazy : lazy_) {
    bool copies_on_write = false;
    static_cast<void>(swap_memory(lazy.storage.unsafeGetStorageImpl(), std::move(lazy.laziness),
                                  lazy.nbytes, copies_on_write));
  }
  lazy_.clear();
  for (auto& real : real_) {
    give_back(real);
  }
  real_.clear();
}

void Snapshot::keep() {
  begin_writing();
  lazy_.clear();
  for (auto& real : real_) {
    auto* storage = real.storage.unsafeGetStorageImpl();
    const auto found = history_or_memory_of(storage);
    if (const auto* memory = std::get_if<Memory>(&found)) {
      if (!real.fits(memory->nbytes)) {
        continue;
      }
      std::memcpy(real.memory.get(), memory->data, real.nbytes);
    }
    give_back(real);
  }
  real_.clear();
}

}  // namespace dormant::record
