// Checkpoints for libtorch: tensors that are read when they come to life.
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
  std::string file;  ///< empty where it is decoded
  uint64_t offset;   ///< of its first element in the file, in bytes
  uint64_t nbytes;
  std::string encoding;                ///< how `parts` encode it; empty where it is plain
  std::vector<CheckpointEntry> parts;  ///< what it is decoded from
};

/// The tensors of a checkpoint by name, lazy. Copies share the open files, which stay open as long
/// as one of them or a lazy tensor lives.
class DORMANT_API Checkpoint {
 public:
  /// In alphabetical order.
  std::vector<std::string> names() const;
  bool contains(const std::string& name) const;
  /// Throws c10::IndexError where there is no such tensor.
  CheckpointEntry entry(const std::string& name) const;
  /// A new lazy tensor whose history is reading it; so are those that at::cat, slices, `to` and the
  /// like make of it. Throws c10::IndexError where there is no such tensor.
  at::Tensor operator[](const std::string& name) const;
  /// What the files say of themselves; of several values the first file's.
  const std::map<std::string, std::string>& metadata() const;
  /// What is odd about the files and no error, such as a config.json that says that tensors are
  /// encoded, which none is.
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
  /// Tensors that are kept encoded, such as fp8 and its scales, are shown as the plain ones that
  /// they stand for, and decoded in small pieces when they are materialized; false shows them as
  /// they are in the files.
  bool decode = true;
  /// That of decoded tensors; std::nullopt: what the library concerned decodes to.
  std::optional<c10::ScalarType> dtype = std::nullopt;
  /// Which mapping or module in a file of torch.save holds the tensors, "" the file's own;
  /// std::nullopt: the only one. In a folder of torch.distributed.checkpoint a mapping of the state
  /// dict that was saved, nested ones with dots between; "" and std::nullopt mean all tensors.
  std::optional<std::string> key = std::nullopt;
};

/// Opens a safetensors file, a file of torch.save, a GGUF file, split or not (tensors have the
/// file's names), the index of several (*.index.json), or a folder that has model.safetensors,
/// pytorch_model.bin, the index of either, .metadata of torch.distributed.checkpoint (each tensor
/// is put together from the ranks' parts), the files of its safetensors writer, or only one such
/// file of another name. Reads and checks everything but the tensors' bytes. Of a file of
/// torch.save nothing is run: its state dict is what is under `key`, or the only one, and of a
/// pickled module what its state_dict() would have. Throws c10::ValueError where a file is damaged
/// or contradicts another one or the config.json beside it, c10::IndexError where a file has no
/// `key`, c10::NotImplementedError for tensors that are not strided, std::system_error where the
/// system refuses.
DORMANT_API Checkpoint open_checkpoint(const std::string& path, const OpenOptions& options = {});

/// A tensor of the module that the checkpoint lacks.
enum class Missing : uint8_t {
  initialize,  ///< gets its recorded values; keeps those it has, if it is real
  error,
};
/// A tensor of the checkpoint that the module lacks.
enum class Unexpected : uint8_t { error, ignore };
/// Two tensors of one name with different sizes.
enum class Mismatched : uint8_t {
  error,
  initialize,  ///< as if the checkpoint lacked it
};

struct LoadOptions {
  Missing missing = Missing::initialize;
  Unexpected unexpected = Unexpected::error;
  Mismatched mismatched = Mismatched::error;
  /// The module's name of a tensor, from the checkpoint's; std::nullopt leaves the tensor out.
  std::function<std::optional<std::string>(const std::string&)> rename;
  /// As in MaterializeOptions.
  std::optional<size_t> memory_budget;
  Mmap mmap = Mmap::automatic;
  std::function<void(size_t done, size_t total)> on_step;
};

struct LoadReport {
  std::vector<std::string> loaded;       ///< names in the module, in its order
  std::vector<std::string> initialized;  ///< lazy ones that got their recorded values
  std::vector<std::string> kept;         ///< real ones that the checkpoint lacks
  std::vector<std::string> ignored;      ///< names in the checkpoint
  size_t bytes = 0;                      ///< of the storages that were written
};

/// Gives each of `tensors` the values of the checkpoint's tensor of its name, converted to its
/// dtype, and brings all lazy ones to life. (module->to(dtype) before keeps a lazy module lazy.)
/// Tensors that share their storage and geometry are tied: one name in the checkpoint is enough,
/// and the bytes under several must be equal.
///
/// All names, sizes and files are checked before anything changes. Whatever stops the work then
/// leaves lazy tensors lazy as they were; real ones are written in place, and the error says which
/// had been begun. Throws c10::IndexError for missing and unexpected names and mismatched sizes,
/// all of them listed; c10::ValueError where a file changed since it was opened, or tied tensors
/// differ; std::system_error where a file cannot be read.
DORMANT_API LoadReport load(const NamedTensors& tensors, const Checkpoint& checkpoint,
                            const LoadOptions& options = {});

/// Parameters and buffers of a torch::nn::Module, its children included; of a module holder
/// (torch::nn::Linear and the like) or a shared_ptr to a module, too.
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
