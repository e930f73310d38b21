#include "checkpoint/safetensors_layout.h"

#include <c10/util/Exception.h>

#include <algorithm>
#include <initializer_list>
#include <limits>
#include <nlohmann/json.hpp>
#include <set>

#include "checkpoint/safetensors.h"
#include "checkpoint/safetensors_dtypes.h"
#include "text/printable.h"

namespace dormant::checkpoint {
namespace {

constexpr uint64_t kLengthBytes = 8;
constexpr auto kMost = std::numeric_limits<int64_t>::max();

/// Not by a stream, which passes over exhausted memory and gives less than there is.
void append(std::string& text, std::initializer_list<std::string_view> parts) {
  for (const auto part : parts) {
    text.append(part);
  }
}

/// In double quotes, every character as itself where JSON allows it.
std::string quoted(const std::string& text, const char* what) {
  TORCH_CHECK_VALUE(text::first_not_utf8(text) == std::string::npos, "save: ", what, " ",
                    text::in_quotes(text), " is not UTF-8, which safetensors files have to be");
  return nlohmann::json(text).dump();
}

/// Bytes of the tensor's elements.
uint64_t bytes_of(const TensorToWrite& tensor) {
  auto bytes = static_cast<int64_t>(c10::elementSize(tensor.dtype));
  for (const auto size : tensor.sizes) {
    TORCH_CHECK_VALUE(size >= 0 && !__builtin_mul_overflow(bytes, size, &bytes),
                      "save: ", text::in_quotes(tensor.name), " has sizes ",
                      c10::IntArrayRef(tensor.sizes), " of ", tensor.dtype, ", expected at most ",
                      kMost, " bytes");
  }
  return static_cast<uint64_t>(bytes);
}

const SafetensorsDtype& dtype_of(const TensorToWrite& tensor) {
  const auto* dtype = find_safetensors_dtype(tensor.dtype);
  TORCH_CHECK_VALUE(dtype != nullptr && (dtype->packed == 1 || !tensor.sizes.empty()),
                    "save: ", text::in_quotes(tensor.name), ": safetensors has no ",
                    dtype == nullptr ? "" : "scalars of ", tensor.dtype);
  return *dtype;
}

std::string entry(const TensorToWrite& tensor, uint64_t begin, uint64_t end) {
  const auto& dtype = dtype_of(tensor);
  std::string text = quoted(tensor.name, "the name");
  text += ":{\"dtype\":\"";
  text += dtype.name;
  text += "\",\"shape\":[";
  for (size_t i = 0; i < tensor.sizes.size(); ++i) {
    auto size = tensor.sizes[i];
    if (i + 1 == tensor.sizes.size()) {
      TORCH_CHECK_VALUE(!__builtin_mul_overflow(size, dtype.packed, &size),
                        "save: ", text::in_quotes(tensor.name),
                        " has too many elements for the format");
    }
    text += i == 0 ? "" : ",";
    text += std::to_string(size);
  }
  append(text, {"],\"data_offsets\":[", std::to_string(begin), ",", std::to_string(end), "]}"});
  return text;
}

}  // namespace

SafetensorsLayout lay_out_safetensors(c10::ArrayRef<TensorToWrite> tensors,
                                      c10::ArrayRef<std::pair<std::string, std::string>> metadata) {
  std::vector<std::pair<const SafetensorsDtype*, size_t>> order;
  std::set<std::string_view> names = {kSafetensorsMetadata};
  for (size_t i = 0; i < tensors.size(); ++i) {
    const auto& name = tensors[i].name;
    TORCH_CHECK_VALUE(names.insert(name).second, "save: the name ", text::in_quotes(name),
                      name == kSafetensorsMetadata ? " is reserved by safetensors"
                                                   : " is given twice, expected different names");
    order.emplace_back(&dtype_of(tensors[i]), i);
  }
  // Bytes of UTF-8 have the order of the characters.
  std::sort(order.begin(), order.end(), [&](const auto& a, const auto& b) {
    return a.first != b.first ? a.first < b.first : tensors[a.second].name < tensors[b.second].name;
  });
  std::string header;
  append(header, {"{\"", kSafetensorsMetadata, "\":{"});
  for (size_t i = 0; i < metadata.size(); ++i) {
    append(header, {i == 0 ? "" : ",", quoted(metadata[i].first, "the key of metadata"), ":",
                    quoted(metadata[i].second, "the metadata")});
  }
  header += "}";
  std::vector<uint64_t> begins(tensors.size());
  uint64_t position = 0;
  for (const auto& [dtype, i] : order) {
    const auto& tensor = tensors[i];
    const auto nbytes = bytes_of(tensor);
    TORCH_CHECK_VALUE(nbytes <= static_cast<uint64_t>(kMost) - position,
                      "save: the tensors have more than ", kMost, " bytes");
    begins[i] = position;
    header += ',';
    header += entry(tensor, position, position + nbytes);
    position += nbytes;
  }
  header += "}";
  header.resize((header.size() + kLengthBytes - 1) / kLengthBytes * kLengthBytes, ' ');
  TORCH_CHECK_VALUE(header.size() <= kLongestHeader, "save: the header of a file with ",
                    tensors.size(), " tensors takes ", header.size(),
                    " bytes, readers of safetensors accept ", kLongestHeader,
                    ". Save to a folder with a smaller max_shard_size, so that each file has fewer "
                    "tensors.");
  SafetensorsLayout layout;
  for (size_t i = 0; i < kLengthBytes; ++i) {
    layout.prefix.push_back(static_cast<char>(static_cast<uint64_t>(header.size()) >> (8 * i)));
  }
  layout.prefix += header;
  for (const auto begin : begins) {
    layout.offsets.push_back(layout.prefix.size() + begin);
  }
  TORCH_CHECK_VALUE(layout.prefix.size() <= static_cast<uint64_t>(kMost) - position,
                    "save: the tensors have more than ", kMost, " bytes");
  layout.nbytes = layout.prefix.size() + position;
  return layout;
}

}  // namespace dormant::checkpoint
