#include "checkpoint/catalog.h"

#include <ATen/core/Tensor.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <string_view>
#include <utility>

#include "checkpoint/dcp.h"
#include "checkpoint/encodings/find.h"
#include "checkpoint/folder.h"
#include "checkpoint/gguf.h"
#include "checkpoint/index.h"
#include "checkpoint/paths.h"
#include "checkpoint/safetensors.h"
#include "checkpoint/torch_archive.h"
#include "checkpoint/torch_catalog.h"
#include "record/geometry.h"
#include "record/lazy_storage.h"
#include "record/source_node.h"
#include "system/folder.h"
#include "text/printable.h"

namespace dormant::checkpoint {
namespace {

constexpr std::string_view kFile = ".safetensors";
constexpr uint64_t kFirstBytes = 512;  // that tell what a file is

struct Contents {
  std::vector<CatalogEntry> entries;
  std::map<std::string, std::string> metadata;
};

Contents read(const std::shared_ptr<const File>& file, const CatalogOptions& options) {
  std::string first(std::min<uint64_t>(file->size(), kFirstBytes), '\0');
  file->read(0, first.size(), first.data());
  if (!file->path().ends_with(kFile) && is_torch_file(first)) {
    return {torch_entries(file, options.key), {}};
  }
  Contents contents;
  if (!file->path().ends_with(kFile) && is_gguf(first)) {
    auto header = read_gguf(*file);
    for (auto& tensor : header.tensors) {
      contents.entries.push_back({std::move(tensor.entry), file, nullptr});
    }
    for (const auto& [key, value] : header.metadata) {
      contents.metadata.emplace(key, to_text(value));
    }
    return contents;
  }
  auto header = read_safetensors_header(*file);
  contents.metadata = std::move(header.metadata);
  for (auto& entry : header.entries) {
    contents.entries.push_back({std::move(entry), file, nullptr});
  }
  return contents;
}

/// c10::ValueError unless a file that was split says that it is this part.
void check_part(const Contents& contents, const File& file, size_t number, size_t count) {
  if (count == 1) {
    return;
  }
  const auto says = [&](const char* key) {
    const auto found = contents.metadata.find(key);
    return found == contents.metadata.end() ? "nothing" : found->second;
  };
  TORCH_CHECK_VALUE(
      says("split.no") == std::to_string(number) && says("split.count") == std::to_string(count),
      "open_checkpoint: ", file.name(), ": split.no and split.count are ",
      text::in_quotes(says("split.no")), " and ", text::in_quotes(says("split.count")),
      ", expected ", number, " and ", count,
      " according to its name. Cause: the files belong to different checkpoints. Next: get them "
      "again.");
}

void add(Catalog& catalog, Contents contents) {
  for (auto& entry : contents.entries) {
    auto name = entry.entry.name;
    const auto& file = *entry.file;
    const auto [found, added] = catalog.tensors.try_emplace(std::move(name), std::move(entry));
    TORCH_CHECK_VALUE(
        added, "open_checkpoint: tensor ", text::in_quotes(found->first), " is in two files, ",
        found->second.file->name(), " and ", file.name(),
        ", expected one. Cause: the files belong to different checkpoints. Next: download or "
        "save it again.");
  }
  catalog.metadata.merge(contents.metadata);
}

Catalog open_index(const std::string& path, const CatalogOptions& options) {
  const auto index = read_index(path);
  std::map<std::string, std::shared_ptr<const File>> files;
  for (const auto& [tensor, shard] : index.files) {
    files.try_emplace(shard);
  }
  Catalog catalog;
  for (auto& [shard, file] : files) {
    file = File::open(shard);
    add(catalog, read(file, options));
  }
  constexpr const char* kCause =
      "Cause: the index and the files belong to different checkpoints. Next: download or save them "
      "again.";
  for (const auto& [tensor, shard] : index.files) {
    const auto found = catalog.tensors.find(tensor);
    const bool exists = found != catalog.tensors.end();
    TORCH_CHECK_VALUE(exists && found->second.file->path() == files.at(shard)->path(),
                      "open_checkpoint: ", text::printable(path), ": tensor ",
                      text::in_quotes(tensor), " is in ",
                      exists ? found->second.file->name() : "no file", ", expected in ",
                      text::printable(shard), ". ", kCause);
  }
  for (const auto& [tensor, found] : catalog.tensors) {
    TORCH_CHECK_VALUE(index.files.contains(tensor), "open_checkpoint: ", text::printable(path),
                      ": tensor ", text::in_quotes(tensor), " of ", found.file->name(),
                      " is not in the index. ", kCause);
  }
  return catalog;
}

/// The name of a value in the mapping `key` of a state dict, which may be nested; std::nullopt
/// where it is not in it.
std::optional<std::string> below(const ValuePath& path, const std::string& key) {
  const auto joined = [&](size_t begin, size_t end) {
    std::string text;
    for (size_t i = begin; i < end; ++i) {
      const auto* name = std::get_if<std::string>(&path[i]);
      text += (i == begin ? "" : ".") +
              (name != nullptr ? *name : std::to_string(std::get<int64_t>(path[i])));
    }
    return text;
  };
  for (size_t depth = 1; depth < path.size(); ++depth) {
    if (joined(0, depth) == key) {
      return joined(depth, path.size());
    }
  }
  return std::nullopt;
}

Catalog distributed_catalog(DistributedCheckpoint found, const std::string& path,
                            const std::optional<std::string>& key) {
  Catalog catalog;
  catalog.metadata = std::move(found.metadata);
  for (auto& tensor : found.tensors) {
    if (key && !key->empty()) {
      const auto where = found.paths.find(tensor.name);
      auto name = where == found.paths.end() ? std::nullopt : below(where->second, *key);
      if (!name) {
        continue;
      }
      tensor.name = std::move(*name);
    }
    const auto& pieces = tensor.pieces->pieces();
    auto file = pieces.empty() ? File::open(path) : pieces.front().file;
    const auto contiguous = record::Geometry::contiguous(tensor.sizes, tensor.dtype);
    auto view = std::make_shared<const StorageView>(
        StorageView{std::move(tensor.storage),
                    {contiguous.strides.begin(), contiguous.strides.end()},
                    0,
                    false,
                    false});
    Entry entry{tensor.name, tensor.dtype, std::move(tensor.sizes), tensor.pieces->base(),
                tensor.nbytes};
    catalog.tensors.emplace(std::move(tensor.name), CatalogEntry{std::move(entry), std::move(file),
                                                                 nullptr, std::move(view)});
  }
  TORCH_CHECK_INDEX(!key || key->empty() || !catalog.tensors.empty(),
                    "open_checkpoint: ", text::printable(path), " has no mapping ",
                    text::in_quotes(*key),
                    " with tensors. Next: pass another `key`, or leave it out.");
  return catalog;
}

uint64_t bytes_of(c10::ScalarType dtype, const std::vector<int64_t>& sizes) {
  return record::Geometry::contiguous(sizes, dtype).nbytes_needed();
}

CatalogEntry decoded(const Encoded& encoded, const Catalog& raw) {
  Decoding decoding{{}, encoded.decoder, encoded.transposed};
  for (const auto& part : encoded.parts) {
    decoding.parts.push_back(raw.tensors.at(part));
  }
  const auto output = encoded.decoder->output();
  std::vector<int64_t> sizes(output.sizes.begin(), output.sizes.end());
  if (encoded.transposed) {
    std::swap(sizes.at(sizes.size() - 2), sizes.back());
  }
  const auto nbytes = bytes_of(encoded.dtype, sizes);
  // What can throw comes before the aggregate: GCC 12 destroys its members twice where it does.
  auto shared = std::make_shared<const Decoding>(std::move(decoding));
  Entry entry{encoded.name, encoded.dtype, std::move(sizes), 0, nbytes};
  return {std::move(entry), nullptr, std::move(shared)};
}

/// The elements of a small tensor in their order.
std::string bytes_of(const CatalogEntry& found) {
  const auto& entry = found.entry;
  std::string bytes(entry.nbytes, '\0');
  if (found.view == nullptr) {
    found.file->read(entry.offset, bytes.size(), bytes.data());
  } else if (!bytes.empty()) {
    const auto tensor = found.tensor().clone(at::MemoryFormat::Contiguous);
    std::memcpy(bytes.data(), tensor.const_data_ptr(), bytes.size());
  }
  return bytes;
}

/// `raw` with plain tensors in the place of those that encode them.
Catalog decode(Catalog raw, const std::string& path, const CatalogOptions& options) {
  std::vector<RawTensor> tensors;
  for (const auto& [name, found] : raw.tensors) {
    tensors.push_back({name, found.entry.dtype, found.entry.sizes, found.entry.encoding});
  }
  auto findings =
      find_encoded(std::move(tensors), read_configuration(folder_of(path)), options.dtype, path,
                   [&](const RawTensor& tensor) { return bytes_of(raw.tensors.at(tensor.name)); });
  Catalog plain = raw;
  for (const auto& encoded : findings.encoded) {
    for (const auto& part : encoded.parts) {
      plain.tensors.erase(part);
    }
  }
  for (const auto& name : findings.spent) {
    plain.tensors.erase(name);
  }
  for (const auto& encoded : findings.encoded) {
    plain.tensors.emplace(encoded.name, decoded(encoded, raw));
  }
  plain.warnings = std::move(findings.warnings);
  return plain;
}

}  // namespace

at::Tensor StorageView::tensor(const Entry& entry) const {
  record::Geometry geometry;
  geometry.sizes.assign(entry.sizes.begin(), entry.sizes.end());
  geometry.strides.assign(strides.begin(), strides.end());
  geometry.offset = offset;
  geometry.dtype = entry.dtype;
  auto tensor = record::make_tensor(storage->tensor().storage(), geometry);
  if (conjugated) {
    tensor = tensor.conj();
  }
  return negated ? tensor._neg_view() : tensor;
}

at::Tensor CatalogEntry::tensor() const {
  if (view != nullptr) {
    return view->tensor(entry);
  }
  if (decoding == nullptr) {
    return record::make_read_tensor(file, entry.offset, entry.sizes, entry.dtype);
  }
  std::vector<at::Tensor> parts;
  for (const auto& part : decoding->parts) {
    parts.push_back(part.tensor());
  }
  auto tensor = record::decode(parts, decoding->decoder);
  if (decoding->transposed) {
    tensor = tensor.transpose(-2, -1).contiguous();
  }
  return tensor.to(entry.dtype);
}

const std::string& CatalogEntry::home() const {
  return decoding == nullptr ? file->name() : decoding->parts.front().home();
}

Catalog open_catalog(const std::string& path, const CatalogOptions& options) {
  const auto files = system::is_folder(path) ? find_checkpoint(path) : std::vector{path};
  const auto& found = files.front();
  Catalog catalog;
  if (files.size() > 1 || (found != path && is_distributed_shard(found))) {
    std::vector<std::shared_ptr<const File>> opened;
    for (const auto& file : files) {
      opened.push_back(File::open(file));
    }
    catalog = distributed_catalog(read_distributed_safetensors(opened), found, options.key);
  } else if (is_index(found)) {
    catalog = open_index(found, options);
  } else if (file_name_of(found) == kDistributedMetadata) {
    catalog = distributed_catalog(read_distributed(found), found, options.key);
  } else {
    const auto parts = gguf_parts(found);
    for (size_t i = 0; i < parts.size(); ++i) {
      const auto file = File::open(parts[i]);
      auto contents = read(file, options);
      check_part(contents, *file, i, parts.size());
      add(catalog, std::move(contents));
    }
  }
  return options.decode ? decode(std::move(catalog), found, options) : catalog;
}

}  // namespace dormant::checkpoint
