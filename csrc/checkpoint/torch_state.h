// Which tensors a file of torch.save holds under which names.
//
// A state dict is a mapping of names to tensors, often within one that holds other things as well.
// A pickled module is what its state_dict() would have: the parameters, buffers and children that
// torch.nn.Module keeps in every object, whatever its class is. Where a file has neither, tensors
// in nested containers and objects are named by the way to them, with dots.
#pragma once

#include <cstddef>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "checkpoint/torch_objects.h"
#include "system/export.h"

namespace dormant::checkpoint {

struct TorchState {
  struct Named {
    std::string name;
    PickleId value;
  };
  /// A module by the dotted name that state_dict() has for it.
  struct Module {
    std::string name;
    PickleId class_;
  };
  /// What is beside the tensors under a key, "" where it has none.
  struct Beside {
    std::optional<PickleId> key;
    PickleId value;
  };

  std::vector<Named> tensors;
  std::vector<Beside> beside;
  std::vector<Module> modules;  ///< if it is a pickled module
  /// The mapping that holds the tensors, if it has attributes: PyTorch keeps the versions of
  /// modules in `_metadata`.
  std::optional<PickleId> mapping;
};

/// How many of these names are wanted.
using Fits = std::function<size_t(const std::vector<std::string>& names)>;

/// Finds the state dict of a file: under `key`, "" for the file's own mapping, else the one that
/// `fits` best, or the only one. `file` is printable text for messages. c10::IndexError where there
/// is none under `key`; c10::ValueError where none is chosen.
DORMANT_BINDINGS_API TorchState find_state(const TorchObjects& objects,
                                           const std::optional<std::string>& key, const Fits& fits,
                                           const std::string& file);

}  // namespace dormant::checkpoint
