// All tensors of a checkpoint, safetensors, GGUF, torch.save's or torch.distributed.checkpoint's,
// in one file or in several.
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
#include "checkpoint/file_storage.h"
#include "record/decoder.h"

namespace dormant::checkpoint {

struct Decoding;

/// A tensor over a storage that others may share, as files of torch.save have them.
struct StorageView {
  std::shared_ptr<FileStorage> storage;
  std::vector<int64_t> strides;  ///< in elements
  int64_t offset;                ///< of the first one in the storage, in elements
  bool conjugated;
  bool negated;

  at::Tensor tensor(const Entry& entry) const;
};

struct CatalogEntry {
  Entry entry;  ///< without an offset where it is decoded
  std::shared_ptr<const File> file;
  std::shared_ptr<const Decoding> decoding;  ///< where it is encoded in other tensors; else null
  /// Where it is not a storage of its own in the file's order; else null.
  std::shared_ptr<const StorageView> view = nullptr;

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
  std::optional<c10::ScalarType> dtype = std::nullopt;
  /// Which mapping or module in a file of torch.save holds the tensors, "" the file's own;
  /// std::nullopt: the only one.
  std::optional<std::string> key = std::nullopt;
};

/// Opens a safetensors file, a file of torch.save, a GGUF file, split or not, an index
/// (*.index.json), or a folder that has model.safetensors, model.safetensors.index.json,
/// pytorch_model.bin, its index, .metadata (each tensor is put together from the ranks' parts), or
/// only one such file of another name. c10::ValueError where the files are damaged, contradict the
/// index or config.json, or a folder has none or a choice;
/// c10::IndexError where a file has no `key`; c10::NotImplementedError for tensors that are not
/// strided; std::system_error where the system refuses.
Catalog open_catalog(const std::string& path, const CatalogOptions& options = {});

}  // namespace dormant::checkpoint
