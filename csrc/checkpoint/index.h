// The index of a checkpoint in several files: JSON with a "weight_map" from each tensor's name to
// the file beside the index that has it, and "metadata" of any shape; or, as accelerate writes it,
// that map alone.
#pragma once

#include <map>
#include <string>
#include <string_view>

#include "system/export.h"

namespace dormant::checkpoint {

class File;

struct Index {
  std::map<std::string, std::string> files;  ///< name of a tensor -> path of its file
  std::string metadata;                      ///< a JSON object
};

/// Why a file of a checkpoint must not be at `path`, relative to its folder; null where it may.
const char* obstacle_to_path(std::string_view path);

/// Parses an index; the paths are relative, and lead neither out of the folder nor, in two ways, to
/// one file. c10::ValueError, with file, tensor, byte, what was found and what was expected, where
/// anything is wrong. `file` is printable text for messages.
Index parse_index(std::string_view document, const std::string& file);

/// The same of a file; std::system_error where it can't be read.
DORMANT_BINDINGS_API Index parse_index(const File& file);

/// Reads the index at `path`; the paths are absolute and there are files. c10::ValueError as above,
/// and where files are absent, which it lists; std::system_error where the index can't be read.
DORMANT_BINDINGS_API Index read_index(const std::string& path);

}  // namespace dormant::checkpoint
