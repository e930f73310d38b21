// Files of torch.save: the pickle in them, and where the storages lie that it refers to.
//
// The layout since torch 1.6 is a zip file: `NAME/data.pkl` is the pickle, `NAME/data/KEY` has the
// bytes of the storage KEY. Before that, pickles follow one another (a magic number, a protocol
// version, facts about the system, the object, the list of storage keys), then for each key the
// number of its elements (8 bytes) and its bytes (torch/serialization.py, _legacy_save).
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "checkpoint/pickle.h"
#include "checkpoint/torch_objects.h"
#include "system/export.h"

namespace dormant::checkpoint {

class File;

/// Bytes of a file with the CRC-32 that they should have; none where the file has none.
struct CheckedRun {
  std::string record;
  uint64_t offset;
  uint64_t nbytes;
  std::optional<uint32_t> crc;
};

struct TorchArchive {
  /// Where in the file a storage lies.
  struct Run {
    uint64_t offset;
    uint64_t nbytes;
  };

  Pickle pickle;
  TorchObjects objects;  ///< of the pickle
  std::map<std::string, Run> storages;
  std::vector<CheckedRun> checksums;

  explicit TorchArchive(Pickle read) : pickle(std::move(read)), objects(pickle) {}
  TorchArchive(const TorchArchive&) = delete;
  TorchArchive& operator=(const TorchArchive&) = delete;
};

/// Whether a file that begins with these bytes, 512 if it has as many, is one of torch.save, in any
/// of its layouts.
DORMANT_BINDINGS_API bool is_torch_file(std::string_view first_bytes);

/// Reads everything in such a file but the bytes of storages. c10::ValueError where it is damaged
/// or contradicts itself; c10::NotImplementedError for the layout before torch 0.1.10.
DORMANT_BINDINGS_API std::unique_ptr<const TorchArchive> read_torch_archive(const File& file);

}  // namespace dormant::checkpoint
