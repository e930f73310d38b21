// Parts of tensors in safetensors files, as HuggingFaceStorageWriter saves them with
// save_distributed (torch/distributed/checkpoint/hf_storage.py): the header of each file says, as
// JSON in its metadata, where in the whole tensor a part begins.
#include <c10/util/Exception.h>

#include <algorithm>
#include <utility>

#include "checkpoint/dcp.h"
#include "checkpoint/dcp_tensors.h"
#include "checkpoint/safetensors.h"
#include "text/json_reader.h"
#include "text/printable.h"

namespace dormant::checkpoint {
namespace {

constexpr const char* kOffsets = "DCP_SHARDING_INFO";
constexpr size_t kDeepest = 8;

/// {"name": {"saved_offsets": [0, 4]}, ...}
class OffsetsReader final : public text::JsonHandler {
 public:
  explicit OffsetsReader(const std::string& file) : file_(file) {}

  void begin_object() override {
    if (depth_ > 1 || in_list_) {
      refuse("an object");
    }
    ++depth_;
  }
  void end_object() override { --depth_; }
  void begin_array() override {
    if (depth_ != 2 || in_list_ || field_ != "saved_offsets") {
      refuse("a list");
    }
    in_list_ = true;
    offsets[name_];
  }
  void end_array() override { in_list_ = false; }
  void key(std::string& name) override { (depth_ == 1 ? name_ : field_) = std::move(name); }
  void string(std::string& value) override { refuse(text::in_quotes(value)); }
  void integer(uint64_t value) override {
    if (!in_list_ || value > static_cast<uint64_t>(INT64_MAX)) {
      refuse(std::to_string(value));
    }
    offsets[name_].push_back(static_cast<int64_t>(value));
  }
  void number(const std::string& text) override { refuse(text); }
  void literal(const char* text) override { refuse(text); }

  std::map<std::string, std::vector<int64_t>> offsets;

 private:
  [[noreturn]] void refuse(const std::string& got) const {
    TORCH_CHECK_VALUE(false, "open_checkpoint: ", file_, ": ", kOffsets, " has ", got,
                      ", expected saved_offsets for each tensor. Cause: the file is damaged. Next: "
                      "get it again.");
  }

  const std::string& file_;
  size_t depth_ = 0;
  bool in_list_ = false;
  std::string name_;
  std::string field_;
};

/// Bytes that are elements and nothing else.
class PlainBytes final : public PieceLocator {
 public:
  PiecePlace locate(const Piece& piece, c10::ScalarType /*dtype*/,
                    const std::string& /*what*/) const override {
    PiecePlace place{piece.offset, std::vector<int64_t>(piece.box.begin.size(), 1)};
    for (auto i = place.strides.size(); i-- > 1;) {
      place.strides[i - 1] = place.strides[i] * (piece.box.end[i] - piece.box.begin[i]);
    }
    return place;
  }
};

struct Whole {
  c10::ScalarType dtype;
  std::vector<int64_t> sizes;
  std::vector<Piece> pieces;
};

}  // namespace

bool is_distributed(const std::map<std::string, std::string>& metadata) {
  return metadata.contains(kOffsets);
}

DistributedCheckpoint read_distributed_safetensors(
    const std::vector<std::shared_ptr<const File>>& files) {
  DistributedCheckpoint result;
  result.files = files;
  std::map<std::string, Whole> wholes;
  for (const auto& file : files) {
    auto header = read_safetensors_header(*file);
    const auto info = header.metadata.find(kOffsets);
    TORCH_CHECK_VALUE(
        info != header.metadata.end(), "open_checkpoint: ", file->name(), " has no ", kOffsets,
        " in its metadata, expected it as in the other files. "
        "Cause: the files belong to different checkpoints. Next: open this file by itself.");
    OffsetsReader reader(file->name());
    text::read_json_object({info->second, file->name(), kOffsets, 0}, kDeepest, reader);
    for (auto& entry : header.entries) {
      const auto what =
          "open_checkpoint: " + file->name() + ": tensor " + text::in_quotes(entry.name);
      const auto found = reader.offsets.find(entry.name);
      TORCH_CHECK_VALUE(found != reader.offsets.end() && found->second.size() == entry.sizes.size(),
                        what, " has ", entry.sizes.size(), " dimensions, expected as many in ",
                        kOffsets, ". Cause: the file is damaged. Next: get it again.");
      auto& whole = wholes[entry.name];
      if (whole.pieces.empty() && whole.sizes.empty()) {
        whole.dtype = entry.dtype;
        whole.sizes.assign(entry.sizes.size(), 0);
      }
      TORCH_CHECK_VALUE(whole.dtype == entry.dtype && whole.sizes.size() == entry.sizes.size(),
                        what, " has dtype ", entry.dtype, " and ", entry.sizes.size(),
                        " dimensions here, and dtype ", whole.dtype, " and ", whole.sizes.size(),
                        " dimensions in other files. Cause: the files belong to different "
                        "checkpoints. Next: get them again.");
      Box box{found->second, found->second};
      for (size_t i = 0; i < entry.sizes.size(); ++i) {
        TORCH_CHECK_VALUE(!__builtin_add_overflow(box.begin[i], entry.sizes[i], &box.end[i]), what,
                          " begins at ", box.begin[i],
                          ", which overflows. Cause: the "
                          "file is damaged. Next: get it again.");
        whole.sizes[i] = std::max(whole.sizes[i], box.end[i]);
      }
      whole.pieces.push_back({std::move(box), file, entry.offset, entry.nbytes});
    }
    header.metadata.erase(kOffsets);
    result.metadata.merge(header.metadata);
  }
  DistributedTensors tensors;
  const auto plain = std::make_shared<PlainBytes>();
  for (auto& [name, whole] : wholes) {
    result.tensors.push_back(tensors.add(result.files.front()->name(), name, whole.dtype,
                                         std::move(whole.sizes), std::move(whole.pieces), plain));
  }
  return result;
}

}  // namespace dormant::checkpoint
