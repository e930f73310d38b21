// The tensors of a file of torch.save as entries of a catalog.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "checkpoint/catalog.h"
#include "checkpoint/file.h"

namespace dormant::checkpoint {

/// The state dict of `file`, which `is_torch_file` says is one of torch.save: that under `key`, or
/// the only one. c10::IndexError, c10::ValueError and c10::NotImplementedError as by
/// `read_torch_archive` and `find_state`.
std::vector<CatalogEntry> torch_entries(const std::shared_ptr<const File>& file,
                                        const std::optional<std::string>& key);

}  // namespace dormant::checkpoint
