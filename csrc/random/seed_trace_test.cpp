#include "random/seed_trace.h"

#include <gtest/gtest.h>

#include <optional>
#include <random>

#include "random/mt19937.h"

namespace dormant::random {
namespace {

void draw(at::CPUGeneratorImpl& generator, uint64_t draws) {
  at::mt19937 engine = generator.engine();
  at::mt19937_data_pod state = engine.data();
  advance(state, draws);
  engine.set_data(state);
  generator.set_engine(engine);
}

void draw_noted(at::CPUGeneratorImpl& generator, uint64_t draws) {
  draw(generator, draws);
  note_draws(generator, draws);
}

std::optional<uint64_t> located(at::CPUGeneratorImpl& generator) {
  return draws_since_seeding(generator, generator.engine().data());
}

TEST(SeedTrace, CountsNotedDrawsOfAnySize) {
  std::mt19937_64 choose(20260301);
  at::CPUGeneratorImpl generator(1001);
  EXPECT_EQ(located(generator), 0);
  uint64_t total = 0;
  for (int i = 0; i < 200; ++i) {
    const uint64_t draws = choose() % (uint64_t{1} << (choose() % 40));
    draw_noted(generator, draws);
    total += draws;
    EXPECT_EQ(located(generator), total) << "after step " << i;
  }
}

TEST(SeedTrace, FindsItsPlaceAgainAfterAFewDrawsThatWereNotNoted) {
  at::CPUGeneratorImpl generator(1002);
  uint64_t total = 0;
  for (const uint64_t draws : {1, 623, 1, 624, 5000, 0, 1000000, 2000000}) {
    draw(generator, draws);
    total += draws;
    EXPECT_EQ(located(generator), total);
  }
}

TEST(SeedTrace, FollowsSeveralGeneratorsInTurn) {
  at::CPUGeneratorImpl a(1003);
  at::CPUGeneratorImpl b(1004);
  uint64_t total = 0;
  for (int i = 1; i < 50; ++i) {
    draw_noted(a, 1000 * i);
    draw_noted(b, 700 * i);
    total += i;
    EXPECT_EQ(located(a), 1000 * total);
    EXPECT_EQ(located(b), 700 * total);
  }
}

TEST(SeedTrace, FollowsAReturnToAnEarlierState) {
  at::CPUGeneratorImpl generator(1005);
  draw_noted(generator, 100000);
  EXPECT_EQ(located(generator), 100000);
  const at::mt19937 saved = generator.engine();
  draw_noted(generator, 50000);
  EXPECT_EQ(located(generator), 150000);
  generator.set_engine(saved);
  EXPECT_EQ(located(generator), 100000);
  generator.set_current_seed(1005);
  EXPECT_EQ(located(generator), 0);
}

TEST(SeedTrace, IsLostAfterManyDrawsThatWereNotNotedUntilTheNextSeeding) {
  at::CPUGeneratorImpl generator(1006);
  draw(generator, uint64_t{1} << 40);
  EXPECT_EQ(located(generator), std::nullopt);
  draw_noted(generator, 5);
  EXPECT_EQ(located(generator), std::nullopt);
  generator.set_current_seed(1006);
  draw_noted(generator, 0);
  EXPECT_EQ(located(generator), 0);
  draw_noted(generator, 5);
  EXPECT_EQ(located(generator), 5);
}

TEST(SeedTrace, KnowsNoCountForWordsThatNoSeedingMakes) {
  at::CPUGeneratorImpl generator(1007);
  at::mt19937 engine = generator.engine();
  at::mt19937_data_pod state = engine.data();
  state.state_[7] ^= 1;
  engine.set_data(state);
  generator.set_engine(engine);
  EXPECT_EQ(located(generator), std::nullopt);
  generator.random();
  EXPECT_EQ(located(generator), std::nullopt);
}

TEST(SeedTrace, ComputesTheStateAfterACountInAnyOrder) {
  for (const uint64_t draws : {0ULL, 5ULL, 1ULL << 33, 5000ULL, 5000ULL, 0ULL, 624ULL}) {
    at::CPUGeneratorImpl generator(1008);
    draw(generator, draws);
    const at::mt19937_data_pod expected = generator.engine().data();
    const at::mt19937_data_pod got = state_after(1008, draws);
    EXPECT_TRUE(got.seed_ == expected.seed_ && got.left_ == expected.left_ &&
                got.next_ == expected.next_ && got.state_ == expected.state_)
        << draws << " draws";
  }
}

}  // namespace
}  // namespace dormant::random
