#include "random/jump.h"

#include <c10/util/Exception.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cstdint>
#include <random>
#include <thread>
#include <vector>

namespace dormant::random {
namespace {

constexpr uint64_t kDegree = 19937;

Words seeded(uint64_t seed) { return at::mt19937(seed).data().state_; }

// A polynomial over GF(2) or a bit string, bit 0 first.
class Bits {
 public:
  explicit Bits(size_t length) : words_((length + 63) / 64) {}
  bool test(size_t i) const { return words_[i / 64] >> (i % 64) & 1U; }
  void flip(size_t i) { words_[i / 64] ^= uint64_t{1} << (i % 64); }
  void shift_in(bool bit) {
    for (size_t i = words_.size() - 1; i != 0; --i) {
      words_[i] = words_[i] << 1 | words_[i - 1] >> 63;
    }
    words_[0] = words_[0] << 1 | static_cast<uint64_t>(bit);
  }
  void add_shifted(const Bits& other, size_t shift) {
    for (size_t i = words_.size(); i-- > shift / 64;) {
      uint64_t word = other.words_[i - shift / 64] << (shift % 64);
      if (shift % 64 != 0 && i > shift / 64) {
        word |= other.words_[i - shift / 64 - 1] >> (64 - shift % 64);
      }
      words_[i] ^= word;
    }
  }
  bool odd_overlap(const Bits& other, size_t length) const {
    uint64_t sum = 0;
    for (size_t i = 0; i < (length + 63) / 64; ++i) {
      sum ^= words_[i] & other.words_[i];
    }
    return std::popcount(sum) % 2 != 0;
  }

 private:
  std::vector<uint64_t> words_;
};

// The exponents of the characteristic polynomial of the shortest linear recurrence of `length`
// bits, from the highest on. J. L. Massey, "Shift-register synthesis and BCH decoding", IEEE
// Transactions on Information Theory 15(1), 1969.
template <typename NextBit>
std::vector<uint64_t> berlekamp_massey(size_t length, NextBit next_bit) {
  Bits connection(length + 1), previous(length + 1), history(length + 1);
  connection.flip(0);
  previous.flip(0);
  size_t order = 0;
  size_t gap = 1;
  for (size_t i = 0; i < length; ++i, ++gap) {
    history.shift_in(next_bit());
    if (!connection.odd_overlap(history, order + 1)) {
      continue;
    }
    const Bits before = connection;
    connection.add_shifted(previous, gap);
    if (2 * order <= i) {
      order = i + 1 - order;
      previous = before;
      gap = 0;
    }
  }
  std::vector<uint64_t> exponents;
  for (size_t i = 0; i <= order; ++i) {
    if (connection.test(i)) {
      exponents.push_back(order - i);
    }
  }
  return exponents;
}

TEST(Jump, UsesTheCharacteristicPolynomialThatBerlekampMasseyFindsInTheEnginesOutput) {
  at::mt19937 engine(4357);
  const std::vector<uint64_t> found =
      berlekamp_massey(2 * kDegree + 64, [&] { return (engine() & 1U) != 0; });
  std::vector<uint64_t> embedded = {kDegree};
  embedded.insert(embedded.end(), characteristic_tail().begin(), characteristic_tail().end());
  EXPECT_EQ(found, embedded);
}

TEST(Jump, EqualsTwistsOnEveryUnit) {
  std::mt19937_64 choose(20260201);
  std::vector<uint64_t> counts = {0, 1, 2, 3, 31, 32, 33, 34, 35, 1000};
  for (int i = 0; i < 20; ++i) {
    counts.push_back(choose() % 5000);
  }
  for (const uint64_t blocks : counts) {
    const uint64_t seed = choose();
    Words stepped = seeded(seed);
    for (uint64_t i = 0; i < blocks; ++i) {
      twist(stepped);
    }
    for (const simd::Level level : simd::kLevels) {
      if (simd::available(level)) {
        Words jumped = seeded(seed);
        jump(jumped, blocks, level);
        EXPECT_EQ(jumped, stepped) << "level " << simd::kLevelNames[static_cast<size_t>(level)]
                                   << ", seed " << seed << ", blocks " << blocks;
      }
    }
  }
}

// The polynomials themselves must not differ either: a cache entry made by one unit serves all.
TEST(Jump, InTwoPartsEqualsOneJumpAtAnyDistanceOnEveryUnit) {
  std::mt19937_64 choose(20260202);
  for (const simd::Level level : simd::kLevels) {
    for (int i = 0; simd::available(level) && i < 20; ++i) {
      const uint64_t seed = choose();
      const uint64_t a = choose() >> (11 + choose() % 50);
      const uint64_t b = choose() >> (11 + choose() % 50);
      Words parts = seeded(seed);
      Words whole = parts;
      jump(parts, a, level);
      jump(parts, b, level);
      jump(whole, a + b, level);
      EXPECT_EQ(parts, whole) << "level " << simd::kLevelNames[static_cast<size_t>(level)]
                              << ", seed " << seed << ", blocks " << a << " + " << b;
    }
  }
}

TEST(Jump, RefusesMoreDrawsThanSixtyFourBitsCount) {
  Words words = seeded(1);
  const Words before = words;
  EXPECT_THROW(jump(words, kMaxJumpBlocks + 1), c10::ValueError);
  EXPECT_EQ(words, before);
}

TEST(JumpThreaded, GivesTheSameWordsWhenThreadsCrowdTheCache) {
  constexpr uint64_t kCounts = 70;  // more than the cache holds
  const auto run = [](uint64_t thread) {
    std::vector<Words> results(kCounts, seeded(5));
    for (uint64_t i = 0; i < kCounts; ++i) {
      const uint64_t k = (i * 37 + thread * 11) % kCounts;
      jump(results[k], 40 + k);
    }
    return results;
  };
  const std::vector<Words> expected = run(0);
  std::vector<std::vector<Words>> results(3);
  {
    std::vector<std::jthread> threads;
    for (uint64_t t = 0; t < results.size(); ++t) {
      threads.emplace_back([&results, &run, t] { results[t] = run(t); });
    }
  }
  for (size_t t = 0; t < results.size(); ++t) {
    EXPECT_EQ(results[t], expected) << "thread " << t;
  }
}

}  // namespace
}  // namespace dormant::random
