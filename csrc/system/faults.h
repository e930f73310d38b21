// Failures that tests ask for: of memory, of reading, of writing, of naming files, at the n-th
// call.
//
// What a full disk or exhausted memory does to a half-finished load cannot be tested with a real
// one. `set_faults("read:3")` lets the third read from a file fail from here on, at the place where
// the system call's result is looked at, so that the real error takes its real way. The environment
// variable DORMANT_FAULTS says the same for a whole process.
#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <string_view>

#include "system/export.h"

namespace dormant::system {

enum class Fault : uint8_t { allocate, read, write, publish, link };
constexpr size_t kFaultKinds = 5;

/// Calls of each kind, in the order of Fault.
using FaultCounts = std::array<uint64_t, kFaultKinds>;

/// Lets calls fail from now on, counted from here: "read:3" the third read, "write:2+" all writes
/// from the second on, several separated by commas; "allocate:0" only counts, and "" ends it.
/// Allocations are those of PyTorch's CPU allocator, operators' own included, and the larger ones
/// that this library makes elsewhere. c10::ValueError for any other text.
///
/// Not to be called while another thread uses PyTorch: its CPU allocator is exchanged. Returns how
/// many calls were counted since the last time.
DORMANT_BINDINGS_API FaultCounts set_faults(std::string_view text);

namespace detail {
extern std::atomic<bool> faults_armed;
bool count_call(Fault kind) noexcept;
}  // namespace detail

/// Whether the call that comes next is to fail; errno is then what the system would have said. Any
/// thread; one relaxed load where no faults are asked for.
inline bool is_due(Fault kind) noexcept {
  return detail::faults_armed.load(std::memory_order_relaxed) && detail::count_call(kind);
}

/// Throws std::bad_alloc where the allocation that comes next is to fail.
void fail_if_due_to_allocate();

}  // namespace dormant::system
