// How many draws a generator stands past its seeding, so that a position can be kept as two numbers
// instead of 2.5 KB.
//
// A state does not tell, so this thread remembers where it last met each seed and what skip() has
// drawn since. The count is a guess until it is checked by computing the state anew: whoever relies
// on it compares with state_after().
#pragma once

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/core/MT19937RNGEngine.h>

#include <cstdint>
#include <memory>
#include <optional>

namespace dormant::random {

// Tells that `generator` was advanced on this thread.
void note_draws(const at::CPUGeneratorImpl& generator, uint64_t draws);

// How many draws after seeding `generator`, whose engine is in `state`, seems to stand; none where
// this thread lost track, as after many draws that were not noted. Then it costs a search of a
// fraction of a millisecond, once.
std::optional<uint64_t> draws_since_seeding(const at::CPUGeneratorImpl& generator,
                                            const at::mt19937_data_pod& state);

// Tells that so many draws after seeding, which the caller has computed, lead to `state`.
void note_state(const at::mt19937_data_pod& state, uint64_t draws);

// While it lives, this thread notes and remembers other things: for work with many generators that
// have nothing to do with the thread's own.
class SeparateTrace {
 public:
  SeparateTrace();
  ~SeparateTrace();
  SeparateTrace(const SeparateTrace&) = delete;
  SeparateTrace& operator=(const SeparateTrace&) = delete;

 private:
  std::unique_ptr<class SeedMemory> kept_;
};

// The engine after manual_seed(seed) and so many draws. Cheap for counts that this thread asks for
// in rising order.
at::mt19937_data_pod state_after(uint64_t seed, uint64_t draws);

}  // namespace dormant::random
