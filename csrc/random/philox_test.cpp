// Philox against the published answers, and the distributions that are made of it.

#include "random/philox.h"

#include <ATen/core/MT19937RNGEngine.h>
#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numbers>
#include <random>
#include <set>
#include <string>
#include <vector>

#include "simd/kernels.h"

namespace dormant::random {
namespace {

using c10::ScalarType;

std::vector<const PhiloxKernels*> levels() { return simd::available_kernels<PhiloxKernels>(); }

// Largest distance between the empirical distribution of `values` and `cdf`, times sqrt(n):
// exceeds 1.95 once in a thousand seeds (Kolmogorov).
template <class Cdf>
double kolmogorov_smirnov(std::vector<double> values, Cdf&& cdf) {
  std::sort(values.begin(), values.end());
  const auto n = static_cast<double>(values.size());
  double largest = 0.0;
  for (size_t i = 0; i < values.size(); ++i) {
    const double expected = cdf(values[i]);
    largest = std::max({largest, std::abs(expected - static_cast<double>(i) / n),
                        std::abs(static_cast<double>(i + 1) / n - expected)});
  }
  return largest * std::sqrt(n);
}

double normal_cdf(double x) { return 0.5 * std::erfc(-x / std::numbers::sqrt2); }

double mean_of_power(const std::vector<double>& values, int power) {
  double sum = 0.0;
  for (const double value : values) {
    sum += std::pow(value, power);
  }
  return sum / static_cast<double>(values.size());
}

double lag_correlation(const std::vector<double>& values, size_t lag) {
  double sum = 0.0;
  for (size_t i = 0; i + lag < values.size(); ++i) {
    sum += values[i] * values[i + lag];
  }
  return sum / static_cast<double>(values.size() - lag);
}

// `n` normal numbers of any dtype as doubles.
std::vector<double> normals(const Philox& philox, ScalarType dtype, size_t n, double mean,
                            double std) {
  std::vector<unsigned char> bytes(n * sizeof(double));
  philox.normal(dtype, bytes.data(), 0, n, mean, std);
  std::vector<double> values(n);
  for (size_t i = 0; i < n; ++i) {
    const unsigned char* const at = bytes.data() + i * c10::elementSize(dtype);
    if (dtype == ScalarType::Float) {
      float value;
      std::memcpy(&value, at, sizeof value);
      values[i] = value;
    } else if (dtype == ScalarType::Double) {
      std::memcpy(&values[i], at, sizeof(double));
    } else {
      uint16_t bits;
      std::memcpy(&bits, at, sizeof bits);
      values[i] = dtype == ScalarType::Half
                      ? static_cast<float>(c10::Half(bits, c10::Half::from_bits()))
                      : static_cast<float>(c10::BFloat16(bits, c10::BFloat16::from_bits()));
    }
  }
  return values;
}

struct Answer {
  PhiloxKey key;
  uint64_t counter;
  uint32_t words[4];
};

TEST(Philox, GivesThePublishedAnswers) {
  // The known-answer vectors of philox4x32-10 that its authors publish with Random123.
  const Answer answers[] = {{{0, 0}, 0, {0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}},
                            {{~uint64_t{0}, ~uint64_t{0}},
                             ~uint64_t{0},
                             {0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}},
                            {{0x299f31d0a4093822, 0x0370734413198a2e},
                             0x85a308d3243f6a88,
                             {0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}}};
  for (const PhiloxKernels* level : levels()) {
    for (const Answer& answer : answers) {
      uint32_t words[kPhiloxWords];
      level->words(answer.key, answer.counter / kPhiloxCounters, 1, words);
      for (size_t i = 0; i < 4; ++i) {
        EXPECT_EQ(words[i * kPhiloxCounters + answer.counter % kPhiloxCounters], answer.words[i])
            << level->name << ", word " << i;
      }
    }
  }
}

TEST(Philox, IsTheSameAtEveryLevel) {
  const PhiloxKey key{77, 5};
  constexpr size_t kElements = 1 << 16;
  const auto expect_same = [&](const char* what, size_t bytes, auto fill) {
    std::vector<unsigned char> expected(bytes);
    fill(simd::kernels<PhiloxKernels>(simd::Level::portable), expected.data());
    for (const PhiloxKernels* level : levels()) {
      std::vector<unsigned char> got(bytes);
      fill(*level, got.data());
      EXPECT_TRUE(got == expected) << what << " at level " << level->name;
    }
  };
  expect_same("words", kElements * 4, [&](const PhiloxKernels& level, void* out) {
    level.words(key, (uint64_t{1} << 28) - 3, kElements / kPhiloxWords,
                static_cast<uint32_t*>(out));
  });
  for (const Format format : {Format::float32, Format::bfloat16, Format::float16}) {
    expect_same("normal", kElements * 4, [&](const PhiloxKernels& level, void* out) {
      level.normal(key, format, out, 3, kElements, 0.5, 1.5);
    });
  }
  for (const size_t width : {1, 2, 4, 8}) {
    expect_same("bernoulli", kElements * width, [&](const PhiloxKernels& level, void* out) {
      level.bernoulli(key, width, 1, out, 3, kElements, 0x60000000);
    });
  }
  // Here levels may differ in the last bit, but not with bounds that make every step exact.
  for (const Format format :
       {Format::float32, Format::bfloat16, Format::float16, Format::float64}) {
    expect_same("uniform", kElements * 8, [&](const PhiloxKernels& level, void* out) {
      level.uniform(key, format, out, 3, kElements, 0.0, 2.0);
    });
  }
}

TEST(Philox, AnyTileEqualsTheSamePartOfTheWhole) {
  const Philox philox(123, 9);
  using Fill = void (*)(const Philox&, ScalarType, void*, uint64_t, size_t);
  const Fill fills[] = {[](const Philox& p, ScalarType d, void* out, uint64_t begin, size_t n) {
                          p.uniform(d, out, begin, n, -0.3, 0.4);
                        },
                        [](const Philox& p, ScalarType d, void* out, uint64_t begin, size_t n) {
                          p.normal(d, out, begin, n, 0.1, 2.0);
                        },
                        [](const Philox& p, ScalarType d, void* out, uint64_t begin, size_t n) {
                          p.bernoulli(d, out, begin, n, 0.3);
                        }};
  std::mt19937 pick(5);
  for (size_t f = 0; f < std::size(fills); ++f) {
    for (const ScalarType dtype :
         {ScalarType::Float, ScalarType::BFloat16, ScalarType::Half, ScalarType::Double}) {
      constexpr uint64_t kOrigin = (uint64_t{1} << 36) - 1000;  // the counter's low word overflows
      constexpr size_t kElements = 3000;
      const size_t width = c10::elementSize(dtype);
      std::vector<unsigned char> whole(kElements * width);
      fills[f](philox, dtype, whole.data(), kOrigin, kElements);
      for (int trial = 0; trial < 300; ++trial) {
        const size_t begin = pick() % kElements;
        const size_t n = pick() % (trial % 2 == 0 ? 80 : kElements - begin + 1);
        const size_t count = std::min(n, kElements - begin);
        alignas(64) unsigned char tile[kElements * 8 + 8];
        std::memset(tile, 0xa5, sizeof tile);
        fills[f](philox, dtype, tile, kOrigin + begin, count);
        ASSERT_EQ(std::memcmp(tile, whole.data() + begin * width, count * width), 0)
            << "function " << f << ", " << dtype << ", elements " << begin << " + " << count;
        ASSERT_EQ(tile[count * width], 0xa5) << "wrote past the end";
      }
    }
  }
}

TEST(Philox, NormalHasItsMomentsAndDistribution) {
  constexpr size_t kElements = 1 << 20;
  for (const ScalarType dtype :
       {ScalarType::Float, ScalarType::Double, ScalarType::BFloat16, ScalarType::Half}) {
    SCOPED_TRACE(c10::toString(dtype));
    const std::vector<double> values = normals(Philox(2026, 1), dtype, kElements, 0.0, 1.0);
    const double error = 4.0 / std::sqrt(static_cast<double>(kElements));  // 4 standard errors
    EXPECT_NEAR(mean_of_power(values, 1), 0.0, error);
    EXPECT_NEAR(mean_of_power(values, 2), 1.0, error * std::sqrt(2.0));
    EXPECT_NEAR(mean_of_power(values, 3), 0.0, error * std::sqrt(15.0));
    EXPECT_NEAR(mean_of_power(values, 4), 3.0, error * std::sqrt(96.0));
    for (const size_t lag : {1, 8, 15, 16, 17, 32, 64}) {
      EXPECT_NEAR(lag_correlation(values, lag), 0.0, error) << "lag " << lag;
    }
    if (dtype == ScalarType::Float || dtype == ScalarType::Double) {  // the others are steps
      EXPECT_LT(kolmogorov_smirnov(values, normal_cdf), 1.95);
    }
  }
}

TEST(Philox, NormalTakesMeanAndDeviation) {
  constexpr size_t kElements = 1 << 18;
  for (const ScalarType dtype : {ScalarType::Float, ScalarType::Double}) {
    std::vector<double> values = normals(Philox(7, 2), dtype, kElements, -3.0, 0.25);
    EXPECT_LT(kolmogorov_smirnov(values, [](double x) { return normal_cdf((x + 3.0) / 0.25); }),
              1.95);
    for (const double value : normals(Philox(7, 2), dtype, 100, 1.5, 0.0)) {
      EXPECT_EQ(value, 1.5);
    }
  }
}

TEST(Philox, UniformHasItsDistributionAndNeverReachesTheUpperBound) {
  constexpr size_t kElements = 1 << 20;
  const Philox philox(31, 4);
  std::vector<float> values(kElements);
  philox.uniform(ScalarType::Float, values.data(), 0, kElements, -1.0, 3.0);
  const auto cdf = [](double x) { return (x + 1.0) / 4.0; };
  EXPECT_LT(kolmogorov_smirnov({values.begin(), values.end()}, cdf), 1.95);
  EXPECT_GE(*std::min_element(values.begin(), values.end()), -1.0f);
  EXPECT_LT(*std::max_element(values.begin(), values.end()), 3.0f);

  std::vector<double> doubles(kElements);
  philox.uniform(ScalarType::Double, doubles.data(), 0, kElements, -1.0, 3.0);
  EXPECT_LT(kolmogorov_smirnov(doubles, cdf), 1.95);

  std::vector<c10::BFloat16> rounded(kElements);
  philox.uniform(ScalarType::BFloat16, rounded.data(), 0, kElements, 0.0, 1.0);
  EXPECT_LT(static_cast<float>(*std::max_element(rounded.begin(), rounded.end())), 1.0f);
}

TEST(Philox, BernoulliSucceedsWithItsProbability) {
  constexpr size_t kElements = 1 << 20;
  for (const double p : {0.0, 0.001, 0.3, 0.5, 0.999, 1.0}) {
    std::vector<uint8_t> values(kElements, 0xa5);
    Philox(3, 3).bernoulli(ScalarType::Bool, values.data(), 0, kElements, p);
    const auto successes = std::count(values.begin(), values.end(), 1);
    EXPECT_EQ(std::count(values.begin(), values.end(), 0) + successes, kElements);
    EXPECT_NEAR(static_cast<double>(successes) / kElements, p,
                4.0 * std::sqrt(p * (1.0 - p) / kElements));
  }
}

TEST(Philox, SeedsAndStreamsAreUnrelated) {
  constexpr size_t kElements = 1 << 18;
  const std::vector<double> values = normals(Philox(1, 1), ScalarType::Float, kElements, 0, 1);
  for (const Philox& other : {Philox(2, 1), Philox(1, 2), Philox(1, uint64_t{1} << 32),
                              Philox(uint64_t{1} << 32 | 1, 1)}) {
    const std::vector<double> others = normals(other, ScalarType::Float, kElements, 0, 1);
    double sum = 0.0;
    for (size_t i = 0; i < kElements; ++i) {
      sum += values[i] * others[i];
    }
    EXPECT_NEAR(sum / kElements, 0.0, 4.0 / std::sqrt(static_cast<double>(kElements)));
  }
}

TEST(Philox, RefusesWhatPyTorchRefuses) {
  const Philox philox(1, 1);
  double out[4];
  EXPECT_THROW(philox.uniform(ScalarType::Float, out, 0, 1, 1.0, 0.0), c10::ValueError);
  EXPECT_THROW(philox.uniform(ScalarType::Float, out, 0, 1, -3e38, 3e38), c10::ValueError);
  EXPECT_THROW(philox.normal(ScalarType::Float, out, 0, 1, 0.0, -1.0), c10::ValueError);
  EXPECT_THROW(philox.bernoulli(ScalarType::Float, out, 0, 1, 1.5), c10::ValueError);
  EXPECT_THROW(philox.bernoulli(ScalarType::Float, out, 0, 1, std::nan("")), c10::ValueError);
  EXPECT_THROW(philox.normal(ScalarType::Int, out, 0, 1, 0.0, 1.0), c10::NotImplementedError);
  EXPECT_THROW(philox.bernoulli(ScalarType::ComplexFloat, out, 0, 1, 0.5),
               c10::NotImplementedError);
}

TEST(Philox, EveryPlaceOfAGeneratorHasItsOwnSequence) {
  at::mt19937 generator(7);
  const auto first_of = [](const Philox& philox) {
    double value = 0;
    philox.normal(ScalarType::Double, &value, 0, 1, 0, 1);
    return value;
  };
  std::set<double> values;
  for (int draws = 0; draws < 2000; ++draws) {  // over the ends of blocks of 624
    values.insert(first_of(Philox(1, generator.data())));
    generator();
  }
  EXPECT_EQ(values.size(), 2000U);
  EXPECT_EQ(first_of(Philox(1, at::mt19937(7).data())), first_of(Philox(1, at::mt19937(7).data())));
  EXPECT_NE(first_of(Philox(1, at::mt19937(7).data())), first_of(Philox(2, at::mt19937(7).data())));
  EXPECT_NE(first_of(Philox(1, at::mt19937(7).data())), first_of(Philox(1, at::mt19937(8).data())));
}

}  // namespace
}  // namespace dormant::random
