#include "random/position.h"

#include <c10/util/Exception.h>
#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <limits>
#include <string>
#include <thread>
#include <vector>

#include "random/seed_trace.h"

namespace dormant::random {
namespace {

// The size of a position kept as a seed and a count, and as the whole engine.
constexpr size_t kShort = 2 + 8 + 8;
constexpr size_t kWhole = 2 + 8 + 4 + 624 * 4;

void draw(at::CPUGeneratorImpl& generator, int draws) {
  for (int i = 0; i < draws; ++i) {
    generator.random();
  }
}

void expect_same_numbers(at::Generator restored, at::CPUGeneratorImpl& expected) {
  auto& got = *restored.get<at::CPUGeneratorImpl>();
  EXPECT_EQ(got.current_seed(), expected.current_seed());
  EXPECT_EQ(got.next_double_normal_sample(), expected.next_double_normal_sample());
  EXPECT_EQ(got.next_float_normal_sample(), expected.next_float_normal_sample());
  for (int i = 0; i < 1300; ++i) {
    ASSERT_EQ(got.random(), expected.random()) << "draw " << i;
  }
}

TEST(Position, RestoresTheNumbersThatTheGeneratorWouldHaveDrawn) {
  for (const int draws : {0, 1, 623, 624, 625, 5000}) {
    at::CPUGeneratorImpl generator(42);
    draw(generator, draws);
    generator.set_next_double_normal_sample(0.125 * draws);
    const Position position = Position::of(generator);
    EXPECT_EQ(position.cached_normal(), 0.125 * draws);
    expect_same_numbers(position.restore(), generator);
  }
}

TEST(Position, DoesNotFollowTheGeneratorItWasTakenFrom) {
  at::CPUGeneratorImpl generator(42);
  const Position position = Position::of(generator);
  const Position copy = position;
  draw(generator, 1000);
  at::CPUGeneratorImpl same(42);
  expect_same_numbers(copy.restore(), same);
  EXPECT_FALSE(position == Position::of(generator));
}

TEST(Position, RestoresIntoAGeneratorInUse) {
  at::CPUGeneratorImpl generator(42);
  draw(generator, 700);
  const Position position = Position::of(generator);
  at::CPUGeneratorImpl other(9);
  other.set_next_double_normal_sample(1.0);
  position.restore_to(other);
  EXPECT_EQ(Position::of(other), position);
  EXPECT_EQ(other.next_double_normal_sample(), std::nullopt);
}

TEST(Position, DiffersByEachPartOfTheState) {
  at::CPUGeneratorImpl generator(42);
  draw(generator, 10);
  const Position position = Position::of(generator);
  EXPECT_EQ(position, Position::of(generator));
  generator.set_next_double_normal_sample(0.0);
  const Position positive = Position::of(generator);
  EXPECT_FALSE(positive == position);
  generator.set_next_double_normal_sample(-0.0);
  EXPECT_FALSE(Position::of(generator) == positive);
  generator.set_next_double_normal_sample(std::nullopt);
  generator.set_next_float_normal_sample(0.0F);
  EXPECT_FALSE(Position::of(generator) == position);
  generator.set_next_float_normal_sample(std::nullopt);
  EXPECT_EQ(Position::of(generator), position);
  draw(generator, 1);
  EXPECT_FALSE(Position::of(generator) == position);
}

TEST(Position, CountsItsMemory) {
  at::CPUGeneratorImpl generator(42);
  const size_t memory = Position::of(generator).memory();
  EXPECT_GE(memory, sizeof(Words));
  EXPECT_LE(memory, sizeof(Words) + 128);
}

TEST(Position, IsKeptAsASeedAndACountWhereThatIsExact) {
  at::CPUGeneratorImpl generator(43);
  Position::of(generator);
  draw(generator, 5000);
  const Position position = Position::of(generator);
  const std::string bytes = position.serialize();
  EXPECT_EQ(bytes.size(), kShort);
  const Position read = Position::deserialize(bytes);
  EXPECT_EQ(read, position);
  EXPECT_EQ(read.serialize(), bytes);
  expect_same_numbers(read.restore(), generator);
}

TEST(Position, IsKeptWholeWhereItsSeedDoesNotLeadToIt) {
  at::CPUGeneratorImpl generator(44);
  at::mt19937 engine = generator.engine();
  at::mt19937_data_pod state = engine.data();
  state.state_[100] ^= 1;
  engine.set_data(state);
  generator.set_engine(engine);
  draw(generator, 100);
  const Position position = Position::of(generator);
  const std::string bytes = position.serialize();
  EXPECT_EQ(bytes.size(), kWhole);
  EXPECT_EQ(Position::deserialize(bytes), position);
}

// A guess may be wrong: here draws are noted that were not made, a whole block of them so that it
// looks plausible.
TEST(Position, IsKeptWholeWhereTheCountIsAWrongGuess) {
  at::CPUGeneratorImpl generator(45);
  draw(generator, 10);
  Position::of(generator);
  draw(generator, 3 * 624);
  note_draws(generator, 5 * 624);
  const Position position = Position::of(generator);
  const std::string bytes = position.serialize();
  EXPECT_EQ(bytes.size(), kWhole);
  EXPECT_EQ(Position::deserialize(bytes), position);
}

TEST(Position, KeepsTheBitsOfCachedNormals) {
  for (const double cached :
       {-0.0, 1.0 / 3, std::numeric_limits<double>::denorm_min(), std::nan("7")}) {
    at::CPUGeneratorImpl generator(46);
    generator.set_next_double_normal_sample(cached);
    generator.set_next_float_normal_sample(static_cast<float>(cached));
    const Position position = Position::of(generator);
    const Position read = Position::deserialize(position.serialize());
    EXPECT_EQ(read, position);
    EXPECT_EQ(std::bit_cast<uint64_t>(*read.cached_normal()), std::bit_cast<uint64_t>(cached));
  }
}

// The bytes are a file format: a change of these needs a new version.
TEST(Position, IsReadFromBytesThatAnEarlierBuildWrote) {
  const std::string bytes("\x01\x05\x2a\0\0\0\0\0\0\0\0\0\0\0\0\0\xf8\x3f\x88\x13\0\0\0\0\0\0", 26);
  at::CPUGeneratorImpl generator(42);
  draw(generator, 5000);
  generator.set_next_double_normal_sample(1.5);
  const Position expected = Position::of(generator);
  EXPECT_EQ(Position::deserialize(bytes), expected);
  EXPECT_EQ(expected.serialize(), bytes);
}

TEST(Position, RefusesMalformedBytes) {
  at::CPUGeneratorImpl generator(47);
  Position::of(generator);
  generator.set_next_double_normal_sample(1.0);
  const std::string since_seeding = Position::of(generator).serialize();
  generator.set_engine(at::mt19937(48));
  at::mt19937 engine = generator.engine();
  at::mt19937_data_pod state = engine.data();
  state.state_[0] ^= 1;
  engine.set_data(state);
  generator.set_engine(engine);
  const std::string whole = Position::of(generator).serialize();
  ASSERT_NE(since_seeding.size(), whole.size());
  for (const std::string& good : {since_seeding, whole}) {
    for (size_t length = 0; length < good.size(); ++length) {
      EXPECT_THROW(Position::deserialize(good.substr(0, length)), c10::ValueError)
          << "cut to " << length;
    }
    EXPECT_THROW(Position::deserialize(good + '\0'), c10::ValueError);
    std::string version = good;
    version[0] = 2;
    EXPECT_THROW(Position::deserialize(version), c10::ValueError);
    std::string flags = good;
    flags[1] = static_cast<char>(flags[1] | 8);
    EXPECT_THROW(Position::deserialize(flags), c10::ValueError);
  }
  constexpr size_t kLeft = 2 + 8 + 8;
  for (const auto& [at, value] :
       {std::pair<size_t, int>{kLeft, 0}, {kLeft + 1, 3}, {kLeft + 1, 255}, {kLeft + 3, 3}}) {
    std::string state_bytes = whole;
    state_bytes[at] = static_cast<char>(value);
    if (at == kLeft) {
      state_bytes[kLeft + 1] = 0;
    }
    EXPECT_THROW(Position::deserialize(state_bytes), c10::ValueError)
        << "byte " << at << " = " << value;
  }
  std::string beyond = whole;  // 624 left of a block of which 624 were drawn
  beyond.replace(kLeft, 4, std::string("\x70\x02\x70\x02", 4));
  EXPECT_THROW(Position::deserialize(beyond), c10::ValueError);
  std::string zeros = whole;
  zeros.replace(kLeft + 4, std::string::npos, std::string(4 * size_t{624}, '\0'));
  EXPECT_THROW(Position::deserialize(zeros), c10::ValueError);
}

TEST(Position, ThatWasReadIsAsShortWhenItIsTakenAgain) {
  const std::string bytes = [] {
    at::CPUGeneratorImpl generator(50);
    Position::of(generator);
    at::mt19937 engine(50);
    engine.set_data(state_after(50, 1'000'000'007));
    generator.set_engine(engine);
    note_draws(generator, 1'000'000'007);
    return Position::of(generator).serialize();
  }();
  ASSERT_EQ(bytes.size(), kShort);
  const SeparateTrace trace;
  at::Generator restored = Position::deserialize(bytes).restore();
  EXPECT_EQ(Position::of(*restored.get<at::CPUGeneratorImpl>()).serialize(), bytes);
}

TEST(PositionThreaded, MayBeReadByManyThreads) {
  at::CPUGeneratorImpl generator(49);
  draw(generator, 700);
  const Position position = Position::of(generator);
  const std::string bytes = position.serialize();
  std::vector<int> equal(4);
  {
    std::vector<std::jthread> threads;
    for (int& count : equal) {
      threads.emplace_back([&count, &position, &bytes] {
        for (int i = 0; i < 50; ++i) {
          at::Generator restored = position.restore();
          count +=
              Position::of(*restored.get<at::CPUGeneratorImpl>()) == Position::deserialize(bytes)
                  ? 1
                  : 0;
        }
      });
    }
  }
  EXPECT_EQ(equal, std::vector<int>(4, 50));
}

}  // namespace
}  // namespace dormant::random
