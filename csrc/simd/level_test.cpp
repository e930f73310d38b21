#include "simd/level.h"

#include <ATen/Version.h>
#include <gtest/gtest.h>

#include <string>

#include "simd/kernels.h"

namespace dormant::simd {
namespace {

struct Table {
  Level level;

  static const Table& at(At<Level::portable>) { return table<Level::portable>(); }
  static const Table& at(At<Level::avx2>) { return table<Level::avx2>(); }
  static const Table& at(At<Level::avx512>) { return table<Level::avx512>(); }

 private:
  template <Level kLevel>
  static const Table& table() {
    static constexpr Table table{kLevel};
    return table;
  }
};

TEST(SimdLevel, EveryLevelUpToTheHighestIsAvailable) {
  for (const Level level : kLevels) {
    EXPECT_EQ(available(level), level <= highest()) << kLevelNames[static_cast<size_t>(level)];
  }
}

// ATen asks the processor by itself, and may be told to use less.
TEST(SimdLevel, IsAtLeastThatOfATen) {
  const std::string aten = at::get_cpu_capability();
  EXPECT_GE(highest(), aten == "AVX512" ? Level::avx512
                       : aten == "AVX2" ? Level::avx2
                                        : Level::portable);
}

TEST(SimdKernels, AreThoseOfTheLevelAskedFor) {
  for (const Level level : kLevels) {
    if (available(level)) {
      EXPECT_EQ(kernels<Table>(level).level, level);
    }
  }
}

TEST(SimdKernels, OfEveryAvailableLevelEndWithTheHighest) {
  const auto tables = available_kernels<Table>();
  EXPECT_EQ(tables.front()->level, Level::portable);
  EXPECT_EQ(tables.back()->level, highest());
  EXPECT_EQ(tables.size(), static_cast<size_t>(highest()) + 1);
}

}  // namespace
}  // namespace dormant::simd
