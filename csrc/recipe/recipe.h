// Recipes: histories as documents, so that a lazy storage can be kept in a file and come to life
// elsewhere.
//
// A document is JSON with a schema version; the real tensors that the history captured travel
// beside it, by index, in whatever way the container stores tensors. Reading one trusts nothing:
// every index, geometry and argument is checked, and only operators that recording itself produces
// are accepted.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/Storage.h>
#include <dormant/export.h>

#include <string>
#include <string_view>
#include <vector>

namespace dormant::record {

struct Recipe {
  std::string document;
  std::vector<at::Tensor> tensors;  ///< captured real tensors; the document refers to them by index
};

/// The recipe of a whole lazy storage. ValueError where the storage has memory.
DORMANT_API Recipe dump_recipe(const c10::Storage& storage);

/// A new lazy storage with that recipe. ValueError for a malformed document, another schema
/// version, or an operator that this build does not replay.
DORMANT_API c10::Storage load_recipe(std::string_view document, c10::ArrayRef<at::Tensor> tensors);

}  // namespace dormant::record
