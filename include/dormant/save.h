// Saving for libtorch: lazy tensors are written to a file tile by tile, and stay lazy.
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
  /// The most bytes of tensors in a file of a folder; a larger tensor gets a separate file. A path
  /// of a single file takes everything.
  uint64_t max_shard_size = 5'000'000'000;
  /// Additional metadata in the header of each file; `format` is "pt" unless it is given here.
  std::map<std::string, std::string> metadata;
  /// The most bytes that may be taken besides tensors that are real. If it is too small, save
  /// throws c10::ValueError, which says the minimum, and writes nothing.
  std::optional<size_t> memory_budget;
  /// Called with (done, total) bytes of tensors. An exception that is thrown here stops the work
  /// and leaves save. No file has changed then.
  std::function<void(size_t done, size_t total)> on_step;
};

struct SaveReport {
  std::vector<std::string> files;           ///< paths of the files of tensors, in their order
  std::vector<std::string> saved;           ///< names in them, in the order of the model
  std::map<std::string, std::string> tied;  ///< other names of saved tensors, and the saved one
  size_t bytes = 0;                         ///< of the tensors in the files
};

/// Writes tensors to a safetensors file if the path ends in ".safetensors", otherwise to a folder:
/// model.safetensors, or model-00001-of-00002.safetensors and so on with an index. Creates folders
/// that do not exist. The files are the same, byte for byte, as those that Python's dormant.save
/// writes for a state dict with these tensors.
///
/// Lazy tensors are computed piece by piece on their way to the file, take no memory and stay lazy.
/// Only the statistics of a quantized tensor, and a tensor whose history must be replayed whole,
/// exist while they are written. Every tensor is written contiguously: tied ones (same storage and
/// geometry) once, under their first name, other views of one storage each as a separate tensor.
/// Undefined tensors are left out.
///
/// Files are written under temporary names, synced and then renamed. If the save fails, the files
/// of an earlier save are unchanged. If the process is killed, a folder contains either the earlier
/// save or this one, whole, and the next save to it, also by Python, removes what was left.
///
/// Throws c10::ValueError for tensors that the format cannot hold, all of which are listed, names
/// that are given twice or are not UTF-8, an empty path, a max_shard_size of 0 or a budget that is
/// too small; c10::NotImplementedError for another kind of file (.pt, .pth, .bin);
/// std::system_error, with the system's number, if the system refuses to write; and what a replayed
/// operator throws.
DORMANT_API SaveReport save(const NamedTensors& tensors, const std::string& path,
                            const SaveOptions& options = {});

/// Saves the parameters and buffers of a torch::nn::Module and its children. Also takes a module
/// holder (torch::nn::Linear and the like) or a shared_ptr to a module.
template <typename Module>
  requires ModuleLike<Module> || ModuleHolderLike<Module>
SaveReport save(const Module& module, const std::string& path, const SaveOptions& options = {}) {
  return save(named_tensors(module), path, options);
}

}  // namespace dormant
