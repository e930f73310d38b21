// Polynomials in one step of mt19937: what jump.h computes with.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

#include "random/mt19937.h"

namespace dormant::random {

// The degree of the characteristic polynomial of one step.
inline constexpr uint64_t kDegree = 19937;

// A polynomial over GF(2) of degree below kDegree: bit i is the coefficient of x^i.
inline constexpr size_t kPolynomialWords = (kDegree + 63) / 64;
using Polynomial = std::array<uint64_t, kPolynomialWords>;

// Replaces `words` by the words that stand `polynomial` after them: the sum over its terms x^i of
// the 624 words i further in the sequence. Every level gives the same words. Allocates 85 KiB, and
// leaves `words` as they were where there is no memory.
void apply(const Polynomial& polynomial, Words& words, simd::Level level = simd::highest());

}  // namespace dormant::random
