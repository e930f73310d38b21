#include "checkpoint/index.h"

#include <c10/util/Exception.h>

#include <cstdint>
#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>
#include <string>
#include <system_error>
#include <utility>
#include <vector>

#include "checkpoint/file.h"
#include "checkpoint/paths.h"
#include "text/json_reader.h"
#include "text/printable.h"

namespace dormant::checkpoint {
namespace {

using nlohmann::json;

// A name of a tensor and of its file take about 100 bytes; no index has a million tensors.
constexpr uint64_t kLongestIndex = 100'000'000;
constexpr size_t kDeepest = 16;
constexpr const char* kWeightMap = "weight_map";
constexpr const char* kMetadata = "metadata";
constexpr const char* kDamaged =
    "Cause: the file is damaged or incomplete, or has another format. Next: download or save it "
    "again.";

class IndexReader final : public text::JsonHandler {
 public:
  explicit IndexReader(const std::string& file) : file_(file) {}

  void begin_object() override {
    is_flat_ = is_flat_ && depth_ == 0;
    if (depth_ == 1 && field_ == kWeightMap) {
      has_weight_map_ = true;
    } else if (depth_ >= 1) {
      refuse_in_weight_map("an object");
    }
    ++depth_;
  }

  void end_object() override { --depth_; }

  void begin_array() override {
    is_flat_ = false;
    refuse_in_weight_map("an array");
    refuse("an array");
    ++depth_;
  }

  void end_array() override { --depth_; }

  void key(std::string& name) override {
    if (depth_ == 1) {
      field_ = std::move(name);
    } else if (in_weight_map()) {
      tensor_ = std::move(name);
      TORCH_CHECK_VALUE(!tensor_.empty(), "open_checkpoint: ", file_,
                        ": a tensor without a name before byte ", position(), ", expected text. ",
                        kDamaged);
    }
  }

  void string(std::string& value) override {
    if (depth_ == 1 && field_ != kWeightMap && field_ != kMetadata) {
      keep_flat(value);
      return;
    }
    if (!in_weight_map()) {
      refuse("a string");
      return;
    }
    const auto cause = refusal(tensor_, value);
    TORCH_CHECK_VALUE(cause.empty(), cause);
    index_.files.emplace(std::move(tensor_), std::move(value));
  }

  void integer(uint64_t value) override { scalar(std::to_string(value)); }
  void number(const std::string& text) override { scalar(text); }
  void literal(const char* text) override { scalar(text); }

  Index finish() {
    // accelerate writes the map alone.
    if (!has_weight_map_ && is_flat_ && !flat_.empty()) {
      TORCH_CHECK_VALUE(flat_obstacle_.empty(), flat_obstacle_);
      index_.files = std::move(flat_);
      return std::move(index_);
    }
    TORCH_CHECK_VALUE(
        has_weight_map_, "open_checkpoint: ", file_,
        ": \"weight_map\" is missing, expected an object from names of tensors to files. ",
        kDamaged);
    return std::move(index_);
  }

 private:
  /// Why a tensor must not be in `shard`; empty where it may.
  std::string refusal(const std::string& tensor, const std::string& shard) const {
    if (tensor.empty()) {
      return c10::str("open_checkpoint: ", file_, ": a tensor without a name before byte ",
                      position(), ", expected text. ", kDamaged);
    }
    const auto* cause = obstacle_to_path(shard);
    return cause == nullptr
               ? ""
               : c10::str("open_checkpoint: ", file_, ": tensor ", text::in_quotes(tensor),
                          " is in ", text::in_quotes(shard), " before byte ", position(), ": ",
                          cause, ", expected the name of a file beside the index. ", kDamaged);
  }

  /// A pair of text, which means something if the document has nothing else.
  void keep_flat(std::string& shard) {
    if (flat_obstacle_.empty()) {
      flat_obstacle_ = refusal(field_, shard);
    }
    flat_.emplace(std::move(field_), std::move(shard));
    field_.clear();
  }

  bool in_weight_map() const { return depth_ == 2 && field_ == kWeightMap; }

  void refuse_in_weight_map(const std::string& got) const {
    TORCH_CHECK_VALUE(!in_weight_map(), "open_checkpoint: ", file_, ": tensor ",
                      text::in_quotes(tensor_), " has ", got, " before byte ", position(),
                      ", expected the name of its file. ", kDamaged);
  }

  /// The two fields that mean something are objects.
  void refuse(const std::string& got) const {
    TORCH_CHECK_VALUE(depth_ != 1 || (field_ != kWeightMap && field_ != kMetadata),
                      "open_checkpoint: ", file_, ": ", text::in_quotes(field_), " is ", got,
                      " before byte ", position(), ", expected an object. ", kDamaged);
  }

  void scalar(const std::string& got) {
    is_flat_ = is_flat_ && depth_ != 1;
    refuse_in_weight_map(got);
    refuse(got);
  }

  const std::string& file_;
  Index index_;
  size_t depth_ = 0;
  bool has_weight_map_ = false;
  bool is_flat_ = true;  // nothing but pairs of text so far
  std::string field_;
  std::string tensor_;
  std::map<std::string, std::string> flat_;
  std::string flat_obstacle_;
};

/// The metadata of a document that has been checked.
std::string metadata_of(std::string_view document) {
  const auto without_weight_map = [](int depth, json::parse_event_t event, json& value) {
    return !(depth == 1 && event == json::parse_event_t::key && value == kWeightMap);
  };
  const auto parsed = json::parse(document, without_weight_map);
  return parsed.contains(kMetadata) ? parsed.at(kMetadata).dump() : "{}";
}

}  // namespace

const char* obstacle_to_path(std::string_view path) {
  if (path.empty()) {
    return "an empty path";
  }
  if (path.front() == '/') {
    return "an absolute path";
  }
  if (path.find('\0') != std::string_view::npos) {
    return "a path with a null character";
  }
  while (true) {
    const auto slash = path.find('/');
    const auto part = path.substr(0, slash);
    if (part == "..") {
      return "a path that leaves the folder";
    }
    if (part.empty() || part == ".") {
      return "a path that is not normalized";
    }
    if (slash == std::string_view::npos) {
      return nullptr;
    }
    path.remove_prefix(slash + 1);
  }
}

Index parse_index(std::string_view document, const std::string& file) {
  IndexReader reader(file);
  text::read_json_object({document, file, "the index", 0}, kDeepest, reader);
  auto index = reader.finish();
  index.metadata = metadata_of(document);
  return index;
}

Index parse_index(const File& file) {
  TORCH_CHECK_VALUE(file.size() <= kLongestIndex, "open_checkpoint: ", file.name(),
                    ": the index has ", file.size(), " bytes, expected at most ", kLongestIndex,
                    ". ", kDamaged);
  std::string document(file.size(), '\0');
  file.read(0, document.size(), document.data());
  return parse_index(document, file.name());
}

Index read_index(const std::string& path) {
  const auto file = File::open(path);
  auto index = parse_index(*file);

  const auto folder = folder_of(file->path());
  std::set<std::string> found;
  std::set<std::string> absent;
  for (auto& [tensor, shard] : index.files) {
    const auto full = in_folder(folder, shard);
    if (!found.contains(full) && !absent.contains(shard)) {
      std::error_code error;
      if (std::filesystem::is_regular_file(full, error)) {
        found.insert(full);
      } else {
        absent.insert(shard);
      }
    }
    shard = full;
  }
  std::string list;
  constexpr size_t kNamed = 10;
  size_t named = 0;
  for (const auto& shard : absent) {
    list += named == 0 ? "" : ", ";
    if (named == kNamed) {
      list += "...";
      break;
    }
    list += text::in_quotes(shard);
    ++named;
  }
  TORCH_CHECK_VALUE(absent.empty(), "open_checkpoint: ", file->name(), ": ", absent.size(), " of ",
                    found.size() + absent.size(), " files are missing: ", list,
                    ". Cause: the download or the copy is incomplete. Next: get them into ",
                    text::printable(folder), ".");
  return index;
}

}  // namespace dormant::checkpoint
