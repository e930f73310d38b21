// Whether eager would accept a call at once: what it refuses must not become part of a history,
// where it would fail in every materialization.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstddef>
#include <optional>
#include <vector>

#include "record/call.h"
#include "record/geometry.h"

namespace dormant::record {

/// Whether eager would refuse the write because an input shares part of its memory.
bool operands_overlap(const Call& call, const at::Tensor& written);

/// Whether eager accepts a call that writes lazy tensors; false where only running it can tell.
/// `changed`, unless empty, is the geometry that it leaves its written arguments with.
bool valid_write(const Call& call, std::vector<Geometry>& changed);

/// Bytes that a storage needs for `geometry`; nothing where eager refuses such a tensor: a negative
/// number, or more bytes than can be counted.
std::optional<size_t> valid_nbytes(const Geometry& geometry);

}  // namespace dormant::record
