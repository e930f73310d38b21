// The input is the length of a `.metadata` of torch.distributed.checkpoint (4 bytes, little
// endian), it, and a data file. Whatever they are, they are refused by c10::ValueError or
// c10::NotImplementedError, or each tensor is parts within the file, and can be read.
#include <c10/util/Exception.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <stdexcept>
#include <string>
#include <system_error>
#include <vector>

#include "checkpoint/dcp.h"

extern "C" {
uint64_t fuzz_accepted = 0;  // with a tensor in it that was read
}

namespace {

using dormant::checkpoint::File;

constexpr uint64_t kMostRead = 1 << 20;

/// A file without a place in any folder.
class MemoryFile {
 public:
  MemoryFile(const uint8_t* data, size_t size) : descriptor_(::memfd_create("fuzz", 0)) {
    if (descriptor_ < 0 || ::write(descriptor_, data, size) != static_cast<ssize_t>(size)) {
      throw std::runtime_error("no memory for a file");
    }
  }
  ~MemoryFile() { ::close(descriptor_); }
  MemoryFile(const MemoryFile&) = delete;
  MemoryFile& operator=(const MemoryFile&) = delete;

  std::shared_ptr<const File> open() const {
    return File::open("/proc/self/fd/" + std::to_string(descriptor_));
  }

 private:
  int descriptor_;
};

void require(bool condition, const char* what) {
  if (!condition) {
    throw std::logic_error(what);
  }
}

void read_all(const dormant::checkpoint::DistributedCheckpoint& checkpoint) {
  bool read = false;
  for (const auto& tensor : checkpoint.tensors) {
    for (const auto& piece : tensor.pieces->pieces()) {
      require(piece.offset + piece.length <= piece.file->size(), "a part beyond its file");
      for (size_t i = 0; i < tensor.sizes.size(); ++i) {
        require(piece.box.begin[i] >= 0 && piece.box.end[i] <= tensor.sizes[i],
                "a part outside of its tensor");
      }
    }
    try {
      tensor.pieces->check();
    } catch (const c10::ValueError&) {
      continue;
    } catch (const c10::NotImplementedError&) {
      continue;
    }
    std::vector<char> elements(std::min(tensor.nbytes, kMostRead));
    tensor.pieces->will_read(tensor.pieces->base(), elements.size());
    tensor.pieces->read(tensor.pieces->base(), elements.size(), elements.data());
    read = true;
  }
  fuzz_accepted += read ? 1 : 0;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size < 4) {
    return 0;
  }
  const uint32_t stated =
      data[0] | data[1] << 8 | data[2] << 16 | static_cast<uint32_t>(data[3]) << 24;
  const auto length = std::min<size_t>(stated, size - 4);
  const MemoryFile metadata(data + 4, length);
  const MemoryFile content(data + 4 + length, size - 4 - length);
  try {
    read_all(dormant::checkpoint::read_distributed(
        *metadata.open(), [&](const std::string&) { return content.open(); }));
  } catch (const c10::ValueError&) {
  } catch (const c10::NotImplementedError&) {
  }
  return 0;
}
