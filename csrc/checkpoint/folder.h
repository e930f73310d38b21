// Which files of a folder are its checkpoint, by the rules of python/dormant/checkpoint/files.py.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace dormant::checkpoint {

/// The checkpoint in a folder: the first that transformers looks for, else .metadata or the shards
/// of torch.distributed.checkpoint, else the only one of a kind, or the one of which all others are
/// variants (model.fp16.safetensors). Paths; more than one only of distributed shards.
/// c10::ValueError where there is none or a choice, c10::NotImplementedError for a tensor-parallel
/// set, std::system_error where the folder cannot be read.
std::vector<std::string> find_checkpoint(const std::string& folder);

/// Whether a file of this name is an index, of a variant (model.safetensors.index.fp16.json) or
/// not.
bool is_index(std::string_view path);

/// Whether it is one of the files in which HuggingFaceStorageWriter keeps parts of tensors:
/// shard-00001-model-00001-of-00002.safetensors.
bool is_distributed_shard(std::string_view path);

}  // namespace dormant::checkpoint
