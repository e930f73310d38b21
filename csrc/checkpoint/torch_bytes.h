// Pickles in the words of torch.save, for tests.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "checkpoint/zip_bytes.h"

namespace dormant::checkpoint {

using Entries = std::vector<std::pair<std::string, std::string>>;

inline std::string pickled_text(const std::string& text) {
  return std::string("X") + little_endian(static_cast<uint32_t>(text.size())) + text;
}

/// A dict of names to what else is pickled.
inline std::string pickled_dict(const Entries& entries) {
  std::string bytes = "}(";
  for (const auto& [name, value] : entries) {
    bytes += pickled_text(name) + value;
  }
  return bytes + "u";
}

/// Numbers below 256.
inline std::string pickled_numbers(const std::vector<int>& numbers) {
  std::string bytes = "(";
  for (const auto number : numbers) {
    bytes += std::string("K") + static_cast<char>(number);
  }
  return bytes + "t";
}

struct PickledTensor {
  std::string storage = "0";
  int numel = 3;  ///< of the storage
  std::vector<int> sizes = {3};
  std::vector<int> strides = {1};
  int offset = 0;
  std::string kind = "FloatStorage";
  std::string metadata = {};

  std::string bytes() const {
    return "ctorch._utils\n_rebuild_tensor_v2\n((" + pickled_text("storage") + "ctorch\n" + kind +
           "\n" + pickled_text(storage) + pickled_text("cpu") + "K" + static_cast<char>(numel) +
           "tQK" + static_cast<char>(offset) + pickled_numbers(sizes) + pickled_numbers(strides) +
           "\x89" + "ccollections\nOrderedDict\n)R" + metadata + "tR";
  }
};

/// An object of class model.Net with these attributes of torch.nn.Module.
inline std::string pickled_module(const Entries& parameters, const Entries& buffers = {},
                                  const Entries& modules = {}, const Entries& others = {}) {
  Entries state{{"_parameters", pickled_dict(parameters)},
                {"_buffers", pickled_dict(buffers)},
                {"_modules", pickled_dict(modules)}};
  state.insert(state.end(), others.begin(), others.end());
  return "cmodel\nNet\n)\x81" + pickled_dict(state) + "b";
}

inline std::string whole_pickle(const std::string& value) { return "\x80\x02" + value + "."; }

/// A file of torch.save in its zip layout.
inline std::string torch_zip(const std::string& value, const std::vector<StoredRecord>& storages) {
  std::vector<StoredRecord> records{{"archive/data.pkl", whole_pickle(value)},
                                    {"archive/byteorder", "little"}};
  for (const auto& [key, bytes] : storages) {
    records.push_back({"archive/data/" + key, bytes});
  }
  return zip_bytes(records, /*wide=*/true);
}

/// The same in the older layout; storages are of float32.
inline std::string torch_legacy(const std::string& value,
                                const std::vector<StoredRecord>& storages) {
  std::string file("\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19.", 15);
  std::string keys = "](";
  std::string data;
  for (const auto& [key, bytes] : storages) {
    keys += pickled_text(key);
    data += little_endian(static_cast<uint64_t>(bytes.size() / 4)) + bytes;
  }
  file += whole_pickle(std::string("M\xe9\x03", 3));
  file += whole_pickle(pickled_dict({{"little_endian", "\x88"}}));
  return file + whole_pickle(value) + whole_pickle(keys + "e") + data;
}

}  // namespace dormant::checkpoint
