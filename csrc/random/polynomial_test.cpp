#include "random/polynomial.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <random>
#include <vector>

namespace dormant::random {
namespace {

constexpr uint64_t kN = at::MERSENNE_STATE_N;

// Words in which the recurrence reads every bit: what no twist made is not told from the rest.
Words any_words(uint64_t seed) {
  std::mt19937 choose(static_cast<uint32_t>(seed));
  Words words;
  std::generate(words.begin(), words.end(), [&] { return static_cast<uint32_t>(choose()); });
  return words;
}

// The definition: the words i further, added up over the terms x^i.
Words sum_of_terms(const Polynomial& polynomial, const Words& words) {
  std::vector<uint32_t> sequence(words.begin(), words.end());
  for (uint64_t i = 0; i < kDegree; ++i) {
    sequence.push_back(next_word(sequence[i], sequence[i + 1], sequence[i + at::MERSENNE_STATE_M]));
  }
  Words sum{};
  for (uint64_t i = 0; i < kDegree; ++i) {
    if (polynomial[i / 64] >> (i % 64) & 1U) {
      for (uint64_t k = 0; k < kN; ++k) {
        sum[k] ^= sequence[i + k];
      }
    }
  }
  return sum;
}

void expect_equal_on_every_unit(const Polynomial& polynomial, const Words& words) {
  const Words expected = sum_of_terms(polynomial, words);
  for (const simd::Level level : simd::kLevels) {
    if (simd::available(level)) {
      Words applied = words;
      apply(polynomial, applied, level);
      EXPECT_EQ(applied, expected) << simd::kLevelNames[static_cast<size_t>(level)];
    }
  }
}

TEST(Polynomial, OfOneTermGivesTheWordsThatFarOnEveryUnit) {
  for (const uint64_t exponent :
       {uint64_t{0}, uint64_t{1}, uint64_t{31}, uint64_t{63}, uint64_t{64}, uint64_t{65},
        uint64_t{623}, uint64_t{624}, uint64_t{19903}, uint64_t{19904}, kDegree - 2, kDegree - 1}) {
    SCOPED_TRACE(exponent);
    Polynomial polynomial{};
    polynomial[exponent / 64] = uint64_t{1} << (exponent % 64);
    expect_equal_on_every_unit(polynomial, any_words(exponent));
  }
}

TEST(Polynomial, OfManyTermsGivesTheirSumOnEveryUnit) {
  std::mt19937_64 choose(20261130);
  for (int i = 0; i < 20; ++i) {
    SCOPED_TRACE(i);
    Polynomial polynomial;
    std::generate(polynomial.begin(), polynomial.end(), [&] { return choose(); });
    polynomial.back() &= (uint64_t{1} << (kDegree % 64)) - 1;
    expect_equal_on_every_unit(polynomial, any_words(choose()));
  }
}

TEST(Polynomial, OfAllTermsAndOfNone) {
  Polynomial all;
  all.fill(~uint64_t{0});
  all.back() = (uint64_t{1} << (kDegree % 64)) - 1;
  expect_equal_on_every_unit(all, any_words(1));
  expect_equal_on_every_unit(Polynomial{}, any_words(2));
  Words ones;
  ones.fill(~uint32_t{0});
  expect_equal_on_every_unit(all, ones);
}

}  // namespace
}  // namespace dormant::random
