#include "system/folder.h"

#include <dirent.h>
#include <sys/stat.h>

#include <cerrno>
#include <memory>
#include <string_view>
#include <system_error>

#include "text/printable.h"

namespace dormant::system {
namespace {

mode_t kind_of(const std::string& path) noexcept {
  struct stat status = {};
  return ::stat(path.c_str(), &status) == 0 ? status.st_mode & S_IFMT : 0;
}

}  // namespace

std::vector<std::string> names_in(const std::string& folder, const char* operation) {
  const std::unique_ptr<DIR, int (*)(DIR*)> open(::opendir(folder.c_str()), &::closedir);
  if (!open) {
    const int error = errno;
    throw std::system_error(
        error, std::generic_category(),
        std::string(operation) + ": reading the folder " + text::printable(folder));
  }
  std::vector<std::string> names;
  // NOLINTNEXTLINE(concurrency-mt-unsafe): the stream is this thread's
  while (const auto* entry = ::readdir(open.get())) {
    const std::string_view found = entry->d_name;
    if (found != "." && found != "..") {
      names.emplace_back(found);
    }
  }
  return names;
}

bool is_folder(const std::string& path) noexcept { return kind_of(path) == S_IFDIR; }

bool is_file(const std::string& path) noexcept { return kind_of(path) == S_IFREG; }

}  // namespace dormant::system
