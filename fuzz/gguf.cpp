// The input is a GGUF file. Whatever it is, it is refused by c10::ValueError or
// c10::NotImplementedError, or every tensor lies in it, apart from the others, its arrays can be
// read, and its blocks can be decoded.
#include <c10/util/Exception.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "checkpoint/gguf.h"
#include "decode/gguf_blocks.h"
#include "record/source.h"

namespace {

using dormant::checkpoint::Gguf;
using dormant::checkpoint::GgufArray;
using dormant::decode::GgufBlocks;

void require(bool condition, const char* what) {
  if (!condition) {
    throw std::logic_error(what);
  }
}

class Input final : public dormant::record::Source {
 public:
  explicit Input(std::string_view bytes) : bytes_(bytes) {}
  void read(uint64_t offset, size_t count, void* out) const override {
    require(offset <= bytes_.size() && count <= bytes_.size() - offset, "a read beyond the end");
    std::memcpy(out, bytes_.data() + offset, count);
  }
  const std::string& name() const override { return name_; }

 private:
  const std::string_view bytes_;
  const std::string name_ = "input";
};

void check(const Gguf& header, std::string_view file) {
  std::vector<std::pair<uint64_t, uint64_t>> ranges;
  for (const auto& tensor : header.tensors) {
    const auto& entry = tensor.entry;
    require(!entry.name.empty(), "a tensor without a name was accepted");
    require(entry.offset <= file.size() || entry.nbytes == 0, "an offset beyond the end");
    require(entry.nbytes == 0 || entry.nbytes <= file.size() - entry.offset, "bytes beyond it");
    unsigned __int128 nbytes = c10::elementSize(entry.dtype);
    for (const auto size : entry.sizes) {
      require(size >= 0, "a negative size was accepted");
      nbytes *= static_cast<uint64_t>(size);
      require(nbytes <= file.size() || entry.nbytes == 0, "sizes beyond the file were accepted");
    }
    require(nbytes == entry.nbytes, "sizes and bytes differ");
    if (entry.nbytes > 0) {
      ranges.emplace_back(entry.offset, entry.offset + entry.nbytes);
    }
    if (tensor.type->code) {
      const GgufBlocks decoder(*tensor.type, tensor.sizes);
      std::vector<float> out(static_cast<size_t>(decoder.output().numel()));
      std::vector<dormant::record::ElementRun> runs;
      decoder.wanted(0, 0, static_cast<int64_t>(out.size()), {}, runs);
      require(runs.size() == 1 && runs[0].begin == 0 &&
                  runs[0].count == static_cast<int64_t>(entry.nbytes),
              "all elements want other bytes than all");
      // Of its own size, so that a sanitizer sees a step beyond it.
      const std::vector<char> bytes(
          file.begin() + static_cast<int64_t>(entry.offset),
          file.begin() + static_cast<int64_t>(entry.offset + entry.nbytes));
      const void* part = bytes.data();
      decoder.run(0, static_cast<int64_t>(out.size()), part, out.data());
    }
  }
  std::sort(ranges.begin(), ranges.end());
  for (size_t i = 1; i < ranges.size(); ++i) {
    require(ranges[i - 1].second <= ranges[i].first, "an overlap was accepted");
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view file(reinterpret_cast<const char*>(data), size);
  const Input input(file);
  try {
    const auto header = dormant::checkpoint::parse_gguf(input, size);
    check(header, file);
    for (const auto& [key, value] : header.metadata) {
      if (const auto* array = std::get_if<GgufArray>(&value)) {
        require(dormant::checkpoint::read_gguf_array(input, *array).size() == array->count,
                "an array has other elements than it says");
      }
    }
  } catch (const c10::ValueError&) {
  } catch (const c10::NotImplementedError&) {
  }
  return 0;
}
