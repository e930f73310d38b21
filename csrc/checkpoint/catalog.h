// All tensors of a safetensors or GGUF checkpoint, in one file or in several.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/ScalarType.h>

#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "checkpoint/entry.h"
#include "checkpoint/file.h"
#include "record/decoder.h"

namespace dormant::checkpoint {

struct Decoding;

struct CatalogEntry {
  Entry entry;  ///< without an offset where it is decoded
  std::shared_ptr<const File> file;
  std::shared_ptr<const Decoding> decoding;  ///< where it is encoded in other tensors; else null

  /// A new lazy tensor whose history is reading it.
  at::Tensor tensor() const;
  /// For messages: the file that it is in, or the first of several.
  const std::string& home() const;
};

/// A plain tensor made of those of the files.
struct Decoding {
  std::vector<CatalogEntry> parts;
  std::shared_ptr<const record::Decoder> decoder;
  bool transposed;  ///< the last two dimensions of what the decoder gives are swapped
};

struct Catalog {
  std::map<std::string, CatalogEntry> tensors;
  /// Of the files; where they differ, that of the first in the order of their names.
  std::map<std::string, std::string> metadata;
  /// What is odd and no error.
  std::vector<std::string> warnings;
};

struct CatalogOptions {
  /// Whether encoded tensors are shown as the plain ones that they stand for.
  bool decode = true;
  /// That of decoded tensors; std::nullopt: what the library concerned decodes to.
  std::optional<c10::ScalarType> dtype;
};

/// Opens a safetensors file, a GGUF file, split or not, an index (*.index.json), or a folder that
/// has model.safetensors, model.safetensors.index.json or only one such file of another name.
/// c10::ValueError where the files are damaged, contradict the index or config.json, or a folder
/// has none or a choice; c10::NotImplementedError for files of torch.save; std::system_error where
/// the system refuses.
Catalog open_catalog(const std::string& path, const CatalogOptions& options = {});

}  // namespace dormant::checkpoint
