// Whether two processes recorded the same.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>

#include "system/export.h"

namespace dormant::record {

/// A number for the random numbers and constants that the values of a lazy tensor come from: the
/// operators that drew them, how many, where in the generator's stream, and what was filled in.
/// Parts of one tensor have the same number, whichever elements they have. Nothing for tensors that
/// have memory, and for those in which nothing of this kind went.
DORMANT_BINDINGS_API std::optional<uint64_t> digest(const at::Tensor& tensor);

/// A number for everything that the bytes of a lazy storage come from: all operators with their
/// arguments, random numbers, constants, and which bytes of which files, by their names without
/// folders. Zero of a tensor that has memory. Memory that somebody holds is taken for the same.
DORMANT_BINDINGS_API uint64_t history_digest(const at::Tensor& tensor);

}  // namespace dormant::record
