// Storages and tensors in a pickle of torch.save, known by the functions of torch/_utils.py that
// would make them.
//
// A pickle has a tensor as a call whose arguments are its geometry and a reference to its storage;
// the storage's bytes lie elsewhere in the file.
#pragma once

#include <c10/core/ScalarType.h>

#include <cstdint>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "checkpoint/pickle.h"
#include "system/export.h"

namespace dormant::checkpoint {

/// The dtype that is called `torch.NAME`; none where there is none of plain elements.
std::optional<c10::ScalarType> dtype_named(std::string_view name);

/// A storage that a pickle refers to.
struct TorchStorage {
  std::string key;  ///< what the file calls it
  c10::ScalarType dtype;
  uint64_t numel;
  uint64_t nbytes;
  std::string location;  ///< the device that it was saved from
};

/// A tensor over a storage.
struct DORMANT_BINDINGS_API TorchTensor {
  std::string storage;  ///< the key
  c10::ScalarType dtype;
  std::vector<int64_t> sizes;
  std::vector<int64_t> strides;  ///< in elements
  int64_t offset = 0;            ///< of its first element in the storage, in elements
  bool conjugated = false;
  bool negated = false;
  bool requires_grad = false;
  bool is_parameter = false;
  bool has_attributes = false;  ///< set by the program that saved it, or it is of a subclass

  /// Bytes of its elements.
  uint64_t nbytes() const;
};

class DORMANT_BINDINGS_API TorchObjects {
 public:
  /// `pickle` outlives this. c10::ValueError where one of its references to storages is not one, or
  /// two contradict each other.
  explicit TorchObjects(const Pickle& pickle);

  const Pickle& pickle() const noexcept { return pickle_; }
  const std::map<std::string, TorchStorage>& storages() const noexcept { return storages_; }

  /// Whether it is a tensor of any kind.
  bool is_tensor(PickleId id) const;
  /// The tensor that it is. c10::ValueError, which begins with `where`, where its geometry is none
  /// that a tensor can have, or not all of it lies in its storage; c10::NotImplementedError where
  /// its elements are not bytes of a storage: sparse ones and the like.
  TorchTensor tensor(PickleId id, const std::string& where) const;

  // Containers.

  /// The keys and values of a dict, or of an object that is one: an OrderedDict, what has items
  /// set. None of anything else.
  std::optional<std::vector<PickleId>> entries(PickleId id) const;
  /// The attributes of an object, names and values by turns; none where it has no such state.
  std::optional<std::span<const PickleId>> attributes(PickleId id) const;
  /// What a record is an object of: its class, also where a function of copyreg would make it.
  PickleId class_of(PickleId record) const;
  /// "module.name" of a global; empty for anything else.
  std::string name_of(PickleId id) const;
  /// Elements of a list, tuple, set or frozenset, also of a set that a call would make.
  std::span<const PickleId> elements(PickleId id) const;

 private:
  struct Reference {
    std::string key;
    uint64_t offset;  ///< in elements of the storage's dtype
    uint64_t numel;
  };
  struct Call {
    PickleGlobal function;
    std::span<const PickleId> arguments;
    bool has_attributes = false;
  };

  void read_storage(PickleId id);
  std::optional<Call> call(PickleId id) const;
  TorchTensor rebuilt(const Call& call, const std::string& where) const;
  std::vector<int64_t> numbers(PickleId id, const std::string& where, const char* what) const;
  std::optional<std::string_view> without_bytes(const Call& call) const;

  const Pickle& pickle_;
  std::map<std::string, TorchStorage> storages_;
  std::map<PickleId, Reference> references_;
};

}  // namespace dormant::checkpoint
