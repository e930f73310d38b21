// All tensors of a checkpoint: safetensors, in one file or in several with an index, or the parts of
// ranks of torch.distributed.checkpoint.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "checkpoint/entry.h"
#include "checkpoint/file.h"

namespace dormant::checkpoint {

struct CatalogEntry {
  Entry entry;
  std::shared_ptr<const File> file;  ///< that it is in, or its first part
  /// Where it is put together from parts, what does that; else null.
  std::shared_ptr<const record::Source> parts;

  /// What has its bytes from `entry.offset` on.
  std::shared_ptr<const record::Source> source() const {
    return parts ? parts : std::static_pointer_cast<const record::Source>(file);
  }
};

struct Catalog {
  std::map<std::string, CatalogEntry> tensors;
  /// Of the files; where they differ, that of the first in the order of their names.
  std::map<std::string, std::string> metadata;
};

/// Opens a safetensors file, an index (*.index.json), or a folder that has model.safetensors,
/// model.safetensors.index.json, .metadata or only one safetensors file of another name, or its
/// index. c10::ValueError where the
/// files are damaged, contradict the index, or a folder has none or a choice;
/// c10::NotImplementedError for files of torch.save; std::system_error where the system refuses.
Catalog open_catalog(const std::string& path);

}  // namespace dormant::checkpoint
