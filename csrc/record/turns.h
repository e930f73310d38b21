// Whose turn it is: of two threads that hold the same things and put them back where they fail
// (record/snapshot.h), one waits until the other is done. Otherwise who fails would undo what who
// succeeds has done, and would put back what the other one's beginning looked like.
//
// A thread waits only while it has no turn, no claim (record/claims.h) and no lock of Python's:
// who has a turn waits for claims at most, and who has a claim for nothing, so nobody who is waited
// for can be waiting.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "system/export.h"

namespace dormant::record {

/// A thread's turn with some things, which are known by their addresses and have to live as long.
/// Belongs to the thread that made it, but for its end, which may be in any thread.
class DORMANT_BINDINGS_API Turn {
 public:
  /// Waits for other threads' turns with any of `things`; this thread's own may overlap. Meanwhile
  /// `while_waiting` is called several times a second, and may throw to stop. c10::Error, at once,
  /// where this thread may not wait.
  explicit Turn(std::vector<const void*> things, const std::function<void()>& while_waiting = {});
  ~Turn();
  Turn(const Turn&) = delete;
  Turn& operator=(const Turn&) = delete;

  /// Lets the next one have its turn. Once is enough.
  void end() noexcept;

  /// How many turns have ended so far: who looked at the things before its turn looks again unless
  /// this number is still the same.
  static uint64_t ended() noexcept;

 private:
  /// False, and nothing is taken, where another thread has a turn with one of the things.
  bool try_to_take();

  std::vector<const void*> things_;
};

}  // namespace dormant::record
