// Views that are the only owners of their storages: only what they show has to be made.
//
// Such a storage keeps its size, and the view its offset and strides, as in eager; but of the
// addresses that it reserves, only the pages that the view needs ever get memory. The others read
// as zeros, which only as_strided, or saving the storage behind the view, could show.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/Allocator.h>
#include <dormant/export.h>

#include <cstddef>
#include <optional>
#include <unordered_map>

#include "record/geometry.h"
#include "tile/mapping.h"
#include "tile/program.h"

namespace dormant::tile {

using OnlyOwners = std::unordered_map<const c10::StorageImpl*, record::Geometry>;

/// Those among `tensors` whose lazy storages nothing else refers to. Ask before making a reference
/// to any of the storages.
DORMANT_API OnlyOwners only_owners(c10::ArrayRef<at::Tensor> tensors);

/// The elements of a program that the view needs, where that saves much.
std::optional<Run> needed_by(const record::Geometry& view, const Program& program);

/// Zeros, of which only what is written takes memory; null where the system has no such memory.
c10::DataPtr reserve(size_t nbytes);

}  // namespace dormant::tile
