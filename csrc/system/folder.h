// What is in a folder, by the system's calls: std::filesystem ends the process where there is no
// memory for a name (its iterators), or frees what it never allocated (paths, in libstdc++ 12).
#pragma once

#include <string>
#include <vector>

namespace dormant::system {

/// The names in a folder, in any order. std::system_error where it cannot be read; `operation`,
/// such as "save", is for its message.
std::vector<std::string> names_in(const std::string& folder, const char* operation);

/// Whether `path` leads to a folder, or to a file, links followed; false where the system does not
/// tell.
bool is_folder(const std::string& path) noexcept;
bool is_file(const std::string& path) noexcept;

}  // namespace dormant::system
