// Jump-ahead on mt19937: any number of blocks at the price of a few hundred twists.
//
// A twist is linear over GF(2), so `n` steps of the recurrence are a polynomial in one step, taken
// modulo the characteristic polynomial (degree 19937). Stepping a model of 4e11 parameters would
// take a minute; jumping takes 25 us per tensor. The method: Haramoto, Matsumoto, Nishimura,
// Panneton, L'Ecuyer, "Efficient Jump Ahead for F2-Linear Random Number Generators", INFORMS
// Journal on Computing 20(3), 2008. How a polynomial is applied to a state (polynomial.cpp) is not
// theirs.
#pragma once

#include <cstdint>
#include <span>

#include "random/mt19937.h"

namespace dormant::random {

// The largest count of blocks whose draws fit 64 bits.
inline constexpr uint64_t kMaxJumpBlocks = UINT64_MAX / at::MERSENNE_STATE_N;

// Equals `blocks` calls of twist(words), for any words and at every level. Throws c10::ValueError
// above kMaxJumpBlocks. Thread safe: the polynomials of recent counts are kept in a small bounded
// cache that all threads share, since a model repeats the sizes of its tensors.
void jump(Words& words, uint64_t blocks, simd::Level level = simd::highest());

// The exponents of the characteristic polynomial, the leading 19937 left out, from the highest on.
std::span<const uint16_t> characteristic_tail();

}  // namespace dormant::random
