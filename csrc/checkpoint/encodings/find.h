// Which tensors of a checkpoint's files together are one plain tensor: for who opens checkpoints.
#pragma once

#include <c10/core/ScalarType.h>

#include <array>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "record/decoder.h"
#include "system/export.h"

namespace dormant::checkpoint {

/// The text of a config.json beside the files; without a path, that there is none.
struct ConfigurationText {
  std::string path;
  std::string text;
  /// Paths and texts of those of kQuantizationFiles that are there.
  std::vector<std::pair<std::string, std::string>> quantization_files = {};
};

/// No configuration of a model is longer.
inline constexpr uint64_t kLongestConfiguration = 1 << 24;

/// Files in which libraries state what config.json may lack, in the order in which they are looked
/// at: AutoGPTQ's and AutoAWQ's, from the time before transformers knew them.
inline constexpr std::array<const char*, 2> kQuantizationFiles = {"quantize_config.json",
                                                                  "quant_config.json"};

/// Those in `folder` that are not longer. std::system_error where one that is there can't be read.
ConfigurationText read_configuration(const std::string& folder);

/// A tensor as the files have it.
struct RawTensor {
  std::string name;
  c10::ScalarType dtype;
  std::vector<int64_t> sizes;
  /// Where the format of the file knows encodings: the one of this tensor, else empty.
  std::string format;
};

/// A plain tensor that several raw ones make, or one.
struct Encoded {
  std::string name;
  std::vector<std::string> parts;  ///< raw tensors, as the decoder expects them
  std::shared_ptr<const record::Decoder> decoder;
  /// That of the plain tensor: what the decoder gives is cast to it.
  c10::ScalarType dtype;
  /// Whether the plain tensor has the last two dimensions of what the decoder gives swapped. That
  /// is recorded as an operator, so that the engine goes through the parts in their own order.
  bool transposed = false;
};

struct Findings {
  std::vector<Encoded> encoded;
  /// Raw tensors that only the encoded layers need, such as scales of activations.
  std::set<std::string> spent;
  std::vector<std::string> warnings;
};

/// The bytes of a raw tensor: called for small ones only.
using ReadSmall = std::function<std::string(const RawTensor&)>;

/// All encoded tensors of a checkpoint, in the order of the files. `dtype` is what was asked for;
/// std::nullopt leaves it to each encoding. `where`, for messages: the files.
/// c10::ValueError where tensors and config.json contradict each other or themselves.
DORMANT_BINDINGS_API Findings find_encoded(std::vector<RawTensor> tensors,
                                           const ConfigurationText& configuration,
                                           std::optional<c10::ScalarType> dtype,
                                           const std::string& where, ReadSmall read);

}  // namespace dormant::checkpoint
