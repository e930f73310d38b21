// Ranges of a normal_ against the same elements of PyTorch's whole tensor.

#include "random/normal_elements.h"

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <gtest/gtest.h>

#include <cstring>
#include <random>
#include <vector>

namespace dormant::random {
namespace {

constexpr c10::ScalarType kTypes[] = {c10::ScalarType::Float, c10::ScalarType::BFloat16,
                                      c10::ScalarType::Half, c10::ScalarType::Double};

struct Whole {
  Stream start;
  at::Tensor values;
};

// normal_(0.25, 1.5) of `numel` elements, `offset` draws after seeding.
Whole drawn(uint64_t seed, uint64_t offset, int64_t numel, c10::ScalarType dtype) {
  at::Generator generator = at::make_generator<at::CPUGeneratorImpl>(seed);
  auto* const impl = generator.get<at::CPUGeneratorImpl>();
  for (uint64_t i = 0; i < offset; ++i) {
    impl->random();
  }
  const Stream start(impl->engine().data());
  return {start, at::empty({numel}, dtype).normal_(0.25, 1.5, generator)};
}

testing::AssertionResult equals_range(const at::Tensor& whole, uint64_t begin, uint64_t count,
                                      const std::vector<unsigned char>& got) {
  const size_t width = whole.element_size();
  const auto* expected = static_cast<const unsigned char*>(whole.const_data_ptr()) + begin * width;
  for (uint64_t i = 0; i < count; ++i) {
    if (std::memcmp(got.data() + i * width, expected + i * width, width) != 0) {
      return testing::AssertionFailure()
             << whole.scalar_type() << ", element " << begin + i << " of " << whole.numel()
             << " differs; range " << begin << " + " << count;
    }
  }
  return testing::AssertionSuccess();
}

// The buffer is longer than the range by one element, which must stay as it was.
testing::AssertionResult read_equals(NormalElements& elements, const at::Tensor& whole,
                                     uint64_t begin, uint64_t count) {
  std::vector<unsigned char> got((count + 1) * whole.element_size(), 0xa5);
  elements.read(begin, count, got.data());
  if (got.back() != 0xa5) {
    return testing::AssertionFailure() << "wrote past the end of " << begin << " + " << count;
  }
  return equals_range(whole, begin, count, got);
}

TEST(NormalElements, GiveEveryRangeOfSmallTensors) {
  for (const c10::ScalarType dtype : kTypes) {
    for (const int64_t numel : {16, 17, 31, 32, 33, 47, 50}) {
      const Whole whole = drawn(numel, 620, numel, dtype);
      for (int64_t begin = 0; begin <= numel; ++begin) {
        for (int64_t count = 0; begin + count <= numel; ++count) {
          NormalElements elements(whole.start, dtype, numel, 0.25, 1.5);
          ASSERT_TRUE(read_equals(elements, whole.values, begin, count));
        }
      }
    }
  }
}

TEST(NormalElements, GiveRangesInAnyOrder) {
  std::mt19937 pick(18);
  for (const c10::ScalarType dtype : kTypes) {
    for (int trial = 0; trial < 20; ++trial) {
      const int64_t numel = 16 + pick() % 5000;
      const Whole whole = drawn(trial, pick() % 700, numel, dtype);
      NormalElements elements(whole.start, dtype, numel, 0.25, 1.5);
      for (int range = 0; range < 20; ++range) {
        const uint64_t begin = pick() % (numel + 1);
        const uint64_t count = pick() % (numel - begin + 1);
        ASSERT_TRUE(read_equals(elements, whole.values, begin, count)) << "seed " << trial;
      }
    }
  }
}

TEST(NormalElements, GiveColumnSlices) {
  for (const c10::ScalarType dtype : kTypes) {
    // Rows share blocks of 16 where the width is no multiple of it.
    for (const auto& [rows, columns] : {std::pair{50, 64}, {70, 37}, {300, 5}, {33, 1001}}) {
      const Whole whole = drawn(7, 11, int64_t{rows} * columns, dtype);
      for (const auto& [from, to] : {std::pair{0, columns / 2}, {columns / 2, columns}, {3, 4}}) {
        NormalElements elements(whole.start, dtype, int64_t{rows} * columns, 0.25, 1.5);
        for (int row = 0; row < rows; ++row) {
          ASSERT_TRUE(
              read_equals(elements, whole.values, uint64_t(row) * columns + from, to - from))
              << "row " << row;
        }
      }
    }
  }
}

TEST(NormalElements, RefuseAPartWhereOnlyTheWholeIsKnown) {
  // An integer dtype stands for one whose law this torch doesn't follow: it is known by nothing.
  NormalElements elements(Stream(at::mt19937(1).data()), c10::ScalarType::Int, 100, 0, 1);
  int32_t out[100];
  EXPECT_THROW(elements.read(0, 99, out), c10::NotImplementedError);
  EXPECT_THROW(elements.read(0, 100, out), c10::Error);  // ATen's own refusal
}

TEST(NormalElements, RefuseRangesOutside) {
  const Stream start(at::mt19937(1).data());
  float out[16];
  EXPECT_THROW(NormalElements(start, c10::ScalarType::Float, 15, 0, 1), c10::ValueError);
  NormalElements elements(start, c10::ScalarType::Float, 100, 0, 1);
  EXPECT_THROW(elements.read(90, 11, out), c10::ValueError);
  EXPECT_THROW(elements.read(101, 0, out), c10::ValueError);
  EXPECT_THROW(elements.read(2, ~uint64_t{0}, out), c10::ValueError);
}

}  // namespace
}  // namespace dormant::random
