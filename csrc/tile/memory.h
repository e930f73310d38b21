// Fresh memory for final tensors.
#pragma once

#include <c10/core/Storage.h>

namespace dormant::tile {

/// Memory for a tensor of `nbytes` from PyTorch's CPU allocator, in huge pages where the system
/// allows: clearing 4 KiB pages one fault at a time costs as much as drawing the values.
c10::Storage allocate_fresh(size_t nbytes);

}  // namespace dormant::tile
