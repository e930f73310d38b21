// Kernels against PyTorch's own operators, bit for bit.

#include "random/stream.h"

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <gtest/gtest.h>
#include <torch/headeronly/version.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "random/aten_kernels.h"
#include "random/exact_path.h"
#include "random/typed_kernels.h"
#include "simd/kernels.h"

namespace dormant::random {
namespace {

constexpr c10::ScalarType kFloat = c10::ScalarType::Float;
constexpr c10::ScalarType kBFloat16 = c10::ScalarType::BFloat16;
constexpr c10::ScalarType kHalf = c10::ScalarType::Half;
constexpr c10::ScalarType kDouble = c10::ScalarType::Double;

// Levels whose kernels must give the bits of ATen as it runs now; the test processor may lack some.
std::vector<const StreamKernels*> levels() {
  auto tables = simd::available_kernels<StreamKernels>();
  const std::string aten = at::get_cpu_capability();
  if (aten == "AVX2" || aten == "AVX512") {
    tables.erase(tables.begin());  // contracts nothing
  } else {
    tables.resize(1);
  }
  return tables;
}

// Own kernels are those of torch 2.13. Older releases round differently in some dtypes, which the
// trial finds (ExactPath.RunsOwnKernelsAtTheLevelThatAtenUses): nobody runs the kernel for these.
bool is_run(const std::vector<Path>& paths, c10::ScalarType dtype) {
  return TORCH_VERSION_MINOR >= 13 || paths[static_cast<size_t>(dtype)] == Path::kernel;
}

at::mt19937_data_pod engine_at(uint64_t seed, uint64_t offset) {
  at::mt19937 engine(seed);
  for (uint64_t i = 0; i < offset; ++i) {
    engine();
  }
  return engine.data();
}

at::Generator generator_at(const at::mt19937_data_pod& engine) {
  at::Generator generator = at::detail::createCPUGenerator();
  at::mt19937 positioned;
  positioned.set_data(engine);
  generator.get<at::CPUGeneratorImpl>()->set_engine(positioned);
  return generator;
}

at::mt19937_data_pod engine_of(const at::Generator& generator) {
  return generator.get<at::CPUGeneratorImpl>()->engine().data();
}

testing::AssertionResult same_engine(const at::mt19937_data_pod& got,
                                     const at::mt19937_data_pod& expected) {
  if (got.seed_ == expected.seed_ && got.left_ == expected.left_ && got.next_ == expected.next_ &&
      got.seeded_ == expected.seeded_ && got.state_ == expected.state_) {
    return testing::AssertionSuccess();
  }
  return testing::AssertionFailure()
         << "engine: got left " << got.left_ << ", next " << got.next_ << ", first word "
         << got.state_[0] << "; expected " << expected.left_ << ", " << expected.next_ << ", "
         << expected.state_[0];
}

testing::AssertionResult same_bits(const at::Tensor& got, const at::Tensor& expected) {
  const size_t width = got.element_size();
  const auto* a = static_cast<const unsigned char*>(got.const_data_ptr());
  const auto* b = static_cast<const unsigned char*>(expected.const_data_ptr());
  if (got.nbytes() != expected.nbytes() || got.scalar_type() != expected.scalar_type()) {
    return testing::AssertionFailure()
           << "got " << got.nbytes() << " bytes, expected " << expected.nbytes();
  }
  for (size_t i = 0; i < static_cast<size_t>(got.numel()); ++i) {
    if (std::memcmp(a + i * width, b + i * width, width) != 0) {
      return testing::AssertionFailure()
             << "element " << i << " of " << got.numel() << ": got "
             << got.flatten()[static_cast<int64_t>(i)].toString() << " "
             << got.flatten()[static_cast<int64_t>(i)].item().toDouble() << ", expected "
             << expected.flatten()[static_cast<int64_t>(i)].item().toDouble();
    }
  }
  return testing::AssertionSuccess();
}

at::Tensor filled_with_garbage(size_t n, c10::ScalarType dtype) {
  at::Tensor tensor = at::empty({static_cast<int64_t>(n)}, dtype);
  if (n > 0) {
    std::memset(tensor.mutable_data_ptr(), 0xa5, tensor.nbytes());
  }
  return tensor;
}

constexpr size_t kGuard = 64;  // elements past the end that must stay as they were

// Runs `kernel` at every level from `start`, and compares values and engine with `aten`.
template <class Aten, class Kernel>
void expect_equal(const at::mt19937_data_pod& start, size_t n, c10::ScalarType dtype, Aten&& aten,
                  Kernel&& kernel) {
  at::Generator generator = generator_at(start);
  at::Tensor expected = filled_with_garbage(n, dtype);
  aten(expected, generator);
  for (const StreamKernels* level : levels()) {
    SCOPED_TRACE(level->name);
    Stream stream(start);
    at::Tensor got = filled_with_garbage(n + kGuard, dtype);
    if (!kernel(*level, stream.block(), got.mutable_data_ptr())) {
      continue;
    }
    const auto end = static_cast<int64_t>(n);
    ASSERT_TRUE(same_bits(got.slice(0, 0, end), expected));
    ASSERT_TRUE(same_bits(got.slice(0, end), filled_with_garbage(kGuard, dtype)))
        << "wrote past the end";
    ASSERT_TRUE(same_engine(stream.engine(), engine_of(generator)));
  }
}

void expect_normal(const at::mt19937_data_pod& start, size_t n, c10::ScalarType dtype, double mean,
                   double std) {
  if (!is_run(exact_path().normal, dtype)) {
    return;
  }
  SCOPED_TRACE("normal_(" + std::to_string(mean) + ", " + std::to_string(std) + ") of " +
               std::to_string(n) + " " + c10::toString(dtype));
  expect_equal(
      start, n, dtype, [&](at::Tensor& t, const at::Generator& g) { t.normal_(mean, std, g); },
      [&](const StreamKernels& level, EngineBlock& block, void* out) {
        return kernel_block_normal(level, block, dtype, out, n, mean, std);
      });
}

void expect_uniform(const at::mt19937_data_pod& start, size_t n, c10::ScalarType dtype, double from,
                    double to) {
  if (!is_run(exact_path().uniform, dtype)) {
    return;
  }
  SCOPED_TRACE("uniform_(" + std::to_string(from) + ", " + std::to_string(to) + ") of " +
               std::to_string(n) + " " + c10::toString(dtype));
  expect_equal(
      start, n, dtype, [&](at::Tensor& t, const at::Generator& g) { t.uniform_(from, to, g); },
      [&](const StreamKernels& level, EngineBlock& block, void* out) {
        return kernel_uniform(level, block, dtype, out, n, from, to);
      });
}

void expect_bernoulli(const at::mt19937_data_pod& start, size_t n, c10::ScalarType dtype,
                      double p) {
  SCOPED_TRACE("bernoulli_(" + std::to_string(p) + ") of " + std::to_string(n) + " " +
               c10::toString(dtype));
  expect_equal(
      start, n, dtype, [&](at::Tensor& t, const at::Generator& g) { t.bernoulli_(p, g); },
      [&](const StreamKernels& level, EngineBlock& block, void* out) {
        return kernel_bernoulli(level, block, dtype, out, n, p);
      });
}

// The state word that tempering turns into `draw`.
uint32_t untempered(uint32_t draw) {
  uint32_t y = draw;
  y ^= y >> 18;
  y ^= (y << 15) & 0xefc60000u;
  uint32_t shifted = y;
  for (int i = 0; i < 5; ++i) {
    shifted = y ^ ((shifted << 7) & 0x9d2c5680u);
  }
  y = shifted;
  return y ^ (y >> 11) ^ (y >> 22);
}

constexpr size_t kCraftedDraws =
    608;  // whole blocks of 16 among the 623 draws that follow the first of a twist

// An engine whose next draws are `draws`.
at::mt19937_data_pod crafted_engine(const std::vector<uint32_t>& draws) {
  at::mt19937_data_pod engine = engine_at(1, 1);
  for (size_t i = 0; i < draws.size(); ++i) {
    engine.state_[i + 1] = untempered(draws[i]);
  }
  return engine;
}

// Numbers in [0, 2^53) are the 53 bits of two draws themselves, at every level.
TEST(Stream, DrawsWhatTheEngineDraws) {
  std::mt19937 pick(11);
  for (int trial = 0; trial < 200; ++trial) {
    const uint64_t offset = pick() % 2000;
    const size_t n = 1 + pick() % 1500;
    SCOPED_TRACE("offset " + std::to_string(offset) + ", " + std::to_string(n) + " numbers");
    at::mt19937 reference;
    reference.set_data(engine_at(trial, offset));
    for (const StreamKernels* level : simd::available_kernels<StreamKernels>()) {
      at::mt19937 engine = reference;
      Stream stream(engine.data());
      std::vector<double> got(n);
      level->uniform(stream.block(), Format::float64, got.data(), n, 0.0, 0x1p53);
      for (size_t i = 0; i < n; ++i) {
        const uint64_t high = engine() & ((1u << 21) - 1);
        ASSERT_EQ(got[i], static_cast<double>(high << 32 | engine()))
            << level->name << ", number " << i;
      }
      ASSERT_TRUE(same_engine(stream.engine(), engine.data()));
    }
  }
}

// Every kernel where levels need not differ: bounds of uniform_ that make each step exact.
TEST(Stream, IsTheSameAtEveryLevel) {
  constexpr size_t kElements = 5000;
  const at::mt19937_data_pod start = engine_at(7, 333);
  const auto expect_same = [&](const std::string& what, auto run) {
    std::vector<unsigned char> expected(kElements * 8);
    Stream portable(start);
    run(simd::kernels<StreamKernels>(simd::Level::portable), portable.block(), expected.data());
    for (const StreamKernels* level : simd::available_kernels<StreamKernels>()) {
      std::vector<unsigned char> got(kElements * 8);
      Stream stream(start);
      run(*level, stream.block(), got.data());
      EXPECT_TRUE(got == expected) << what << " at level " << level->name;
      EXPECT_TRUE(same_engine(stream.engine(), portable.engine())) << what << ", " << level->name;
    }
  };
  expect_same("twist",
              [](const StreamKernels& level, EngineBlock& block, void*) { level.twist(block, 3); });
  for (const Format format :
       {Format::float32, Format::bfloat16, Format::float16, Format::float64}) {
    expect_same("uniform", [&](const StreamKernels& level, EngineBlock& block, void* out) {
      level.uniform(block, format, out, kElements - 1, 0.0, 2.0);
    });
  }
  for (const size_t width : {1, 2, 4, 8}) {
    expect_same("bernoulli", [&](const StreamKernels& level, EngineBlock& block, void* out) {
      level.bernoulli(block, width, 0x0102030405060708, out, kElements - 1, 0.3);
    });
  }
}

TEST(Stream, SkipsAsTheEngineDraws) {
  std::mt19937 pick(12);
  for (int trial = 0; trial < 200; ++trial) {
    const uint64_t offset = trial < 4 ? static_cast<uint64_t>(trial) * 312 : pick() % 2000;
    const uint64_t n = trial % 4 == 0 ? pick() % 100000 : pick() % 1300;
    Stream stream(engine_at(trial, offset));
    stream.skip(n);
    ASSERT_TRUE(same_engine(stream.engine(), engine_at(trial, offset + n)))
        << "seed " << trial << ", from " << offset << " by " << n;
  }
}

TEST(Stream, JumpsAsFarAsItTwists) {
  constexpr uint64_t kFar = (uint64_t{1} << 22) + 12345;
  Stream jumped(engine_at(3, 77));
  jumped.skip(kFar);
  Stream stepped(engine_at(3, 77));
  for (uint64_t left = kFar; left > 0;) {
    const uint64_t step = std::min<uint64_t>(left, 1000003);
    stepped.skip(step);
    left -= step;
  }
  EXPECT_TRUE(same_engine(jumped.engine(), stepped.engine()));
}

TEST(Stream, AFreshlySeededEngineStaysSoUntilItDraws) {
  const at::mt19937_data_pod fresh = at::mt19937(9).data();
  Stream stream(fresh);
  stream.skip(0);
  EXPECT_TRUE(same_engine(stream.engine(), fresh));
}

TEST(Stream, RefusesStatesThatNoEngineReaches) {
  for (const auto& [left, next] :
       {std::pair{0, 0u}, {625, 0u}, {1, 1u}, {624, 624u}, {2, 0u}, {-3, 628u}}) {
    at::mt19937_data_pod engine = at::mt19937(1).data();
    engine.left_ = left;
    engine.next_ = next;
    EXPECT_THROW(Stream{engine}, c10::ValueError) << "left " << left << ", next " << next;
  }
  at::mt19937_data_pod engine = at::mt19937(1).data();
  engine.seeded_ = false;
  EXPECT_THROW(Stream{engine}, c10::ValueError);
}

TEST(BlockNormal, EqualsAtenForEveryRadiusAndEveryAngle) {
  constexpr uint32_t kValues = 1u << 24;
  // Two pairings of all 2^24 numbers with all 2^24 numbers, each a permutation.
  for (const uint32_t factor : {1u, 0x9e3779b1u}) {
    for (uint32_t first = 0; first < kValues; first += kCraftedDraws / 2) {
      std::vector<uint32_t> draws(kCraftedDraws);
      for (uint32_t i = 0; i < kCraftedDraws / 2; ++i) {
        const uint32_t radius = std::min(first + i, kValues - 1);
        const uint32_t angle = (radius * factor + 5 * factor) & (kValues - 1);
        draws[i / 8 * 16 + i % 8] = radius | 0x5a000000u;
        draws[i / 8 * 16 + 8 + i % 8] = angle | 0xc3000000u;
      }
      const at::mt19937_data_pod start = crafted_engine(draws);
      at::Generator generator = generator_at(start);
      float expected[kCraftedDraws];
      at::Tensor view = at::from_blob(expected, {kCraftedDraws}, kFloat);
      view.normal_(0.0, 1.0, generator);
      for (const StreamKernels* level : levels()) {
        if (level->block_normal == nullptr) {
          continue;
        }
        float got[kCraftedDraws];
        Stream stream(start);
        level->block_normal(stream.block(), Format::float32, got, kCraftedDraws, 0.0, 1.0);
        ASSERT_EQ(std::memcmp(got, expected, sizeof got), 0)
            << level->name << ", radii from " << first;
      }
    }
  }
}

TEST(BlockNormal, EqualsAtenForManyPlacesAndArguments) {
  constexpr double kInfinity = std::numeric_limits<double>::infinity();
  const std::pair<double, double> arguments[] = {
      {0.0, 1.0},       {0.0, 0.02},         {-0.0, 1.0},
      {0.3, 0.0},       {-2.5, 0.7},         {1e30, 1e-30},
      {0.0, 1e38},      {0.0, 1e-38},        {0.0, 1e-45},
      {1e-40, 3e-42},   {0.0, 6e-8},         {0.0, 3e4},
      {7.0, 1e-9},      {0.0, kInfinity},    {kInfinity, 1.0},
      {0.1, 1.0 / 3.0}, {std::nan(""), 1.0}, {kInfinity, kInfinity},
      {0.0, 1e-3},      {-1e-6, 2e-7},       {65504.0, 1e3}};
  std::mt19937 pick(13);
  for (const c10::ScalarType dtype : {kFloat, kBFloat16, kHalf}) {
    for (const auto& [mean, std] : arguments) {
      for (int trial = 0; trial < 4; ++trial) {
        const uint64_t offset = pick() % 1300;
        const size_t n = 16 * (1 + pick() % 200);
        SCOPED_TRACE("seed " + std::to_string(trial) + ", offset " + std::to_string(offset));
        expect_normal(engine_at(trial, offset), n, dtype, mean, std);
        ASSERT_FALSE(testing::Test::HasFailure());
      }
    }
  }
}

TEST(BlockNormal, EqualsAtenWhereTheRadiusIsZero) {
  for (const double mean : {0.0, -0.0, 1.5}) {
    std::vector<uint32_t> draws(kCraftedDraws, 0);
    for (uint32_t i = 0; i < kCraftedDraws; ++i) {
      draws[i] = i % 16 < 8 ? 0 : i * 27594u;
    }
    expect_normal(crafted_engine(draws), kCraftedDraws, kFloat, mean, 1.0);
    expect_normal(crafted_engine(draws), kCraftedDraws, kFloat, mean, 0.0);
  }
}

TEST(BlockNormal, EqualsAtenForMillionsOfElements) {
  for (const c10::ScalarType dtype : {kFloat, kBFloat16, kHalf}) {
    expect_normal(engine_at(21, 5), size_t{1} << 22, dtype, 0.0, 0.02);
  }
}

TEST(Uniform, EqualsAtenForManyPlacesAndBounds) {
  const float above_one = std::nextafter(1.0f, 2.0f);
  const std::pair<double, double> bounds[] = {{0.0, 1.0},       {-1.0, 1.0},
                                              {-0.1, 0.7},      {2.5, 2.5},
                                              {1.0, above_one}, {0.0, 0.0},
                                              {-0.0, 0.0},      {1000.0, 1000.1},
                                              {-1e38, 1e38},    {0.0, 1e-40},
                                              {0.0, 3e-45},     {1e-38, 3e-38},
                                              {-3.0, -2.0},     {1.0, 1.003},
                                              {0.0, 65000.0},   {-6e-8, 6e-8},
                                              {0.1, 0.3},       {16777216.0, 16777218.0},
                                              {-0.05, 0.05},    {1.0 / 3.0, 2.0 / 3.0}};
  std::mt19937 pick(14);
  for (const c10::ScalarType dtype : {kFloat, kBFloat16, kHalf, kDouble}) {
    for (const auto& [from, to] : bounds) {
      if (dtype == kHalf && (from < -65504.0 || to > 65504.0)) {
        continue;  // uniform_ refuses them
      }
      for (int trial = 0; trial < 4; ++trial) {
        const uint64_t offset = pick() % 1300;
        const size_t n = 1 + pick() % 3000;
        SCOPED_TRACE("seed " + std::to_string(trial) + ", offset " + std::to_string(offset));
        expect_uniform(engine_at(trial, offset), n, dtype, from, to);
        ASSERT_FALSE(testing::Test::HasFailure());
      }
    }
  }
}

TEST(Uniform, IsThatOfAtenWhereRoundingReachesTheUpperBound) {
  // The largest number rounds up to 1 in all formats but float64; there, it does with an upper
  // bound that is near.
  const std::vector<uint32_t> draws(kCraftedDraws, 0xffffffff);
  const at::mt19937_data_pod start = crafted_engine(draws);
  for (const c10::ScalarType dtype : {kFloat, kBFloat16, kHalf, kDouble}) {
    for (const auto& [from, to] :
         {std::pair{-1.0, 1.0}, {0.0, 1.0}, {256.0, 257.0}, {1.0, 1.0 + 0x1p-50}}) {
      expect_uniform(start, 64, dtype, from, to);
    }
  }
  Stream stream(start);
  float value = 0.0f;
  uniform(stream, kFloat, &value, 1, 256.0, 257.0);
  // The lower bound, but the upper one in torch 2.11.
  EXPECT_EQ(value, at::empty({1}).uniform_(256.0, 257.0, generator_at(start)).item<float>());
}

TEST(Uniform, EqualsAtenForMillionsOfElements) {
  for (const c10::ScalarType dtype : {kFloat, kBFloat16, kHalf, kDouble}) {
    expect_uniform(engine_at(22, 311), (size_t{1} << 22) + 3, dtype, -0.0312, 0.0312);
  }
}

TEST(Bernoulli, EqualsAtenForEveryTypeAndManyProbabilities) {
  using c10::ScalarType;
  const double probabilities[] = {0.0,   1.0,    0.3,       0.5,  0x1p-53,  1.0 - 0x1p-53,
                                  1e-17, 5e-324, 0.9999999, 1e-3, 2.0 / 3.0};
  std::mt19937 pick(15);
  for (const ScalarType dtype :
       {ScalarType::Float, ScalarType::BFloat16, ScalarType::Half, ScalarType::Double,
        ScalarType::Bool, ScalarType::Byte, ScalarType::Char, ScalarType::Short, ScalarType::Int,
        ScalarType::Long}) {
    for (const double p : probabilities) {
      const uint64_t offset = pick() % 1300;
      SCOPED_TRACE("offset " + std::to_string(offset));
      expect_bernoulli(engine_at(5, offset), 1 + pick() % 3000, dtype, p);
      ASSERT_FALSE(testing::Test::HasFailure());
    }
  }
}

TEST(Bernoulli, ComparesAll53Bits) {
  // Numbers next to p on either side: k * 2^-53 with k just below, at and just above p * 2^53.
  constexpr uint64_t kNumber = 0x0fedcba9876543;
  std::vector<uint32_t> draws;
  for (uint64_t k = kNumber - 152; draws.size() < kCraftedDraws; ++k) {
    draws.push_back(static_cast<uint32_t>(k >> 32) |
                    0xffe00000u);  // bits above the 53rd don't count
    draws.push_back(static_cast<uint32_t>(k));
  }
  const at::mt19937_data_pod start = crafted_engine(draws);
  // The numbers below p, for p equal to one of them and for p between it and the next.
  for (const auto& [p, below] : {std::pair{static_cast<double>(kNumber) * 0x1p-53, 152},
                                 {(static_cast<double>(kNumber) + 0.5) * 0x1p-53, 153}}) {
    expect_bernoulli(start, kCraftedDraws / 2, kFloat, p);
    Stream stream(start);
    std::vector<float> values(kCraftedDraws / 2);
    bernoulli(stream, kFloat, values.data(), values.size(), p);
    EXPECT_EQ(std::count(values.begin(), values.end(), 1.0f), below);
  }
}

TEST(PublicFunctions, GiveTheSameBitsInOnePieceAndInMany) {
  using Fill = void (*)(Stream&, c10::ScalarType, void*, size_t);
  struct Case {
    const char* name;
    Fill fill;
    size_t multiple;
  };
  const Case cases[] = {
      {"uniform",
       [](Stream& s, c10::ScalarType d, void* out, size_t n) { uniform(s, d, out, n, -0.3, 0.9); },
       1},
      {"bernoulli",
       [](Stream& s, c10::ScalarType d, void* out, size_t n) { bernoulli(s, d, out, n, 0.4); }, 1},
      {"normal",
       [](Stream& s, c10::ScalarType d, void* out, size_t n) {
         block_normal(s, d, out, n, 0.1, 2.0);
       },
       16}};
  std::mt19937 pick(16);
  for (const Case& tested : cases) {
    for (const c10::ScalarType dtype : {kFloat, kBFloat16, kHalf, kDouble}) {
      constexpr size_t kElements = 16 * 1024;
      const at::mt19937_data_pod start = engine_at(31, 401);
      Stream whole(start);
      at::Tensor expected = filled_with_garbage(kElements, dtype);
      tested.fill(whole, dtype, expected.mutable_data_ptr(), kElements);
      Stream parts(start);
      at::Tensor got = filled_with_garbage(kElements, dtype);
      auto* out = static_cast<unsigned char*>(got.mutable_data_ptr());
      for (size_t at = 0; at < kElements;) {
        const size_t n =
            std::min(kElements - at, (pick() % 2000) / tested.multiple * tested.multiple);
        tested.fill(parts, dtype, out + at * c10::elementSize(dtype), n);
        at += n;
      }
      ASSERT_TRUE(same_bits(got, expected)) << tested.name;
      ASSERT_TRUE(same_engine(parts.engine(), whole.engine())) << tested.name;
    }
  }
}

TEST(PublicFunctions, WriteNothingPastTheEnd) {
  for (const c10::ScalarType dtype : {kFloat, kBFloat16, kHalf, kDouble}) {
    for (int64_t n = 1; n < 200; ++n) {
      at::Tensor buffer = filled_with_garbage(n + 64, dtype);
      Stream stream(engine_at(41, 600));
      uniform(stream, dtype, buffer.mutable_data_ptr(), n, 0.0, 1.0);
      bernoulli(stream, dtype, buffer.mutable_data_ptr(), n, 0.5);
      block_normal(stream, dtype, buffer.mutable_data_ptr(), n / 16 * 16, 0.0, 1.0);
      ASSERT_TRUE(same_bits(buffer.slice(0, n), filled_with_garbage(64, dtype)))
          << n << " elements";
    }
  }
}

TEST(PublicFunctions, RefuseAPartOfABlock) {
  Stream stream(engine_at(1, 1));
  float out[16];
  EXPECT_THROW(block_normal(stream, kFloat, out, 15, 0.0, 1.0), c10::ValueError);
}

TEST(ExactPath, RunsOwnKernelsAtTheLevelThatAtenUses) {
  const ExactPath& path = exact_path();
  SCOPED_TRACE(path.description);
  const std::string aten = at::get_cpu_capability();
  const auto ran = [](bool own) { return own ? Path::kernel : Path::aten; };
  if (aten == "AVX2" || aten == "AVX512") {
    for (const c10::ScalarType dtype : {kFloat, kBFloat16, kHalf}) {
      EXPECT_EQ(path.normal[static_cast<size_t>(dtype)],
                ran(dtype == kFloat || TORCH_VERSION_MINOR >= 13));
    }
    EXPECT_STREQ(path.kernels->name, aten == "AVX512" ? "AVX-512" : "AVX2");
  }
  for (const c10::ScalarType dtype : {kFloat, kBFloat16, kHalf, kDouble}) {
    EXPECT_EQ(path.uniform[static_cast<size_t>(dtype)],
              ran(dtype == kDouble || TORCH_VERSION_MINOR >= 12));
    EXPECT_EQ(path.bernoulli[static_cast<size_t>(dtype)], Path::kernel);
  }
  EXPECT_EQ(path.normal[static_cast<size_t>(kDouble)], Path::aten);
}

TEST(ExactPath, DisablesAKernelThatDiffersInOneElement) {
  static const StreamKernels* real = &stream_kernels();
  StreamKernels wrong = *real;
  wrong.name = "wrong";
  wrong.uniform = [](EngineBlock& block, Format format, void* out, size_t n, double from,
                     double to) {
    real->uniform(block, format, out, n, from, to);
    static_cast<unsigned char*>(out)[n - 1] ^= 1;
  };
  // One draw too many, right values.
  wrong.bernoulli = [](EngineBlock& block, size_t width, uint64_t one, void* out, size_t n,
                       double p) {
    real->bernoulli(block, width, one, out, n, p);
    float more;
    real->uniform(block, Format::float32, &more, 1, 0.0, 1.0);
  };
  const ExactPath path = check_exactness(wrong);
  EXPECT_EQ(path.uniform[static_cast<size_t>(kFloat)], Path::aten);
  EXPECT_EQ(path.bernoulli[static_cast<size_t>(c10::ScalarType::Bool)], Path::aten);
  EXPECT_EQ(path.normal[static_cast<size_t>(kFloat)],
            exact_path().normal[static_cast<size_t>(kFloat)]);
  EXPECT_NE(path.description.find("by ATen: uniform (Float"), std::string::npos)
      << path.description;
}

TEST(ExactPath, ComparesInMilliseconds) {
  double best = std::numeric_limits<double>::infinity();  // of a few: the machine may be busy
  for (int run = 0; run < 5; ++run) {
    const auto begin = std::chrono::steady_clock::now();
    check_exactness(stream_kernels());
    const std::chrono::duration<double, std::milli> spent =
        std::chrono::steady_clock::now() - begin;
    best = std::min(best, spent.count());
  }
  EXPECT_LT(best, 50.0);  // about 2 alone on a machine, without sanitizers
}

TEST(AtenKernels, RunBelowTheDispatcher) {
  // A thread that records has this key in its included set: an operator that went through the
  // dispatcher would be recorded, or fail.
  const at::mt19937_data_pod start = engine_at(61, 2);
  const auto fill = [&](at::Tensor& all, at::mt19937_data_pod& engine) {
    auto* out = static_cast<float*>(all.mutable_data_ptr());
    aten_uniform(engine, kFloat, out, 100, 0.0, 1.0);
    aten_normal(engine, kFloat, out + 100, 100, 0.0, 1.0);
    aten_bernoulli(engine, kFloat, out + 200, 100, 0.5);
  };
  at::Tensor expected = filled_with_garbage(300, kFloat);
  at::Generator generator = generator_at(start);
  expected.slice(0, 0, 100).uniform_(0.0, 1.0, generator);
  expected.slice(0, 100, 200).normal_(0.0, 1.0, generator);
  expected.slice(0, 200, 300).bernoulli_(0.5, generator);
  at::Tensor got = filled_with_garbage(300, kFloat);
  at::mt19937_data_pod engine = start;
  {
    const c10::impl::IncludeDispatchKeyGuard recording(c10::DispatchKey::DeferredInit);
    fill(got, engine);
    check_exactness(stream_kernels());
  }
  EXPECT_TRUE(same_bits(got, expected));
  EXPECT_TRUE(same_engine(engine, engine_of(generator)));
}

TEST(StreamThreaded, ThreadsAgreeOnEveryValue) {
  std::vector<at::Tensor> results(4);
  std::vector<std::thread> threads;
  for (at::Tensor& result : results) {
    threads.emplace_back([&result] {
      Stream stream(engine_at(51, 3));
      result = filled_with_garbage(100000, kFloat);
      block_normal(stream, kFloat, result.mutable_data_ptr(), 100000, 0.0, 1.0);
      stream.skip(1u << 22);
      uniform(stream, kFloat, result.mutable_data_ptr(), 1000, 0.0, 1.0);
    });
  }
  for (std::thread& thread : threads) {
    thread.join();
  }
  for (const at::Tensor& result : results) {
    EXPECT_TRUE(same_bits(result, results.front()));
  }
}

}  // namespace
}  // namespace dormant::random
