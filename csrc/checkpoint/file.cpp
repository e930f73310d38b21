#include "checkpoint/file.h"

#include <c10/util/Exception.h>

#include <utility>

#include "checkpoint/local_file.h"
#include "text/printable.h"

namespace dormant::checkpoint {

std::shared_ptr<const File> File::open(const std::string& path) { return LocalFile::open(path); }

File::File(std::string path) : path_(std::move(path)), name_(text::printable(path_)) {}

void File::check_range(uint64_t offset, uint64_t count) const {
  TORCH_CHECK_VALUE(offset <= size_ && count <= size_ - offset, "dormant: reading ", name_, ": ",
                    count, " bytes at offset ", offset, ", the file has ", size_, " bytes");
}

}  // namespace dormant::checkpoint
