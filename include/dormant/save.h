// Saving for libtorch: lazy tensors go to a file tile by tile, and stay lazy.
//
//   dormant::save(model, "model.safetensors");              // one file
//   dormant::save(model, "folder", {.max_shard_size = 2'000'000'000});
#pragma once

#include <dormant/export.h>
#include <dormant/named_tensors.h>

#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <vector>

namespace dormant {

struct SaveOptions {
  /// Most bytes of tensors in a file of a folder; a larger tensor gets a file of its own. A single
  /// file takes everything.
  uint64_t max_shard_size = 5'000'000'000;
  /// What the header of each file says besides; `format` is "pt" unless it is given here.
  std::map<std::string, std::string> metadata;
  /// Most bytes that may be taken besides tensors that are real. Where it is too small to work in,
  /// save throws c10::ValueError, which says the minimum, and writes nothing.
  std::optional<size_t> memory_budget;
  /// Called with (done, total) bytes of tensors; an exception thrown here stops the work and comes
  /// out of save. No file has changed then.
  std::function<void(size_t done, size_t total)> on_step;
};

struct SaveReport {
  std::vector<std::string> files;           ///< paths of the files of tensors, in their order
  std::vector<std::string> saved;           ///< names in them, in the order of the model
  std::map<std::string, std::string> tied;  ///< other names of saved tensors, and the saved one
  size_t bytes = 0;                         ///< of the tensors in the files
};

/// Writes tensors to a safetensors file where the path ends in ".safetensors", else to a folder:
/// model.safetensors, or model-00001-of-00002.safetensors and so on with an index. Folders that do
/// not exist are made. The files are the same, byte for byte, as those that Python's dormant.save
/// writes of a state dict with these tensors.
///
/// Lazy tensors are made piece by piece on their way to the file, take no memory and stay lazy; the
/// statistics of one that is quantized, and one with a history that can only be replayed whole,
/// exist for as long as they are written. Every tensor is written contiguously: tied ones (same
/// storage and geometry) once, under their first name, other views of one storage each as a tensor
/// of its own. Undefined tensors are left out.
///
/// Files are written under temporary names, synced and then renamed. Whatever stops it leaves the
/// files of an earlier save as they were; who reads a folder after the process was killed finds the
/// earlier save or this one, whole, and the next save there, of Python too, removes what was left.
///
/// Throws c10::ValueError for tensors that the format cannot hold, all of them listed, names given
/// twice or not UTF-8, an empty path, a max_shard_size of 0 or too small a budget;
/// c10::NotImplementedError for another kind of file (.pt, .pth, .bin); std::system_error, with the
/// system's number, where it refuses to write; and what a replayed operator throws.
DORMANT_API SaveReport save(const NamedTensors& tensors, const std::string& path,
                            const SaveOptions& options = {});

/// Parameters and buffers of a torch::nn::Module, its children included; of a module holder
/// (torch::nn::Linear and the like) or a shared_ptr to a module, too.
template <typename Module>
  requires ModuleLike<Module> || ModuleHolderLike<Module>
SaveReport save(const Module& module, const std::string& path, const SaveOptions& options = {}) {
  return save(named_tensors(module), path, options);
}

}  // namespace dormant
