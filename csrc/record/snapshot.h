// What storages are, kept so that they can be put back: for work that must succeed or change
// nothing.
//
// A lazy storage is its history, which is immutable, so keeping it costs nothing. A storage that
// has memory becomes lazy meanwhile: its history begins with reading that memory, and whatever is
// written to it is only recorded, until the memory is put back with or without the new values. A
// copy that somebody took meanwhile goes on reading the old bytes: they are copied for it before
// the memory changes hands.
#pragma once

#include <c10/core/Storage.h>
#include <memory>
#include <variant>
#include <vector>

#include "record/held_memory.h"
#include "record/lazy_storage.h"

namespace dormant::record {

/// Belongs to one thread at a time, with or without Python's lock.
class Snapshot {
 public:
  /// Each storage once; of those with memory, only storages on the CPU are held. Where it throws,
  /// everything is as it was.
  explicit Snapshot(c10::ArrayRef<c10::Storage> storages);
  Snapshot(Snapshot&&) = default;
  Snapshot& operator=(Snapshot&&) = delete;
  Snapshot(const Snapshot&) = delete;
  Snapshot& operator=(const Snapshot&) = delete;

  /// Puts back what is still held, as `restore`.
  ~Snapshot();

  /// A storage that had memory, which somebody has written to since.
  struct Changed {
    c10::Storage storage;
    /// Where its new bytes may go at once; null where they need memory of their own.
    void* memory;
  };
  std::vector<Changed> changed() const;

  /// The storages that are not what they were when they were held: somebody has written to them, or
  /// materialized what was lazy.
  std::vector<const c10::StorageImpl*> touched() const;

  /// Whether the histories of `storages` read memory that is held.
  bool needed_by(c10::ArrayRef<c10::Storage> storages) const;

  /// To be called before bytes go to the memory of `changed`: what histories other than those of
  /// the held storages still read of held memory is copied for them. Where std::bad_alloc is
  /// thrown, nothing has changed.
  void begin_writing();

  /// Everything as it was; of storages that had memory, the memory as it is. Allocates nothing but
  /// what copies taken meanwhile need; without memory for that, they can no longer be read.
  void restore() noexcept;

  /// Lazy storages stay what they have become; those that had memory get it back, and where they
  /// were given other memory meanwhile, the bytes of that are copied over. One that has another
  /// size now, or that shared its memory until it is written to, keeps the other memory. Where
  /// std::bad_alloc is thrown, everything is still held.
  void keep();

 private:
  struct Lazy {
    c10::Storage storage;
    size_t nbytes;
    History history;
    c10::DataPtr laziness;  ///< what makes it lazy again
  };
  struct Real {
    c10::Storage storage;
    size_t nbytes;
    c10::DataPtr memory;
    bool copies_on_write = false;
    std::shared_ptr<HeldMemory> source;
    History history;  ///< that of reading the memory

    /// Whether the bytes of what the storage has become fit the memory it had.
    bool fits(size_t bytes) const { return bytes == nbytes && !copies_on_write; }
  };

  Snapshot() = default;
  void hold(const c10::Storage& storage);
  /// False where another thread has changed what the storage was `found` to be.
  bool try_to_hold(const c10::Storage& storage, const std::variant<History, Memory>& found);
  static bool is_read_by_others(const Real& real);
  static void give_back(Real& real) noexcept;

  std::vector<Lazy> lazy_;
  std::vector<Real> real_;
};

}  // namespace dormant::record
