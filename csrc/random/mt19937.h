// Moves PyTorch's CPU random engine forward without drawing.
//
// at::mt19937 twists lazily: the 624 words of the next block are computed by the draw that needs
// the first of them, so a state is its words, the index of the next word and the number of draws
// left before the next twist. A generator that was moved here is told apart from one that drew by
// no field of at::mt19937_data_pod, so user code that saves, forks or reads it sees what eager
// construction shows.
#pragma once

#include <ATen/core/MT19937RNGEngine.h>

#include <array>
#include <cstdint>
#include <span>

#include "simd/level.h"

namespace dormant::random {

// One block of the engine: what a twist makes and the next 624 draws temper.
using Words = std::array<uint32_t, at::MERSENNE_STATE_N>;

// The word that stands 624 after `word`: `following` is the one after `word`, `middle` stands 397
// after it.
[[gnu::always_inline]] inline uint32_t next_word(uint32_t word, uint32_t following,
                                                 uint32_t middle) {
  const uint32_t mixed = (word & at::UMASK) | (following & at::LMASK);
  return middle ^ (mixed >> 1) ^ ((0U - (following & 1U)) & at::MATRIX_A);
}

// Replaces a block by the one after it. Every level gives the same words.
void twist(std::span<uint32_t, at::MERSENNE_STATE_N> words, simd::Level level = simd::highest());

// Leaves every field of `state` as `draws` calls of at::mt19937 on it would. Costs a twist per 624
// draws for small counts and a jump (jump.h) for large ones. `state` must be valid as
// at::mt19937::is_valid() tells; throws c10::ValueError where it is not. Any thread may call it, on
// its own state.
void advance(at::mt19937_data_pod& state, uint64_t draws);

}  // namespace dormant::random
