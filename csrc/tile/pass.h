// One pass over jobs, whatever their elements go to: how many threads work and how large their
// tiles are, and the loop in which they do.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <optional>

#include "tile/job.h"

namespace dormant::tile {

/// As many threads, and as large tiles, as a bound on memory allows.
struct Plan {
  int threads = 1;
  int halvings = 0;          ///< of the best tile, down to a comfortable one
  int further_halvings = 0;  ///< of that
  /// Bytes of memory for what is read ahead (read_ahead.h); 0 where that is nothing.
  size_t read_ahead = 0;

  /// Elements of a tile.
  int64_t tile(const Job& job) const;
};

/// The plan under a budget; it may need more where even the smallest does. `unasked` is the bound
/// on what all threads need for their tiles where there is no budget: these stay comfortable.
Plan plan_for(const Jobs& jobs, std::optional<size_t> budget, std::optional<size_t> unasked = {});

/// Bytes that the jobs need besides the final tensors, and besides what is read ahead.
size_t bytes_needed(const Jobs& jobs, const Plan& plan);

/// Runs all pieces of the jobs on all threads, and reads ahead for them; `on_bytes` is that of
/// system::Workers. Whatever stops it, those jobs are done that say so.
void run(const Jobs& jobs, const Plan& plan, std::function<void(size_t)> on_bytes);

/// ValueError about a `memory_budget` of `operation` that is less than what is needed.
void check_budget(const char* operation, size_t budget, size_t needed, const char* cause,
                  const char* next);

}  // namespace dormant::tile
