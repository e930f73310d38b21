// What storages are, kept so that they can be put back: for work that must succeed or change
// nothing.
//
// A lazy storage is its history, which is immutable, so keeping it costs nothing. A storage that
// has memory becomes lazy meanwhile: its history begins with reading that memory, and whatever is
// written to it is only recorded, until the memory is put back with or without the new values.
#pragma once

#include <c10/core/Storage.h>
#include <dormant/export.h>

#include <memory>
#include <vector>

#include "record/lazy_storage.h"

namespace dormant::record {

class DORMANT_API Snapshot {
 public:
  /// Each storage once; of those with memory, only storages on the CPU are held.
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
    void* memory;
  };
  std::vector<Changed> changed() const;

  /// Whether the histories of `storages` read memory that is held.
  bool needed_by(c10::ArrayRef<c10::Storage> storages) const;

  /// Everything as it was; of storages that had memory, the memory as it is.
  void restore();

  /// Lazy storages stay what they have become; those that had memory get it back, and where they
  /// were given other memory meanwhile, the bytes of that are copied over.
  void keep();

 private:
  struct Lazy {
    c10::Storage storage;
    History history;
  };
  struct Real {
    c10::Storage storage;
    c10::DataPtr memory;
    std::shared_ptr<const Source> source;
    History history;  ///< that of reading the memory
  };

  std::vector<Lazy> lazy_;
  std::vector<Real> real_;
};

}  // namespace dormant::record
