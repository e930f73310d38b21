// Recipes: histories as documents, so that a lazy storage can be kept in a file and materialized
// elsewhere.
//
// A recipe may come from anyone. Reading one therefore builds no nodes: it makes operands and calls
// what recording calls, so that a document can only say what a program that records could have
// done. What this room adds is a list of operators (allowed_operators.h) and bounds on what is
// asked for before it is done.
//
// The document is JSON:
//
//   {"schema": "dormant.recipe", "version": 2,
//    "storages": [48, 8],                       the bytes of each storage
//    "steps": [{"operator": "aten::normal_", "overload": "", "threads": 2,
//               "arguments": [TENSOR, "0", "1", POSITION]}, ...],   as they were recorded
//    "target": 0}                               the storage that the recipe is of
//
// An argument is a value (value.h), a random position, a tensor, null, or a list of these. A tensor
// is {"storage": 0, "sizes": [3, 4], "strides": [4, 1], "offset": 0, "dtype": "Float"}, or
// {"captured": 0}: a real tensor beside the document, in the order of use. What a step returns are
// new storages, which its field "results" names.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/Storage.h>
#include <string>
#include <string_view>
#include <vector>

#include "system/export.h"

namespace dormant::recipe {

inline constexpr const char* kSchemaName = "dormant.recipe";
/// Another number where a reader of the old version would misread a document.
inline constexpr int64_t kSchemaVersion = 2;

struct Recipe {
  std::string document;
  std::vector<at::Tensor>
      tensors;  ///< captured real tensors, in whatever way a container keeps them
};

/// The recipe of a whole lazy storage. ValueError where the storage has memory,
/// NotImplementedError where read() would refuse what was recorded. Any thread may call it.
DORMANT_BINDINGS_API Recipe write(const c10::Storage& storage);

/// A new lazy storage with that recipe. ValueError, and nothing else is changed, for a document
/// that is damaged, of another version, or asks for what recording would not have recorded. Runs
/// Meta kernels, some of which take Python's lock; it may be held or not.
DORMANT_BINDINGS_API c10::Storage read(std::string_view document,
                                       c10::ArrayRef<at::Tensor> tensors);

}  // namespace dormant::recipe
