// What the engine is told by any of the public options.
#pragma once

#include <dormant/dormant.h>

#include "tile/engine.h"

namespace dormant {

/// The options that MaterializeOptions and LoadOptions have in common.
template <typename PublicOptions>
tile::Options engine_options(const PublicOptions& options) {
  tile::Options engine;
  engine.memory_budget = options.memory_budget;
  engine.mmap = options.mmap == Mmap::never    ? tile::Mmap::never
                : options.mmap == Mmap::always ? tile::Mmap::always
                                               : tile::Mmap::automatic;
  engine.on_step = options.on_step;
  return engine;
}

}  // namespace dormant
