// Threads that do work while nobody waits for them, or somebody waits who can stop waiting.
//
// OpenMP's threads are for computing, one for each core; what waits for a network wants other
// threads, more of them, that nobody has to join. They exist only while there is something to do.
#pragma once

#include <functional>

#include "system/export.h"

namespace dormant::system {

/// Runs `work`, which does not throw, on a thread of its own. False where there is none: the system
/// gives no more, or `finish_background` was called. Any thread.
bool run_in_background(std::function<void()> work);

/// Waits until all of it is done, and lets nothing more begin. For the end of a process whose work
/// calls an interpreter that is about to go; the caller holds no lock that the work needs.
DORMANT_BINDINGS_API void finish_background();

}  // namespace dormant::system
