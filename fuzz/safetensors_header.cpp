// The input is a safetensors file. Whatever it is, it is refused by c10::ValueError, or every entry
// lies in it, whole and apart from the others.
#include <c10/util/Exception.h>

#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <string_view>

#include "checkpoint/safetensors.h"

namespace {

using dormant::checkpoint::Safetensors;

void require(bool condition, const char* what) {
  if (!condition) {
    throw std::logic_error(what);
  }
}

void check(const Safetensors& header, uint64_t data_begin, uint64_t file_size) {
  auto end = data_begin;
  for (const auto& entry : header.entries) {
    require(!entry.name.empty(), "a tensor without a name was accepted");
    require(entry.offset == end, "a hole or an overlap was accepted");
    require(entry.sizes.size() <= dormant::checkpoint::kMostDimensions, "too many dimensions");
    unsigned __int128 nbytes = c10::elementSize(entry.dtype);
    for (const auto size : entry.sizes) {
      require(size >= 0, "a negative size was accepted");
      nbytes *= static_cast<uint64_t>(size);
      require(nbytes <= file_size, "sizes beyond the file were accepted");
    }
    require(nbytes == entry.nbytes, "sizes and bytes differ");
    end += entry.nbytes;
  }
  require(end == file_size, "bytes without a tensor were accepted");
}

void parse(std::string_view header, uint64_t file_size) {
  check(dormant::checkpoint::parse_safetensors_header(header, file_size, "input"),
        8 + header.size(), file_size);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view file(reinterpret_cast<const char*>(data), size);
  try {
    const auto length = dormant::checkpoint::safetensors_header_size(file, size, "input");
    parse(file.substr(8, length), size);
  } catch (const c10::ValueError&) {
  }
  // The same without the length, which few mutations leave right.
  if (size > 8) {
    try {
      const auto header = file.substr(8);
      const auto braces = header.substr(0, header.rfind('}') + 1);
      parse(braces, size);
    } catch (const c10::ValueError&) {
    }
  }
  return 0;
}
