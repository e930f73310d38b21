// What the tile tests share: comparisons with eager, and the program of a lazy tensor.
#pragma once

#include <memory>

#include "record/eager_comparison.h"
#include "record/lazy_storage.h"
#include "tile/program.h"

namespace dormant::tile {

using record::Build;
using record::eagerly;
using record::kSeed;
using record::lazily;
using record::same_bits;

inline std::shared_ptr<const Program> program_of(const at::Tensor& lazy) {
  const auto history = record::history_of(lazy);
  return !history ? nullptr : Program::of(*history->buffer, history->tail);
}

}  // namespace dormant::tile
