#include "record/snapshot.h"

#include <algorithm>
#include <cstring>
#include <string>
#include <unordered_set>
#include <utility>

#include "record/source_node.h"

namespace dormant::record {
namespace {

/// Memory that a tensor had.
class HeldMemory final : public Source {
 public:
  explicit HeldMemory(const void* data) : data_(static_cast<const std::byte*>(data)) {}

  void read(uint64_t offset, size_t count, void* out) const override {
    std::memcpy(out, data_ + offset, count);
  }
  const std::string& name() const override {
    static const std::string name = "memory";
    return name;
  }

 private:
  const std::byte* data_;
};

}  // namespace

Snapshot::Snapshot(c10::ArrayRef<c10::Storage> storages) {
  const std::lock_guard<std::recursive_mutex> lock(graph_mutex());
  std::unordered_set<const c10::StorageImpl*> seen;
  for (const auto& storage : storages) {
    auto* impl = storage.unsafeGetStorageImpl();
    if (!seen.insert(impl).second) {
      continue;
    }
    if (const auto* history = history_of(impl)) {
      lazy_.push_back({storage, *history});
      continue;
    }
    if (storage.device_type() != c10::DeviceType::CPU || storage.nbytes() == 0) {
      continue;
    }
    Real real;
    real.storage = storage;
    real.source = std::make_shared<HeldMemory>(storage.data());
    // The storage of a read becomes this one's history.
    const auto donor = make_read_storage(real.source, 0, storage.nbytes(), c10::ScalarType::Byte);
    real.history = *history_of(donor.unsafeGetStorageImpl());
    real.history.buffer->owner = storage.getWeakStorageImpl();
    real.memory = suspend(impl, real.history);
    real_.push_back(std::move(real));
  }
}

Snapshot::~Snapshot() { restore(); }

std::vector<Snapshot::Changed> Snapshot::changed() const {
  std::vector<Changed> found;
  for (const auto& real : real_) {
    const auto* history = history_of(real.storage.unsafeGetStorageImpl());
    if (history == nullptr || history->buffer != real.history.buffer ||
        history->tail != real.history.tail) {
      found.push_back({real.storage, real.memory.get()});
    }
  }
  return found;
}

bool Snapshot::needed_by(c10::ArrayRef<c10::Storage> storages) const {
  std::unordered_set<const Source*> held;
  for (const auto& real : real_) {
    held.insert(real.source.get());
  }
  std::vector<Node*> tails;
  for (const auto& storage : storages) {
    if (const auto* history = history_of(storage.unsafeGetStorageImpl())) {
      tails.push_back(history->tail.get());
    }
  }
  const auto nodes = closure(tails);
  return std::any_of(nodes.begin(), nodes.end(),
                     [&](const Node* node) { return held.count(node->source.get()) != 0; });
}

void Snapshot::restore() {
  const std::lock_guard<std::recursive_mutex> lock(graph_mutex());
  for (auto& lazy : lazy_) {
    suspend(lazy.storage.unsafeGetStorageImpl(), lazy.history);
  }
  for (auto& real : real_) {
    commit(real.storage.unsafeGetStorageImpl(), std::move(real.memory));
  }
  lazy_.clear();
  real_.clear();
}

void Snapshot::keep() {
  const std::lock_guard<std::recursive_mutex> lock(graph_mutex());
  for (auto& real : real_) {
    auto* impl = real.storage.unsafeGetStorageImpl();
    if (history_of(impl) == nullptr && impl->data() != real.memory.get()) {
      std::memcpy(real.memory.get(), impl->data(), impl->nbytes());
    }
    commit(impl, std::move(real.memory));
  }
  lazy_.clear();
  real_.clear();
}

}  // namespace dormant::record
