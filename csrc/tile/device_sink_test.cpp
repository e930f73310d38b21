#include "tile/device_sink.h"

#include <ATen/ops/arange.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/zeros.h>
#include <c10/util/Exception.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <optional>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "record/lazy_storage.h"
#include "tile/eager_comparison.h"

// A second device is simulated: the memory of other tensors on the CPU.
namespace dormant::tile {
namespace {

using at::Tensor;

Tensor whole() { return at::empty({300, 517}).normal_(); }

/// Tensors with a program and without, in any order of their dimensions.
const std::vector<Build>& builds() {
  static const std::vector<Build> all = {
      [] { return whole(); },
      [] { return whole().t(); },
      [] { return whole().t().contiguous(); },
      [] { return whole().view({30, 10, 517}).permute({2, 0, 1}); },
      [] { return whole().narrow(1, 3, 100); },
      [] { return whole().slice(1, 0, 517, 5); },
      [] { return whole().cumsum(0); },
      [] { return whole().narrow(0, 5, 1).expand({3, 517}); },
      [] { return at::empty({40}, at::kLong).random_(); },
      [] { return at::empty({7}, at::kBool).bernoulli_(); },
      [] { return at::empty({}).fill_(3); },
      [] { return at::empty({0, 4}).normal_(); },
  };
  return all;
}

MaterializeOptions within(std::optional<size_t> budget) {
  MaterializeOptions options;
  options.memory_budget = budget;
  return options;
}

/// With the strides that `tensor.to(device)` would have.
Tensor destination_of(const Tensor& tensor) { return at::empty_like(tensor); }

TEST(DeviceSink, GetsTheValuesOfEagerAndTheTensorStaysLazy) {
  for (size_t i = 0; i < builds().size(); ++i) {
    SCOPED_TRACE(i);
    const auto expected = eagerly(builds()[i]);
    const auto lazy = lazily(builds()[i]);
    for (const auto budget : {std::optional<size_t>(), std::optional<size_t>(8 << 20)}) {
      const auto destination = destination_of(expected);
      const auto made = write_to_device(lazy, destination, within(budget));
      EXPECT_TRUE(destination.equal(expected));
      EXPECT_TRUE(record::is_lazy(lazy));
      ASSERT_EQ(made.size(), 1U);
      EXPECT_EQ(made[0].storage, lazy.storage().unsafeGetStorageImpl());
    }
  }
}

TEST(DeviceSink, OfARealTensorGetsItsValues) {
  const auto tensor = at::arange(100000).view({100, 1000}).t();
  const auto destination = at::empty_like(tensor);
  EXPECT_TRUE(write_to_device(tensor, destination, {}).empty());
  EXPECT_TRUE(destination.equal(tensor));
}

TEST(DeviceSink, RefusesWhatTheTensorDoesNotFitOrWhatIsNotDense) {
  const auto lazy = lazily(whole);
  const auto write_to = [&](const Tensor& destination) { write_to_device(lazy, destination, {}); };
  EXPECT_THROW(write_to(at::empty({300, 518})), c10::ValueError);
  EXPECT_THROW(write_to(at::empty({300, 517}, at::kDouble)), c10::ValueError);
  EXPECT_THROW(write_to(at::empty({300, 600}).narrow(1, 0, 517)), c10::ValueError);
  EXPECT_THROW(write_to(at::empty({1, 517}).expand({300, 517})), c10::ValueError);
}

TEST(DeviceSink, ABudgetThatIsTooSmallIsRefusedAndTheSmallestOneIsEnough) {
  const auto lazy = lazily(whole);
  const auto expected = eagerly(whole);
  const auto destination = at::zeros({300, 517});
  try {
    write_to_device(lazy, destination, within(1000));
    FAIL() << "accepted";
  } catch (const c10::ValueError& error) {
    EXPECT_NE(std::string(error.what()).find("materialize: memory_budget=1000 bytes"),
              std::string::npos)
        << error.what();
  }
  EXPECT_TRUE(destination.equal(at::zeros({300, 517})));
  size_t budget = 1000;
  for (;; budget += budget / 8) {
    try {
      write_to_device(lazy, destination, within(budget));
      break;
    } catch (const c10::ValueError&) {
      ASSERT_LT(budget, 1U << 20);
    }
  }
  EXPECT_TRUE(destination.equal(expected));
}

TEST(DeviceSink, AnErrorOrAnInterruptLeavesTheTensorLazy) {
  const auto lazy = lazily(whole);
  const auto destination = at::empty({300, 517});
  MaterializeOptions options;
  options.on_step = [](size_t, size_t) { throw std::runtime_error("no"); };
  EXPECT_THROW(write_to_device(lazy, destination, options), std::runtime_error);
  EXPECT_TRUE(record::is_lazy(lazy));
  write_to_device(lazy, destination, {});
  EXPECT_TRUE(destination.equal(eagerly(whole)));
}

TEST(DeviceSinkThreads, AnyNumberOfThreadsShareFewBuffers) {
  const auto expected = at::arange(100003);
  const auto destination = at::zeros({100003}, at::kLong);
  const DeviceSink sink(destination, 4 * 800);  // four buffers of a hundred elements
  const auto* data = expected.const_data_ptr<int64_t>();
  std::vector<std::jthread> threads;
  for (int64_t t = 0; t < 8; ++t) {
    threads.emplace_back([&, t] {
      for (int64_t begin = t * 250; begin < 100003; begin += 8 * 250) {
        const auto count = std::min<int64_t>(250, 100003 - begin);
        sink.write(data + begin, static_cast<size_t>(count) * 8, begin * 8);
      }
    });
  }
  threads.clear();
  EXPECT_TRUE(destination.equal(expected));
}

}  // namespace
}  // namespace dormant::tile
