// All tensors of a safetensors checkpoint, in one file or in several with an index.
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
  std::shared_ptr<const File> file;
};

struct Catalog {
  std::map<std::string, CatalogEntry> tensors;
  /// Of the files; where they differ, that of the first in the order of their names.
  std::map<std::string, std::string> metadata;
};

/// Opens a safetensors file, an index (*.index.json), or a folder that has model.safetensors,
/// model.safetensors.index.json or only one such file of another name. c10::ValueError where the
/// files are damaged, contradict the index, or a folder has none or a choice;
/// c10::NotImplementedError for files of torch.save; std::system_error where the system refuses.
Catalog open_catalog(const std::string& path);

}  // namespace dormant::checkpoint
