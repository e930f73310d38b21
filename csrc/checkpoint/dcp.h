// Folders of torch.distributed.checkpoint: `.metadata`, a pickle that says which part of which
// tensor lies where, and files in which each part is an archive of torch.save. Both may come from
// anyone; nothing in them is imported or called.
//
// The classes are those of torch/distributed/checkpoint/metadata.py and filesystem.py. Also folders
// without `.metadata` that its HuggingFaceStorageWriter writes, where safetensors headers say it.
#pragma once

#include <c10/core/ScalarType.h>

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <variant>
#include <vector>

#include "checkpoint/file.h"
#include "checkpoint/file_storage.h"
#include "checkpoint/pieces.h"
#include "system/export.h"

namespace dormant::checkpoint {

inline constexpr const char* kDistributedMetadata = ".metadata";

struct DistributedTensor {
  std::string name;
  c10::ScalarType dtype;
  std::vector<int64_t> sizes;
  uint64_t nbytes;
  std::shared_ptr<const Pieces> pieces;
  /// Shared by tensors that are the same bytes.
  std::shared_ptr<FileStorage> storage;
};

/// What torch.save wrote of a value that is not a tensor.
struct DistributedObject {
  std::string name;
  std::shared_ptr<const File> file;
  uint64_t offset;
  uint64_t length;
};

/// Keys of mappings and indices of lists that lead to a value in the state dict that was saved.
using ValuePath = std::vector<std::variant<std::string, int64_t>>;

struct DistributedCheckpoint {
  std::vector<DistributedTensor> tensors;  ///< in the order of the metadata
  std::vector<DistributedObject> objects;
  std::map<std::string, ValuePath> paths;  ///< by name; that of others is the name itself
  std::vector<std::shared_ptr<const File>> files;
  std::map<std::string, std::string> metadata;  ///< what the checkpoint says of itself
};

/// Opens the file at a path relative to the folder.
using OpenBeside = std::function<std::shared_ptr<const File>(const std::string&)>;

/// Reads a `.metadata` and opens its files, of which it reads nothing: where elements lie in an
/// archive is found out when they are wanted. c10::ValueError where the metadata is damaged or
/// contradicts itself, parts overlap or leave a gap, or names lead out of the folder;
/// c10::NotImplementedError for what is compressed, or has no dtype that can be read;
/// std::system_error where the system cannot read.
DORMANT_BINDINGS_API DistributedCheckpoint read_distributed(const File& metadata,
                                                            const OpenBeside& open);

/// The same of a path.
DistributedCheckpoint read_distributed(const std::string& path);

/// The same of safetensors files in which each tensor is a part, with a header that says which.
DORMANT_BINDINGS_API DistributedCheckpoint
read_distributed_safetensors(const std::vector<std::shared_ptr<const File>>& files);

/// Whether a safetensors header says so.
DORMANT_BINDINGS_API bool is_distributed(const std::map<std::string, std::string>& metadata);

}  // namespace dormant::checkpoint
