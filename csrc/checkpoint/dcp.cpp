#include "checkpoint/dcp.h"

#include <c10/util/Exception.h>

#include <optional>
#include <string_view>
#include <unordered_map>
#include <utility>

#include "checkpoint/dcp_tensors.h"
#include "checkpoint/index.h"
#include "checkpoint/paths.h"
#include "checkpoint/pickle.h"
#include "checkpoint/safetensors.h"
#include "checkpoint/tensor_archive.h"
#include "checkpoint/torch_objects.h"
#include "text/printable.h"

namespace dormant::checkpoint {
namespace {

constexpr const char* kDamaged =
    "Cause: the file is damaged, or written by a release of torch with another layout. Next: load "
    "it with "
    "torch.distributed.checkpoint, and save it again.";

/// Where the bytes of a value lie.
struct Stored {
  std::string path;
  uint64_t offset = 0;
  uint64_t length = 0;
};

/// Reads the pickle of `.metadata`.
class MetadataReader {
 public:
  MetadataReader(const Pickle& pickle, std::string where, const OpenBeside& open)
      : pickle_(pickle), where_(std::move(where)), open_(open) {}

  DistributedCheckpoint read() {
    const auto root = instance(pickle_.root(), "Metadata");
    read_storage(required(root, "storage_data"));
    const auto entries = dict(required(root, "state_dict_metadata"));
    for (size_t i = 0; i < entries.size(); i += 2) {
      add(text(entries[i]), entries[i + 1]);
    }
    if (const auto planner = attribute(root, "planner_data")) {
      read_paths(*planner);
    }
    read_about(root);
    for (const auto& [path, file] : files_) {
      result_.files.push_back(file);
    }
    return std::move(result_);
  }

 private:
  using Values = std::span<const PickleId>;

  [[noreturn]] void refuse(PickleId id, const std::string& expected) const {
    TORCH_CHECK_VALUE(false, "open_checkpoint: ", where_, ": got ", pickle_.describe(id),
                      " at byte ", pickle_.offset(id), ", expected ", expected, ". ", kDamaged);
  }
  [[noreturn]] void refuse_tensor(const std::string& name, const std::string& problem) const {
    TORCH_CHECK_VALUE(false, "open_checkpoint: ", where_, ": tensor ", text::in_quotes(name), " ",
                      problem, ". ", kDamaged);
  }

  /// A value of one of torch's classes, wherever in torch.distributed the class was at the time.
  bool is_instance(PickleId id, std::string_view name) const {
    if (!pickle_.is(id, PickleKind::record) || !pickle_.record(id).is_new ||
        !pickle_.is(pickle_.record(id).callable, PickleKind::global)) {
      return false;
    }
    const auto [module, own] = pickle_.global(pickle_.record(id).callable);
    return own == name && module.starts_with("torch.distributed");
  }
  PickleId instance(PickleId id, const std::string& name) const {
    if (!is_instance(id, name)) {
      refuse(id, "a " + name + " of torch.distributed.checkpoint");
    }
    return id;
  }
  std::optional<PickleId> attribute(PickleId instance, std::string_view name) const {
    const auto state = pickle_.record(instance).state;
    if (!state || !pickle_.is(*state, PickleKind::dict)) {
      return std::nullopt;
    }
    const auto found = pickle_.find(*state, name);
    return found && !pickle_.is(*found, PickleKind::none) ? found : std::nullopt;
  }
  PickleId required(PickleId instance, const std::string& name) const {
    const auto found = attribute(instance, name);
    if (!found) {
      refuse(instance, "an object with attribute " + name);
    }
    return *found;
  }

  Values dict(PickleId id) const {
    if (!pickle_.is(id, PickleKind::dict)) {
      refuse(id, "a dict");
    }
    return pickle_.items(id);
  }
  std::string text(PickleId id) const {
    if (!pickle_.is(id, PickleKind::text) ||
        text::first_not_utf8(pickle_.text(id)) != std::string_view::npos) {
      refuse(id, "text");
    }
    return std::string(pickle_.text(id));
  }
  int64_t count(PickleId id) const {
    const auto value = pickle_.is(id, PickleKind::integer) ? pickle_.integer(id) : std::nullopt;
    if (!value || *value < 0) {
      refuse(id, "a non-negative number");
    }
    return *value;
  }
  /// A torch.Size.
  std::vector<int64_t> sizes(PickleId id) const {
    auto values = id;
    if (pickle_.is_call(id, "torch", "Size")) {
      const auto arguments = pickle_.items(pickle_.record(id).arguments);
      if (arguments.size() != 1) {
        refuse(id, "a torch.Size of one tuple");
      }
      values = arguments[0];
    }
    if (!pickle_.is(values, PickleKind::tuple) && !pickle_.is(values, PickleKind::list)) {
      refuse(id, "a torch.Size");
    }
    std::vector<int64_t> found;
    for (const auto item : pickle_.items(values)) {
      found.push_back(count(item));
    }
    if (found.size() > kMostDimensions) {
      refuse(id, "at most " + std::to_string(kMostDimensions) + " dimensions");
    }
    return found;
  }
  c10::ScalarType dtype(PickleId properties) const {
    const auto state = pickle_.record(properties).state;
    const bool is_tuple = state && pickle_.is(*state, PickleKind::tuple);
    if (!is_tuple || pickle_.items(*state).empty()) {
      refuse(properties, "TensorProperties with a dtype");
    }
    const auto id = pickle_.items(*state).front();
    if (!pickle_.is(id, PickleKind::global) || pickle_.global(id).module != "torch") {
      refuse(id, "a dtype");
    }
    const auto found = dtype_named(pickle_.global(id).name);
    TORCH_CHECK_NOT_IMPLEMENTED(found, "open_checkpoint: ", where_, ": got ", pickle_.describe(id),
                                " at byte ", pickle_.offset(id),
                                ", expected a dtype of plain elements. Next: load it with "
                                "torch.distributed.checkpoint.");
    return *found;
  }

  /// Equal for the same part of the same value.
  static std::string key_of(const std::string& name, const std::vector<int64_t>& offsets) {
    auto key = name;
    key.push_back('\0');
    for (const auto offset : offsets) {
      key += std::to_string(offset) + ',';
    }
    return key;
  }

  void read_storage(PickleId id) {
    const auto entries = dict(id);
    for (size_t i = 0; i < entries.size(); i += 2) {
      const auto index = instance(entries[i], "MetadataIndex");
      const auto offset = attribute(index, "offset");
      auto key =
          key_of(text(required(index, "fqn")), offset ? sizes(*offset) : std::vector<int64_t>{});
      const auto info = instance(entries[i + 1], "_StorageInfo");
      const auto path = required(info, "relative_path");
      Stored stored{text(path), static_cast<uint64_t>(count(required(info, "offset"))),
                    static_cast<uint64_t>(count(required(info, "length")))};
      if (const auto* cause = obstacle_to_path(stored.path)) {
        refuse(path, "a path within the folder, not " + std::string(cause));
      }
      if (const auto transforms = attribute(info, "transform_descriptors")) {
        const bool is_list =
            pickle_.is(*transforms, PickleKind::list) || pickle_.is(*transforms, PickleKind::tuple);
        const auto values = is_list ? pickle_.items(*transforms) : Values();
        TORCH_CHECK_NOT_IMPLEMENTED(
            is_list && values.empty(), "open_checkpoint: ", where_, ": ",
            text::in_quotes(stored.path), " was transformed by ",
            values.empty() ? pickle_.describe(*transforms) : pickle_.describe(values.front()),
            " when it was written, expected plain bytes. Next: load it with "
            "torch.distributed.checkpoint and save it without extensions.");
      }
      if (!stored_.emplace(std::move(key), std::move(stored)).second) {
        refuse(index, "each part once");
      }
    }
  }

  const Stored& stored(const std::string& name, const std::vector<int64_t>& offsets) const {
    const auto found = stored_.find(key_of(name, offsets));
    if (found == stored_.end()) {
      refuse_tensor(name, c10::str("has a part at ", c10::IntArrayRef(offsets),
                                   " whose location storage_data does not give"));
    }
    return found->second;
  }

  std::shared_ptr<const File> file_of(const std::string& name, const Stored& stored) {
    auto& file = files_[stored.path];
    if (!file) {
      file = open_(stored.path);
    }
    if (stored.offset > file->size() || stored.length > file->size() - stored.offset) {
      refuse_tensor(name, c10::str("has ", stored.length, " bytes at byte ", stored.offset, " of ",
                                   file->name(), ", which has ", file->size(), " bytes"));
    }
    return file;
  }

  void add(std::string name, PickleId id) {
    if (!names_.emplace(name, id).second) {
      refuse_tensor(name, "is described twice");
    }
    if (is_instance(id, "BytesStorageMetadata")) {
      const auto& place = stored(name, {});
      auto file = file_of(name, place);
      result_.objects.push_back({std::move(name), std::move(file), place.offset, place.length});
      return;
    }
    instance(id, "TensorStorageMetadata");
    const auto type = dtype(instance(required(id, "properties"), "TensorProperties"));
    auto whole = sizes(required(id, "size"));
    const auto chunks = required(id, "chunks");
    if (!pickle_.is(chunks, PickleKind::list)) {
      refuse(chunks, "a list");
    }
    std::vector<Piece> pieces;
    for (const auto chunk : pickle_.items(chunks)) {
      instance(chunk, "ChunkStorageMetadata");
      auto begin = sizes(required(chunk, "offsets"));
      const auto size = sizes(required(chunk, "sizes"));
      std::vector<int64_t> end(begin.size());
      bool inside = begin.size() == whole.size() && size.size() == whole.size();
      for (size_t i = 0; inside && i < whole.size(); ++i) {
        inside = begin[i] <= whole[i] && size[i] <= whole[i] - begin[i];
        end[i] = inside ? begin[i] + size[i] : 0;
      }
      if (!inside) {
        refuse_tensor(name, c10::str("has a part at ", c10::IntArrayRef(begin), " with sizes ",
                                     c10::IntArrayRef(size), " outside the sizes of the tensor, ",
                                     c10::IntArrayRef(whole)));
      }
      Box box{begin, std::move(end)};
      if (box.empty()) {
        continue;  // of a rank that has nothing of it
      }
      const auto& place = stored(name, begin);
      pieces.push_back({std::move(box), file_of(name, place), place.offset, place.length});
    }
    result_.tensors.push_back(tensors_.add(where_, std::move(name), type, std::move(whole),
                                           std::move(pieces), archives_));
  }

  /// What planners of other programs keep there says nothing of names.
  void read_paths(PickleId id) {
    if (!pickle_.is(id, PickleKind::dict)) {
      return;
    }
    const auto entries = pickle_.items(id);
    for (size_t i = 0; i < entries.size(); i += 2) {
      if (!pickle_.is(entries[i], PickleKind::text) ||
          !pickle_.is(entries[i + 1], PickleKind::tuple)) {
        continue;
      }
      ValuePath path;
      for (const auto key : pickle_.items(entries[i + 1])) {
        if (pickle_.is(key, PickleKind::integer)) {
          path.emplace_back(count(key));
        } else {
          path.emplace_back(text(key));
        }
      }
      if (const auto name = text(entries[i]); !path.empty() && names_.contains(name)) {
        result_.paths.insert_or_assign(name, std::move(path));
      }
    }
  }

  void read_about(PickleId root) {
    const auto keep = [&](const char* name, std::optional<PickleId> value) {
      if (value && pickle_.is(*value, PickleKind::text)) {
        result_.metadata.emplace(name, text(*value));
      }
    };
    keep("version", attribute(root, "version"));
    if (const auto meta = attribute(root, "storage_meta");
        meta && is_instance(*meta, "StorageMeta")) {
      keep("save_id", attribute(*meta, "save_id"));
    }
  }

  const Pickle& pickle_;
  const std::string where_;
  const OpenBeside& open_;
  const std::shared_ptr<const PieceLocator> archives_ = std::make_shared<TensorArchives>();
  std::unordered_map<std::string, Stored> stored_;
  std::unordered_map<std::string, PickleId> names_;
  std::map<std::string, std::shared_ptr<const File>> files_;
  DistributedTensors tensors_;
  DistributedCheckpoint result_;
};

}  // namespace

DistributedCheckpoint read_distributed(const File& metadata, const OpenBeside& open) {
  const auto pickle = Pickle::read(metadata, 0, metadata.name());
  return MetadataReader(pickle, metadata.name(), open).read();
}

DistributedCheckpoint read_distributed(const std::string& path) {
  const auto file = File::open(path);
  const auto folder = folder_of(file->path());
  return read_distributed(*file, [&](const std::string& relative) {
    auto data = File::open(in_folder(folder, relative));
    data->copy_always();  // torch's writer empties the file that it replaces
    return data;
  });
}

}  // namespace dormant::checkpoint
