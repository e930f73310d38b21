// Checkpoints for libtorch: tensors that are read when they are materialized.
//
//   {
//     dormant::LazyInit guard;
//     model = MyModel();                                    // no memory yet
//   }
//   dormant::load(model, "folder/model.safetensors");       // read once, cast on the way, the rest
//                                                           // initialized as recorded
#pragma once

#include <ATen/core/Tensor.h>
#include <dormant/dormant.h>
#include <dormant/export.h>
#include <dormant/named_tensors.h>

#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace dormant {

namespace checkpoint {
struct Catalog;
}
class Checkpoint;
struct OpenOptions;
struct LoadOptions;
struct LoadReport;

/// What the files say about a tensor.
struct CheckpointEntry {
  c10::ScalarType dtype;
  std::vector<int64_t> sizes;
  std::string file;  ///< empty if it is decoded
  uint64_t offset;   ///< of its first element in the file, in bytes
  uint64_t nbytes;
  std::string encoding;                ///< how `parts` encode it; empty if it is plain
  std::vector<CheckpointEntry> parts;  ///< the tensors from which it is decoded
};

/// The tensors of a checkpoint by name, lazy. Copies share the open files, which stay open as long
/// as a copy or one of the lazy tensors exists.
class DORMANT_API Checkpoint {
 public:
  /// In alphabetical order.
  std::vector<std::string> names() const;
  bool contains(const std::string& name) const;
  /// Throws c10::IndexError if there is no such tensor.
  CheckpointEntry entry(const std::string& name) const;
  /// A new lazy tensor whose history is reading it. The results of at::cat, slices, `to` and
  /// similar functions are lazy, too. Throws c10::IndexError if there is no such tensor.
  at::Tensor operator[](const std::string& name) const;
  /// The metadata of the files; if several files have a key, the first file's value.
  const std::map<std::string, std::string>& metadata() const;
  /// Unexpected facts about the files that are not errors, such as a config.json that describes an
  /// encoding although no tensor is encoded.
  const std::vector<std::string>& warnings() const;

 private:
  friend DORMANT_API Checkpoint open_checkpoint(const std::string& path,
                                                const OpenOptions& options);
  friend DORMANT_API LoadReport load(const NamedTensors& tensors, const Checkpoint& checkpoint,
                                     const LoadOptions& options);
  explicit Checkpoint(std::shared_ptr<const checkpoint::Catalog> catalog);
  std::shared_ptr<const checkpoint::Catalog> catalog_;
};

struct OpenOptions {
  /// Encoded tensors, such as fp8 with its scales, are shown as the plain tensors that they
  /// represent, and are decoded in small pieces when they are materialized; false shows them as
  /// they are in the files.
  bool decode = true;
  /// The dtype of decoded tensors; std::nullopt: the dtype to which the library concerned decodes.
  std::optional<c10::ScalarType> dtype = std::nullopt;
  /// Which mapping or module in a file of torch.save holds the tensors; "" means the top level of
  /// the file, std::nullopt the only one. In a folder of torch.distributed.checkpoint: a mapping of
  /// the saved state dict, with dots between nested ones; "" and std::nullopt mean all tensors.
  std::optional<std::string> key = std::nullopt;
};

/// Opens a safetensors file, a file of torch.save, a GGUF file, split or not (tensors have the
/// file's names), the index of several files (*.index.json), or a folder that contains
/// model.safetensors, pytorch_model.bin, the index of either, .metadata of
/// torch.distributed.checkpoint (each tensor is composed of the ranks' parts), the files of its
/// safetensors writer, or only one such file of another name. Reads and checks everything but the
/// tensors' bytes. Nothing in a file of torch.save is run: its state dict is what is under `key`,
/// or the only one, and for a pickled module what its state_dict() would have. Throws
/// c10::ValueError if a file is damaged or contradicts another one or the config.json beside it,
/// c10::IndexError if a file has no `key`, c10::NotImplementedError for tensors that are not
/// strided, std::system_error if the system refuses.
DORMANT_API Checkpoint open_checkpoint(const std::string& path, const OpenOptions& options = {});

/// What to do with a tensor of the module that the checkpoint does not have.
enum class Missing : uint8_t {
  initialize,  ///< it gets its recorded values; a real tensor keeps its values
  error,
};
/// What to do with a tensor of the checkpoint that the module does not have.
enum class Unexpected : uint8_t { error, ignore };
/// What to do with two tensors of one name with different sizes.
enum class Mismatched : uint8_t {
  error,
  initialize,  ///< as if the checkpoint did not have it
};

struct LoadOptions {
  Missing missing = Missing::initialize;
  Unexpected unexpected = Unexpected::error;
  Mismatched mismatched = Mismatched::error;
  /// Returns the module's name of a tensor from the checkpoint's; std::nullopt leaves it out.
  std::function<std::optional<std::string>(const std::string&)> rename;
  /// As in MaterializeOptions.
  std::optional<size_t> memory_budget;
  Mmap mmap = Mmap::automatic;
  std::function<void(size_t done, size_t total)> on_step;
};

struct LoadReport {
  std::vector<std::string> loaded;       ///< names in the module, in its order
  std::vector<std::string> initialized;  ///< lazy ones that got their recorded values
  std::vector<std::string> kept;         ///< real ones that the checkpoint does not have
  std::vector<std::string> ignored;      ///< names in the checkpoint
  size_t bytes = 0;                      ///< of the storages that were written
};

/// Gives each of `tensors` the values of the checkpoint's tensor of its name, converted to its
/// dtype, and materializes all lazy ones. (To change the dtype, call module->to(dtype) before; a
/// lazy module stays lazy.) Tensors that share their storage and geometry are tied: one name in the
/// checkpoint is enough, and if it has several, their bytes must be equal.
///
/// All names, sizes and files are checked before anything changes. If the work fails after that,
/// lazy tensors are as lazy as before; real ones are written in place, and the error says which had
/// been begun. Throws c10::IndexError for missing and unexpected names and mismatched sizes, all of
/// which are listed; c10::ValueError if a file changed since it was opened, or tied tensors differ;
/// std::system_error if a file cannot be read.
DORMANT_API LoadReport load(const NamedTensors& tensors, const Checkpoint& checkpoint,
                            const LoadOptions& options = {});

/// Loads the parameters and buffers of a torch::nn::Module and its children. Also takes a module
/// holder (torch::nn::Linear and the like) or a shared_ptr to a module.
template <typename Module>
  requires ModuleLike<Module> || ModuleHolderLike<Module>
LoadReport load(const Module& module, const Checkpoint& checkpoint,
                const LoadOptions& options = {}) {
  return load(named_tensors(module), checkpoint, options);
}

/// The same from the path of a checkpoint.
template <typename Target>
LoadReport load(const Target& target, const std::string& path, const LoadOptions& options = {}) {
  return load(target, open_checkpoint(path), options);
}

}  // namespace dormant
