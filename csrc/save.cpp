// The public C++ interface to saving.
#include <ATen/ops/from_blob.h>
#include <c10/util/Exception.h>
#include <dormant/save.h>
#include <sys/stat.h>

#include <cerrno>
#include <filesystem>
#include <optional>
#include <string_view>
#include <system_error>
#include <utility>

#include "checkpoint/safetensors_dtypes.h"
#include "checkpoint/safetensors_layout.h"
#include "publication/publication.h"
#include "record/identity.h"
#include "saving/safetensors_folder.h"
#include "system/dispatch_state.h"
#include "text/printable.h"
#include "tile/sink.h"

namespace dormant {
namespace {

namespace fs = std::filesystem;
using publication::Publication;
using publication::Replacement;
using text::in_quotes;
using text::printable;

constexpr std::string_view kSafetensors = ".safetensors";

/// A tensor to be written, under its first name.
struct SavedTensor {
  std::string name;
  at::Tensor tensor;

  uint64_t nbytes() const { return static_cast<uint64_t>(tensor.numel()) * tensor.element_size(); }
};

/// Why safetensors cannot hold a tensor; std::nullopt where it can.
std::optional<std::string> obstacle(const at::Tensor& tensor) {
  if (tensor.layout() != at::kStrided || tensor.is_nested()) {
    return c10::str("its layout is ", tensor.layout(), tensor.is_nested() ? " (nested)" : "",
                    ", expected a strided tensor");
  }
  const auto* dtype = checkpoint::find_safetensors_dtype(tensor.scalar_type());
  if (dtype == nullptr) {
    return c10::str("the format has no ", tensor.scalar_type());
  }
  if (dtype->packed > 1 && tensor.dim() == 0) {
    return c10::str("the format has no scalars of ", tensor.scalar_type());
  }
  if (tensor.is_meta() || !tensor.has_storage()) {
    return c10::str("it is on device '", tensor.device(), "' and has no values");
  }
  return std::nullopt;
}

/// c10::ValueError unless safetensors can hold all of them.
void check(const NamedTensors& tensors) {
  std::vector<std::string> refused;
  std::map<std::string_view, size_t> names;
  for (const auto& [name, tensor] : tensors) {
    if (!tensor.defined()) {
      continue;
    }
    std::optional<std::string> cause;
    if (name == checkpoint::kSafetensorsMetadata) {
      cause = "the format reserves this name";
    } else if (text::first_not_utf8(name) != std::string::npos) {
      cause = "its name is not UTF-8";
    } else if (++names[name] == 2) {
      cause = "the name is given twice";
    } else {
      cause = obstacle(tensor);
    }
    if (cause) {
      refused.push_back(in_quotes(name) + ": " + *cause);
    }
  }
  if (refused.empty()) {
    return;
  }
  std::string list;
  for (const auto& each : refused) {
    list += (list.empty() ? "" : "; ") + each;
  }
  TORCH_CHECK_VALUE(false, "save: safetensors cannot hold ", refused.size(), " of ", tensors.size(),
                    " entries: ", list,
                    ". Leave them out, convert them, or save them in another format.");
}

/// Each tensor once, under its first name; its others go to `tied`.
std::vector<SavedTensor> without_ties(const NamedTensors& tensors,
                                      std::map<std::string, std::string>& tied) {
  std::map<record::Identity, std::string> known;
  std::vector<SavedTensor> saved;
  for (const auto& [name, tensor] : tensors) {
    if (!tensor.defined()) {
      continue;  // libtorch's way to say that a layer has no bias
    }
    const auto [first, is_new] = known.emplace(record::identity_of(tensor), name);
    if (is_new) {
      saved.push_back({name, tensor});
    } else {
      tied.emplace(name, first->second);
    }
  }
  return saved;
}

/// One file, laid out.
struct FilePlan {
  std::string prefix;
  std::vector<tile::Output> outputs;
  uint64_t nbytes;
  size_t tensor_bytes = 0;

  FilePlan(const std::vector<SavedTensor>& tensors,
           const std::vector<std::pair<std::string, std::string>>& metadata) {
    std::vector<checkpoint::TensorToWrite> described;
    for (const auto& saved : tensors) {
      described.push_back({saved.name, saved.tensor.scalar_type(), saved.tensor.sizes().vec()});
    }
    auto layout = checkpoint::lay_out_safetensors(described, metadata);
    prefix = std::move(layout.prefix);
    nbytes = layout.nbytes;
    for (size_t i = 0; i < tensors.size(); ++i) {
      outputs.push_back({tensors[i].tensor, static_cast<int64_t>(layout.offsets[i])});
      tensor_bytes += tensors[i].nbytes();
    }
  }
};

saving::SafetensorsFolder divide(const std::vector<SavedTensor>& tensors, uint64_t limit) {
  std::vector<uint64_t> sizes;
  std::vector<std::string> names;
  for (const auto& saved : tensors) {
    sizes.push_back(saved.nbytes());
    names.push_back(saved.name);
  }
  return {std::move(names), sizes, limit};
}

void write_bytes(const std::string& bytes, const tile::Sink& sink) {
  const auto tensor =
      at::from_blob(const_cast<char*>(bytes.data()), {static_cast<int64_t>(bytes.size())},
                    at::TensorOptions(at::kByte).device(at::kCPU));
  tile::write({{tensor, 0}}, sink);
}

/// std::system_error (EIO) unless an open file has so many bytes.
void check_size(int descriptor, uint64_t nbytes, const std::string& path) {
  struct stat status{};
  const bool is_known = ::fstat(descriptor, &status) == 0;
  if (!is_known || static_cast<uint64_t>(status.st_size) != nbytes) {
    throw std::system_error(
        EIO, std::generic_category(),
        "save: " + path + " has " +
            (is_known ? std::to_string(status.st_size) : std::string("an unknown number of")) +
            " bytes after writing, expected " + std::to_string(nbytes) +
            ". Another process changed it meanwhile; save again");
  }
}

struct Target {
  fs::path folder;
  std::string file;  ///< empty: the folder is the target
};

Target target_of(const std::string& path) {
  TORCH_CHECK_VALUE(!path.empty(), "save: got an empty path. Expected that of a file or a folder.");
  std::error_code error;
  const fs::path target(path);
  if (fs::is_directory(target, error) || path.ends_with('/')) {
    return {target, {}};
  }
  const auto ending = target.extension().string();
  TORCH_CHECK_NOT_IMPLEMENTED(
      ending != ".pt" && ending != ".pth" && ending != ".bin", "save: ", printable(path),
      " names a file of torch.save, which C++ does not write. Next: name a file that ends in "
      "'.safetensors' or a folder, or save from Python.");
  if (ending != kSafetensors) {
    return {target, {}};
  }
  auto folder = target.parent_path();
  return {folder.empty() ? fs::path(".") : folder, target.filename().string()};
}

}  // namespace

SaveReport save(const NamedTensors& tensors, const std::string& path, const SaveOptions& options) {
  const auto on_step = system::in_this_state(options.on_step);
  const system::PlainDispatch plain;
  TORCH_CHECK_VALUE(options.max_shard_size > 0,
                    "save: max_shard_size must be a positive number of bytes, got 0");
  const auto target = target_of(path);
  check(tensors);
  SaveReport report;
  const auto saved = without_ties(tensors, report.tied);

  std::vector<std::pair<std::string, std::string>> metadata;
  if (!options.metadata.contains("format")) {
    // What readers that serve several frameworks ask for.
    metadata.emplace_back("format", "pt");
  }
  metadata.insert(metadata.end(), options.metadata.begin(), options.metadata.end());

  std::vector<std::pair<std::string, FilePlan>> files;
  std::optional<saving::SafetensorsFolder> division;
  if (!target.file.empty()) {
    files.emplace_back(target.file, FilePlan(saved, metadata));
  } else {
    division.emplace(divide(saved, options.max_shard_size));
    for (const auto& file : division->files()) {
      std::vector<SavedTensor> shard;
      for (const auto i : file.tensors) {
        shard.push_back(saved[i]);
      }
      files.emplace_back(file.name, FilePlan(shard, metadata));
    }
  }
  uint64_t nbytes = 0;
  for (const auto& [name, plan] : files) {
    nbytes += plan.nbytes;
    report.bytes += plan.tensor_bytes;
    report.files.push_back((target.folder / name).string());
  }
  for (const auto& each : saved) {
    report.saved.push_back(each.name);
  }
  if (options.memory_budget) {
    std::vector<tile::Output> all;
    for (const auto& [name, plan] : files) {
      all.insert(all.end(), plan.outputs.begin(), plan.outputs.end());
    }
    tile::check_write_budget(all, *options.memory_budget);
  }

  publication::MadeFolder made(target.folder.string());
  Publication publication(target.folder.string());
  publication.check_room(nbytes);
  size_t before = 0;
  for (const auto& [name, plan] : files) {
    const auto shown = printable((target.folder / name).string());
    publication.create(name, [&, &plan = plan](int descriptor) {
      const tile::FileSink sink(descriptor, shown);
      write_bytes(plan.prefix, sink);
      tile::WriteOptions how{options.memory_budget, {}};
      if (on_step) {
        how.on_bytes = [&](size_t done, size_t) { on_step(before + done, report.bytes); };
      }
      tile::write(plan.outputs, sink, how);
      check_size(descriptor, plan.nbytes, shown);
    });
    before += plan.tensor_bytes;
  }
  publication.publish([&](Replacement& replacement) {
    if (division) {
      division->replace_earlier(replacement, [&](const std::string& bytes, int descriptor) {
        write_bytes(bytes,
                    tile::FileSink(descriptor, printable((target.folder / "the index").string())));
      });
    } else {
      replacement.place(target.file);
    }
  });
  made.stay();
  return report;
}

}  // namespace dormant
