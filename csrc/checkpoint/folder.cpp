#include "checkpoint/folder.h"

#include <c10/util/Exception.h>

#include <algorithm>
#include <array>
#include <map>
#include <regex>

#include "checkpoint/dcp.h"
#include "checkpoint/gguf.h"
#include "checkpoint/paths.h"
#include "system/folder.h"
#include "text/printable.h"

namespace dormant::checkpoint {
namespace {

using Names = std::vector<std::string>;

// What transformers takes from a folder, in its order (transformers/modeling_utils.py).
constexpr std::array kFirst = {"model.safetensors", "model.safetensors.index.json",
                               "pytorch_model.bin", "pytorch_model.bin.index.json"};
// Then what is of the first of these kinds.
constexpr std::array<std::string_view, 5> kKinds = {".safetensors", ".bin", ".pth", ".pt", ".gguf"};

std::string_view name_of(std::string_view path) {
  return path.substr(path.rfind('/') + 1);  // npos + 1 is 0
}

Names names_in(const std::string& folder) {
  auto names = system::names_in(folder, "open_checkpoint");
  std::erase_if(names, [&](const auto& name) { return !system::is_file(in_folder(folder, name)); });
  std::sort(names.begin(), names.end());
  return names;
}

bool has(const Names& names, std::string_view name) {
  return std::find(names.begin(), names.end(), name) != names.end();
}

/// What is before the first `kind` in a name, and what is behind it.
std::pair<std::string_view, std::string_view> parted(std::string_view name, std::string_view kind) {
  const auto at = name.find(kind);
  return at == std::string_view::npos
             ? std::pair(name, std::string_view())
             : std::pair(name.substr(0, at), name.substr(at + kind.size()));
}

/// model-00001-of-00004, of a variant model.fp16-00001-of-00004 or model-00001-of-00004.fp16.
bool is_shard(const std::string& stem) {
  static const std::regex pattern(R"([^]*-[0-9]+-of-[0-9]+(\.[^.]+)?)");
  return std::regex_match(stem, pattern);
}

/// The checkpoints of one kind: indices, and files that stand alone.
Names choices_of(const Names& names, std::string_view kind) {
  Names files;
  Names indices;
  for (const auto& name : names) {
    if (name.ends_with(kind)) {
      files.push_back(name);
    } else if (is_index(name) && name.find(std::string(kind) + ".index.") != std::string::npos) {
      indices.push_back(name);
    }
  }
  if (!indices.empty()) {
    // What is called otherwise is one of the files that an index names.
    auto choices = indices;
    for (const auto& file : files) {
      const bool beside = std::any_of(indices.begin(), indices.end(), [&](const auto& index) {
        return file.starts_with(std::string(parted(index, kind).first) + ".");
      });
      if (beside && !is_shard(file.substr(0, file.size() - kind.size()))) {
        choices.push_back(file);
      }
    }
    return choices;
  }
  if (kind == ".gguf") {
    // Of a split file the part that is there first stands for all.
    std::map<std::string, std::string> firsts;
    for (const auto& name : files) {
      firsts.try_emplace(gguf_parts(name).front(), name);
    }
    Names choices;
    for (const auto& [first, name] : firsts) {
      choices.push_back(name);
    }
    return choices;
  }
  if (files.size() > 1) {
    // accelerate has an index of files that are called anything: weight_map.index.json.
    Names others;
    for (const auto& name : names) {
      const bool is_of_a_kind = std::any_of(kKinds.begin(), kKinds.end(), [&](auto each) {
        return name.ends_with(std::string(each) + ".index.json");
      });
      if (name.ends_with(".index.json") && !is_of_a_kind) {
        others.push_back(name);
      }
    }
    return others.empty() ? files : others;
  }
  return files;
}

[[noreturn]] void refuse_choice(const std::string& folder, const Names& names) {
  std::string list;
  for (const auto& name : names) {
    list += list.empty() ? "" : ", ";
    list += text::in_quotes(name);
  }
  TORCH_CHECK_VALUE(false, "open_checkpoint: the folder ", text::printable(folder), " holds ",
                    names.size(), " checkpoints: ", text::printable(list),
                    ", expected one. Next: pass the path of one of them.");
}

/// The only choice, or the one of which all others are variants.
std::string plain(const Names& choices, const std::string& folder, std::string_view kind) {
  if (choices.size() == 1) {
    return choices.front();
  }
  const auto is_plain = [](std::string_view rest) { return rest.empty() || rest == ".index.json"; };
  for (const auto& name : choices) {
    const auto [stem, rest] = parted(name, kind);
    const auto is_variant = [&, stem = stem](const std::string& other) {
      const auto [own, behind] = parted(other, kind);
      return other == name || own.starts_with(std::string(stem) + ".") ||
             (own == stem && !is_plain(behind));
    };
    if (is_plain(rest) && std::all_of(choices.begin(), choices.end(), is_variant)) {
      return name;
    }
  }
  refuse_choice(folder, choices);
}

}  // namespace

bool is_index(std::string_view path) {
  auto name = name_of(path);
  constexpr std::string_view kEnding = ".json";
  constexpr std::string_view kIndex = ".index";
  if (!name.ends_with(kEnding)) {
    return false;
  }
  name.remove_suffix(kEnding.size());
  if (name.ends_with(kIndex)) {
    return true;
  }
  const auto dot = name.rfind('.');
  return dot != std::string_view::npos && dot + 1 < name.size() &&
         name.substr(0, dot).ends_with(kIndex);
}

bool is_distributed_shard(std::string_view path) {
  static const std::regex pattern(R"(shard-[0-9]{5}-model-[0-9]{5}-of-[0-9]{5}\.safetensors)");
  return std::regex_match(std::string(name_of(path)), pattern);
}

std::vector<std::string> find_checkpoint(const std::string& folder) {
  const auto names = names_in(folder);
  const auto path = [&](const std::string& name) { return in_folder(folder, name); };
  for (const std::string name : kFirst) {
    if (has(names, name)) {
      if (has(names, kDistributedMetadata)) {
        refuse_choice(folder, {name, kDistributedMetadata});
      }
      return {path(name)};
    }
  }
  // LLaMA: consolidated.00.pth; LLaMA2-Accessory: consolidated.00-of-02.model.pth.
  static const std::regex part(
      R"(consolidated\.[0-9]{1,9}(-of-[0-9]{1,9}\.(model|model-diff))?\.pth)");
  const auto parts = std::count_if(names.begin(), names.end(),
                                   [](const auto& name) { return std::regex_match(name, part); });
  TORCH_CHECK_NOT_IMPLEMENTED(parts < 2, "open_checkpoint: the folder ", text::printable(folder),
                              " holds ", parts,
                              " parts of a tensor-parallel set, which C++ does not merge. Next: "
                              "convert it by `dormant convert`, or open one part by its path.");
  if (has(names, kDistributedMetadata)) {
    return {path(kDistributedMetadata)};
  }
  Names shards;
  for (const auto& name : names) {
    if (is_distributed_shard(name)) {
      shards.push_back(path(name));
    }
  }
  if (!shards.empty()) {
    return shards;
  }
  for (const auto kind : kKinds) {
    if (const auto choices = choices_of(names, kind); !choices.empty()) {
      return {path(plain(choices, folder, kind))};
    }
  }
  TORCH_CHECK_VALUE(false, "open_checkpoint: the folder ", text::printable(folder),
                    " contains no checkpoint, expected model.safetensors, "
                    "model.safetensors.index.json, pytorch_model.bin, its index, .metadata, or one "
                    "file *.safetensors, *.bin, *.pth, *.pt, or its index, or *.gguf. Next: pass "
                    "the path of a file.");
}

}  // namespace dormant::checkpoint
