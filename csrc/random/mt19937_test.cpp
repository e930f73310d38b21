#include "random/mt19937.h"

#include <c10/util/Exception.h>
#include <gtest/gtest.h>

#include <cstdint>
#include <random>

namespace dormant::random {
namespace {

at::mt19937_data_pod drawn(uint64_t seed, uint64_t draws) {
  at::mt19937 engine(seed);
  for (uint64_t i = 0; i < draws; ++i) {
    engine();
  }
  return engine.data();
}

void expect_same(const at::mt19937_data_pod& got, const at::mt19937_data_pod& expected) {
  EXPECT_EQ(got.seed_, expected.seed_);
  EXPECT_EQ(got.left_, expected.left_);
  EXPECT_EQ(got.next_, expected.next_);
  EXPECT_EQ(got.seeded_, expected.seeded_);
  for (size_t i = 0; i < got.state_.size(); ++i) {
    ASSERT_EQ(got.state_[i], expected.state_[i]) << "first different word " << i;
  }
}

void expect_advance_equals_draws(uint64_t seed, uint64_t start, uint64_t draws) {
  SCOPED_TRACE(testing::Message() << "seed " << seed << ", start " << start << ", draws " << draws);
  at::mt19937_data_pod state = drawn(seed, start);
  advance(state, draws);
  expect_same(state, drawn(seed, start + draws));
}

TEST(Twist, MakesTheBlockThatTheNextDrawMakesOnEveryUnit) {
  for (const simd::Level level : simd::kLevels) {
    if (!simd::available(level)) {
      continue;
    }
    for (uint64_t seed = 0; seed < 20; ++seed) {
      at::mt19937 engine(seed);
      Words words = engine.data().state_;
      for (int block = 0; block < 5; ++block) {
        twist(words, level);
        engine();
        ASSERT_EQ(words, engine.data().state_)
            << "level " << simd::kLevelNames[static_cast<size_t>(level)] << ", seed " << seed;
        engine.set_data(drawn(seed, 624 * (block + 1)));
      }
    }
  }
}

TEST(Advance, EqualsDrawsAtTheEdgesOfBlocks) {
  for (const uint64_t start : {0, 1, 2, 623, 624, 625, 1247, 1248, 1249}) {
    for (const uint64_t draws : {0, 1, 2, 622, 623, 624, 625, 626, 1247, 1248, 1249, 6240}) {
      expect_advance_equals_draws(/*seed=*/start * 31 + draws, start, draws);
    }
  }
}

TEST(Advance, EqualsDrawsForRandomStartsAndCounts) {
  std::mt19937_64 choose(20260101);
  for (int i = 0; i < 400; ++i) {
    expect_advance_equals_draws(choose(), choose() % 3000, choose() % 20000);
  }
}

TEST(Advance, EqualsDrawsWhereItJumps) {
  std::mt19937_64 choose(20260102);
  for (int i = 0; i < 12; ++i) {
    expect_advance_equals_draws(choose(), choose() % 1300,
                                (uint64_t{1} << 21) + choose() % (uint64_t{1} << 21));
  }
}

TEST(Advance, InTwoPartsEqualsAdvanceInOne) {
  std::mt19937_64 choose(20260103);
  for (int i = 0; i < 200; ++i) {
    const uint64_t seed = choose();
    const uint64_t start = choose() % 1300;
    const uint64_t a = choose() >> (1 + choose() % 62);
    const uint64_t b = choose() >> (1 + choose() % 62);
    SCOPED_TRACE(testing::Message()
                 << "seed " << seed << ", start " << start << ", " << a << " + " << b);
    at::mt19937_data_pod parts = drawn(seed, start);
    at::mt19937_data_pod whole = parts;
    advance(parts, a);
    advance(parts, b);
    advance(whole, a + b);
    expect_same(parts, whole);
  }
}

// torch.set_rng_state takes any 624 words, also such as no seeding and no twist would make.
TEST(Advance, EqualsDrawsFromArbitraryWords) {
  std::mt19937_64 choose(20260104);
  for (const uint64_t draws : {uint64_t{1}, uint64_t{700}, uint64_t{3000000}}) {
    at::mt19937_data_pod state = drawn(1, choose() % 1300);
    for (uint32_t& word : state.state_) {
      word = static_cast<uint32_t>(choose());
    }
    at::mt19937 engine;
    engine.set_data(state);
    for (uint64_t i = 0; i < draws; ++i) {
      engine();
    }
    advance(state, draws);
    expect_same(state, engine.data());
  }
}

TEST(Advance, RefusesAStateThatTheEngineWouldReadOutOfBounds) {
  const at::mt19937_data_pod valid = drawn(1, 5);
  at::mt19937_data_pod unseeded = valid;
  unseeded.seeded_ = false;
  at::mt19937_data_pod none_left = valid;
  none_left.left_ = 0;
  at::mt19937_data_pod too_far = valid;
  too_far.next_ = 625;
  for (at::mt19937_data_pod state : {unseeded, none_left, too_far}) {
    EXPECT_THROW(advance(state, 1), c10::ValueError);
  }
}

}  // namespace
}  // namespace dormant::random
