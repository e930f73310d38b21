// Paths as text. std::filesystem::path is not taken to put them together or apart: where memory is
// exhausted, libstdc++ 12 frees what it never allocated (path::operator/=, _M_split_cmpts).
#pragma once

#include <string>
#include <string_view>

namespace dormant::checkpoint {

/// The path of a file in a folder.
inline std::string in_folder(std::string_view folder, std::string_view name) {
  std::string path(folder);
  if (!path.empty() && path.back() != '/') {
    path += '/';
  }
  return path += name;
}

/// The folder that a path says a file is in; "" where it says none.
inline std::string folder_of(std::string_view path) {
  const auto slash = path.rfind('/');
  if (slash == std::string_view::npos) {
    return {};
  }
  return std::string(path.substr(0, slash == 0 ? 1 : slash));
}

/// What a path ends with, behind the folder.
inline std::string_view file_name_of(std::string_view path) {
  return path.substr(path.rfind('/') + 1);
}

}  // namespace dormant::checkpoint
