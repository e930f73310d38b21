// The input is the index of a sharded checkpoint. Whatever it is, it is refused by c10::ValueError,
// or every file that it names lies in its folder.
#include <c10/util/Exception.h>

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <stdexcept>
#include <string_view>

#include "checkpoint/index.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  try {
    const auto index = dormant::checkpoint::parse_index(
        std::string_view(reinterpret_cast<const char*>(data), size), "input");
    for (const auto& [tensor, shard] : index.files) {
      const auto path = std::filesystem::path("/folder") / shard;
      const auto plain = path.lexically_normal();
      const auto inside = plain.lexically_relative("/folder");
      if (tensor.empty() || plain != path || inside.empty() || *inside.begin() == "..") {
        throw std::logic_error("accepted the path " + shard);
      }
    }
  } catch (const c10::ValueError&) {
  }
  return 0;
}
