#include "quantize/cascade_mean.h"

#include <ATen/Parallel.h>
#include <ATen/ops/rand.h>
#include <ATen/ops/randn.h>
#include <gtest/gtest.h>

#include <bit>
#include <cmath>

namespace dormant::quantization {
namespace {

void expect_pytorchs_mean(const at::Tensor& values, int threads) {
  const float expected = values.mean().item<float>();
  const float got = cascade_mean(values.const_data_ptr<float>(), values.numel(), threads);
  EXPECT_EQ(std::bit_cast<uint32_t>(got), std::bit_cast<uint32_t>(expected))
      << values.numel() << " values, " << threads << " threads: " << got << ", expected "
      << expected;
}

TEST(CascadeMean, AddsInTheOrderOfPytorch) {
  at::set_num_threads(1);
  for (int64_t n = 1; n < 300; ++n) {
    expect_pytorchs_mean(at::randn({n}).exp(), 1);
  }
  for (const int64_t n : {511, 512, 513, 4095, 8192, 16385, 32767, 32768, 100'001, 1'048'577}) {
    expect_pytorchs_mean(at::randn({n}).exp(), 1);
  }
}

// At 2^20 rounds of 32 the levels get longer.
TEST(CascadeMean, AddsManyNumbersInTheOrderOfPytorch) {
  at::set_num_threads(1);
  for (const int64_t n : {(int64_t{1} << 25) - 33, (int64_t{1} << 25) + 65}) {
    expect_pytorchs_mean(at::rand({n}), 1);
  }
}

TEST(CascadeMean, AddsPartsFirstAsPytorchDoesInParallel) {
  for (const int threads : {2, 3, 5, 9, 16}) {
    at::set_num_threads(threads);
    for (const int64_t n : {32767, 32768, 65536, 65537, 100'003, 600'001}) {
      expect_pytorchs_mean(at::randn({n}).exp(), threads);
    }
  }
  at::set_num_threads(1);
}

TEST(CascadeMean, OfNothingIsNotANumber) { EXPECT_TRUE(std::isnan(cascade_mean(nullptr, 0, 1))); }

}  // namespace
}  // namespace dormant::quantization
