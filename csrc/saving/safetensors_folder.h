// A folder of safetensors files: which tensors are in which, and how they replace those of an
// earlier save. The rules, and the bytes of the index, are those of
// python/dormant/saving/folder.py.
#pragma once

#include <c10/util/ArrayRef.h>

#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "publication/publication.h"

namespace dormant::saving {

/// Writes a small file whole.
using WriteBytes = std::function<void(const std::string& bytes, int descriptor)>;

class SafetensorsFolder {
 public:
  struct File {
    std::string name;
    std::vector<size_t> tensors;  ///< places in what was divided
  };

  /// Fills and names files as huggingface_hub does (`split_state_dict_into_shards_factory`), in the
  /// order of the tensors: of at most `limit` bytes each, but for a larger tensor, which gets a
  /// file of its own. Names are UTF-8.
  SafetensorsFolder(std::vector<std::string> names, c10::ArrayRef<uint64_t> sizes, uint64_t limit);

  const std::vector<File>& files() const noexcept { return files_; }

  /// Puts the files in the place of those of an earlier save. Whoever reads the folder after this
  /// process was killed finds one of the two saves whole: readers take the single file before the
  /// index, and what the index says before shards. So one rename, of the single file or the index,
  /// or one removal, of the single file, is the step from the earlier save to this one. Where
  /// shards have the names of earlier ones there are two such steps: first the index leads to the
  /// new shards under other names, then to their own names.
  void replace_earlier(publication::Replacement& replacement, const WriteBytes& write) const;

  /// The index as a file, with other names of the shards.
  std::string index(const std::map<std::string, std::string>& others = {}) const;

 private:
  /// Returns names of shards that nothing leads to then.
  std::set<std::string> place_shards(publication::Replacement& replacement,
                                     const std::set<std::string>& present,
                                     const WriteBytes& write) const;
  /// Puts an index in its place, and has it count.
  void switch_to(publication::Replacement& replacement, const std::string& index,
                 const WriteBytes& write) const;

  std::vector<std::string> names_;
  std::vector<File> files_;
  uint64_t total_ = 0;
};

}  // namespace dormant::saving
