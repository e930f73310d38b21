#include "record/recorder.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <c10/core/InferenceMode.h>
#include <dormant/dormant.h>
#include <gtest/gtest.h>

#include <atomic>
#include <functional>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "record/eager_comparison.h"
#include "record/lazy_storage.h"

namespace dormant::record {
namespace {

using at::Tensor;
using Stack = torch::jit::Stack;

constexpr int kThreads = 4;
constexpr int64_t kCaptured = kCaptureLimit / sizeof(float);

/// Calls record() with an operator of ATen; the results, or what it was called with, are in
/// `stack`.
bool record_call(const char* name, const char* overload, Stack& stack) {
  const auto op = c10::Dispatcher::singleton().findSchemaOrThrow(
      (std::string("aten::") + name).c_str(), overload);
  return record(Call(op, {}, &stack));
}

Tensor lazy_ones(c10::IntArrayRef sizes) {
  return lazily([&] { return at::ones(sizes); });
}

size_t length(const Tensor& lazy) { return closure({history_of(lazy)->tail.get()}).size(); }

// What record() says and does.

TEST(Record, AWriteBecomesTheLastNodeAndItsArgumentIsReturned) {
  const auto tensor = lazy_ones({4});
  const auto before = *history_of(tensor);
  const auto version = tensor._version();
  Stack stack = {7, tensor, 2};  // something of the caller's lies below
  ASSERT_TRUE(record_call("fill_", "Scalar", stack));
  ASSERT_EQ(stack.size(), 2U);
  EXPECT_EQ(stack[0].toInt(), 7);
  EXPECT_TRUE(stack[1].toTensor().is_same(tensor));
  const auto after = *history_of(tensor);
  EXPECT_EQ(after.buffer, before.buffer);
  EXPECT_EQ(full_name(after.tail->op), "aten::fill_.Scalar");
  EXPECT_GT(after.tail->sequence, before.tail->sequence);
  EXPECT_EQ(tensor._version(), version + 1);
}

TEST(Record, NewTensorsAreLazyAndListsStayLists) {
  const auto tensor = lazy_ones({6, 2});
  Stack one = {tensor, 2};
  ASSERT_TRUE(record_call("mul", "Scalar", one));
  ASSERT_EQ(one.size(), 1U);
  EXPECT_TRUE(is_lazy(one[0].toTensor()));
  Stack several = {tensor, 4, 0};
  ASSERT_TRUE(record_call("split_copy", "Tensor", several));
  ASSERT_EQ(several.size(), 1U);
  const auto parts = several[0].toTensorVector();
  ASSERT_EQ(parts.size(), 2U);
  EXPECT_EQ(parts[1].sizes(), (std::vector<int64_t>{2, 2}));
  EXPECT_EQ(history_of(parts[0])->tail, history_of(parts[1])->tail);
  dormant::materialize(parts[1]);
  EXPECT_TRUE(same_bits(parts[1], at::ones({2, 2})));
  EXPECT_TRUE(is_lazy(parts[0]));
}

struct Refused {
  const char* what;
  const char* name;
  const char* overload;
  std::function<Stack()> arguments;  ///< the first, or the last, is what would be written
  bool out = false;
};

TEST(Record, WhatMustRunForRealChangesNothing) {
  const auto numbers = [] { return lazy_ones({4, 3}); };
  const std::vector<Refused> cases = {
      {"a larger real input", "add_", "Tensor",
       [] { return Stack{lazy_ones({kCaptured + 1}), at::ones({kCaptured + 1}), 1}; }},
      {"a larger real parameter of a random operator", "bernoulli_", "Tensor",
       [] {
         return Stack{lazy_ones({kCaptured + 1}), at::full({kCaptured + 1}, 0.5F), c10::IValue()};
       }},
      {"a probability that eager refuses", "bernoulli_", "float",
       [&] { return Stack{numbers(), 1.5, c10::IValue()}; }},
      {"an expanded destination", "add_", "Scalar",
       [] { return Stack{lazy_ones({4, 1}).expand({4, 3}), 1, 1}; }},
      {"an input that shares a part", "add_", "Tensor",
       [] {
         const auto whole = lazy_ones({8});
         return Stack{whole.narrow(0, 0, 6), whole.narrow(0, 2, 6), 1};
       }},
      {"sizes that do not fit", "add_", "Tensor",
       [&] { return Stack{numbers(), at::ones({5}), 1}; }},
      {"a number that overflows", "fill_", "Scalar",
       [] { return Stack{lazily([] { return at::ones({4}, at::kHalf); }), -1e9}; }},
      {"a tensor of inference mode", "fill_", "Scalar",
       [&] {
         const c10::InferenceMode inference;
         return Stack{numbers(), 2};
       }},
      {"an index out of bounds", "index_fill_", "int_Scalar",
       [&] { return Stack{numbers(), 0, at::tensor({4}, at::kLong), 2}; }},
      {"a sparse input", "add_", "Tensor",
       [&] { return Stack{numbers(), at::ones({4, 3}).to_sparse(), 1}; }},
      {"an out that grows and is read", "add", "out",
       [] {
         const auto whole = lazy_ones({4});
         return Stack{whole, whole, 1, whole.narrow(0, 4, 0)};
       },
       true},
      {"an out that grows to the strides of its inputs", "add", "out",
       [&] { return Stack{numbers().t(), numbers().t(), 1, lazy_ones({0})}; }, true},
      {"a size of what requires grad", "resize_", "",
       [&] {
         return Stack{numbers().set_requires_grad(true), std::vector<int64_t>{2}, c10::IValue()};
       }},
      {"a negative size", "resize_", "",
       [&] { return Stack{numbers(), std::vector<int64_t>{-1}, c10::IValue()}; }},
      {"a size whose bytes overflow", "resize_", "",
       [&] {
         return Stack{numbers(), std::vector<int64_t>{int64_t{1} << 40, int64_t{1} << 40},
                      c10::IValue()};
       }},
  };
  auto generator = at::detail::getDefaultCPUGenerator();
  for (const auto& refused : cases) {
    SCOPED_TRACE(refused.what);
    const auto arguments = refused.arguments();
    const auto written = (refused.out ? arguments.back() : arguments.front()).toTensor();
    ASSERT_TRUE(is_lazy(written));
    const bool inference = written.is_inference();
    const auto before = history_of(written);
    const auto geometry = Geometry::of(written);
    const auto nbytes = written.storage().nbytes();
    const auto version = inference ? 0 : written._version();
    const auto state = generator.get_state();
    auto stack = arguments;
    EXPECT_FALSE(record_call(refused.name, refused.overload, stack));
    ASSERT_EQ(stack.size(), arguments.size());
    for (size_t i = 0; i < stack.size(); ++i) {
      EXPECT_TRUE(stack[i].is(arguments[i])) << i;
    }
    EXPECT_EQ(history_of(written), before);
    EXPECT_EQ(Geometry::of(written), geometry);
    EXPECT_EQ(written.storage().nbytes(), nbytes);
    EXPECT_EQ(inference ? 0 : written._version(), version);
    EXPECT_TRUE(generator.get_state().equal(state));
  }
}

// Empty tensors.

TEST(Record, AnEmptyTensorHasTheStridesOfEager) {
  const std::vector<Build> builds = {
      [] { return at::empty({2, 3, 4, 5}, at::MemoryFormat::ChannelsLast); },
      [] { return at::empty({2, 3, 4, 5, 6}, at::MemoryFormat::ChannelsLast3d); },
      [] { return at::empty({2, 0, 3}); },
      [] { return at::empty({}, at::kBool); },
      [] { return at::empty_strided({3, 4}, {1, 5}, at::kDouble); },
      [] { return at::empty_strided({3, 4}, {0, 0}); },
      [] { return at::empty({4}, at::kComplexHalf); },
  };
  for (size_t i = 0; i < builds.size(); ++i) {
    const auto lazy = lazily(builds[i]);
    const auto eager = eagerly(builds[i]);
    EXPECT_TRUE(is_lazy(lazy)) << i;
    EXPECT_FALSE(history_of(lazy)->tail) << i;
    EXPECT_EQ(Geometry::of(lazy), Geometry::of(eager)) << i;
    EXPECT_EQ(lazy.storage().nbytes(), eager.storage().nbytes()) << i;
  }
}

TEST(Record, OnlyStridedTensorsOfTheCpuCanBeEmptyAndLazy) {
  const std::vector<int64_t> sizes = {2, 3};
  const c10::IValue none;
  const auto recorded = [&](const std::vector<int64_t>& wanted, const c10::IValue& dtype,
                            const c10::IValue& layout, const c10::IValue& device,
                            const c10::IValue& format) {
    Stack stack = {wanted, dtype, layout, device, none, format};
    return record_call("empty", "memory_format", stack);
  };
  EXPECT_TRUE(recorded(sizes, at::kHalf, at::kStrided, at::Device("cpu"), none));
  EXPECT_FALSE(recorded(sizes, none, at::kSparse, none, none));
  EXPECT_FALSE(recorded(sizes, none, none, at::Device("meta"), none));
  EXPECT_FALSE(recorded(sizes, at::kQInt8, none, none, none));
  EXPECT_FALSE(recorded({2, -3}, none, none, none, none));
  EXPECT_FALSE(recorded({int64_t{1} << 62, 8, 8}, none, none, none, none));
  EXPECT_FALSE(recorded({int64_t{1} << 62}, none, none, none, none));
  EXPECT_FALSE(recorded(sizes, none, none, none, at::MemoryFormat::ChannelsLast));
}

// Real tensors that are read.

TEST(Record, ARealTensorUpToTheLimitIsCopiedAndItsOwnerMayChangeIt) {
  const auto real = at::arange(kCaptured, at::kFloat);
  const auto sum = lazy_ones({kCaptured});
  Stack stack = {sum, real, 1};
  ASSERT_TRUE(record_call("add_", "Tensor", stack));
  real.zero_();
  dormant::materialize(sum);
  EXPECT_TRUE(same_bits(sum, at::arange(kCaptured, at::kFloat).add(1)));
}

TEST(Record, OnlyTheElementsThatAViewShowsCount) {
  const auto row = at::ones({100, kCaptured}).select(0, 7);
  Stack stack = {lazy_ones({kCaptured}), row, 1};
  EXPECT_TRUE(record_call("add_", "Tensor", stack));
}

TEST(Record, TheListsOfACallAreCopied) {
  c10::List<int64_t> dimensions = {0};
  Stack stack = {lazy_ones({2, 3}), dimensions, false, c10::IValue()};
  ASSERT_TRUE(record_call("sum", "dim_IntList", stack));
  dimensions[0] = 1;
  const auto sum = stack[0].toTensor();
  dormant::materialize(sum);
  EXPECT_TRUE(same_bits(sum, at::full({3}, 2.0)));
}

// What a node keeps.

TEST(Record, AnOverwriteOfAllBytesForgetsWhatWasThere) {
  const auto tensor = lazily([] { return at::randn({8}).mul_(2).add_(1); });
  ASSERT_EQ(length(tensor), 3U);
  const auto view = tensor.view({2, 4}).t();
  Stack all = {view, 3};
  ASSERT_TRUE(record_call("fill_", "Scalar", all));
  EXPECT_EQ(length(tensor), 1U);
  Stack some = {tensor.narrow(0, 1, 7), 4};
  ASSERT_TRUE(record_call("fill_", "Scalar", some));
  EXPECT_EQ(length(tensor), 2U);
  Stack read = {tensor, 2};
  ASSERT_TRUE(record_call("mul_", "Scalar", read));
  EXPECT_EQ(length(tensor), 3U);
  dormant::materialize(tensor);
  EXPECT_TRUE(same_bits(tensor, at::tensor({6.0F, 8.0F, 8.0F, 8.0F, 8.0F, 8.0F, 8.0F, 8.0F})));
}

TEST(Record, ANodeKeepsTheNumberOfThreads) {
  const auto tensor = lazy_ones({4});
  const auto threads = at::get_num_threads();
  at::set_num_threads(threads + 1);
  Stack stack = {tensor, 2};
  const bool recorded = record_call("fill_", "Scalar", stack);
  at::set_num_threads(threads);
  ASSERT_TRUE(recorded);
  EXPECT_EQ(history_of(tensor)->tail->threads, threads + 1);
  Stack again = {tensor, 3};
  const auto op = c10::Dispatcher::singleton().findSchemaOrThrow("aten::fill_", "Scalar");
  Call call(op, {}, &again);
  call.threads = 7;
  ASSERT_TRUE(record(call));
  EXPECT_EQ(history_of(tensor)->tail->threads, 7);
}

TEST(Record, RandomNumbersAreThoseOfTheTimeOfTheCallAndTheGeneratorMovesOn) {
  auto lazy_generator = at::detail::createCPUGenerator(5);
  auto eager_generator = at::detail::createCPUGenerator(5);
  const auto build = [](const at::Generator& generator) {
    auto first = at::empty({17}).normal_(0, 1, generator);
    auto second = at::empty({30}, at::kLong).random_(generator);
    auto third = at::bernoulli(first.sigmoid(), generator);
    return std::vector<Tensor>{first, second, third};
  };
  std::vector<Tensor> lazy;
  {
    const LazyInit guard;
    lazy = build(lazy_generator);
  }
  const auto eager = build(eager_generator);
  EXPECT_TRUE(lazy_generator.get_state().equal(eager_generator.get_state()));
  lazy_generator.set_current_seed(99);
  for (size_t i = lazy.size(); i-- > 0;) {
    ASSERT_TRUE(is_lazy(lazy[i])) << i;
    dormant::materialize(lazy[i]);
    EXPECT_TRUE(same_bits(lazy[i], eager[i])) << i;
  }
}

// out= arguments.

/// A storage of six elements, and what an operator did to the view of it that was its out=.
struct Grown {
  Tensor base;
  Tensor out;
};

Grown add_into_a_view_of_nothing() {
  const auto base = at::arange(6, at::kFloat);
  auto out = base.narrow(0, 2, 0);
  at::add_out(out, at::full({2, 5}, 0.5), at::ones({2, 5}));
  base.narrow(0, 0, 1).mul_(2);
  return {base.add(0), out};
}

TEST(Record, AnOutThatGrowsAViewKeepsWhatWasWrittenBeforeIt) {
  Grown lazy;
  {
    const LazyInit guard;
    lazy = add_into_a_view_of_nothing();
  }
  const auto eager = add_into_a_view_of_nothing();
  ASSERT_TRUE(is_lazy(lazy.out));
  EXPECT_EQ(lazy.out.storage().nbytes(), eager.out.storage().nbytes());
  EXPECT_EQ(lazy.out._version(), eager.out._version());
  dormant::materialize({lazy.base, lazy.out});
  EXPECT_TRUE(same_bits(lazy.base, eager.base));
  EXPECT_TRUE(same_bits(lazy.out, eager.out));
  EXPECT_EQ(lazy.out.storage_offset(), eager.out.storage_offset());
}

TEST(Record, TwoOutsOfOneStorageAreOneWrite) {
  const auto build = [] {
    const auto both = at::zeros({2});
    auto least = both.select(0, 0);
    auto most = both.select(0, 1);
    at::aminmax_out(least, most, at::arange(5, at::kFloat).sub(2));
    return both;
  };
  const auto lazy = lazily(build);
  ASSERT_TRUE(is_lazy(lazy));
  EXPECT_EQ(full_name(history_of(lazy)->tail->op), "aten::aminmax.out");
  dormant::materialize(lazy);
  EXPECT_TRUE(same_bits(lazy, eagerly(build)));
}

TEST(Record, AnOutThatIsReadAsWellHasTheValuesOfEager) {
  const auto build = [] {
    auto base = at::arange(4, at::kFloat);
    auto out = base.narrow(0, 4, 0);
    at::add_out(out, base, base);
    return at::cat({base, out});
  };
  const auto lazy = lazily(build);
  dormant::materialize(lazy);
  EXPECT_TRUE(same_bits(lazy, eagerly(build)));
}

// resize_.

TEST(Record, AResizeKeepsTheBytesThatAreThere) {
  for (const int64_t size : {2, 6, 9}) {
    const auto build = [&] {
      auto base = at::arange(6, at::kFloat);
      auto view = base.narrow(0, 1, 3);
      view.resize_({size});
      view.narrow(0, 1, 1).fill_(-1);
      EXPECT_EQ(base.sizes(), c10::IntArrayRef({6}));
      return base.add(view.narrow(0, 0, 1));
    };
    const auto lazy = lazily(build);
    ASSERT_TRUE(is_lazy(lazy));
    dormant::materialize(lazy);
    EXPECT_TRUE(same_bits(lazy, eagerly(build))) << size;
  }
}

TEST(Record, AResizeHasTheSizeStridesVersionAndStorageOfEager) {
  for (const std::vector<int64_t>& sizes :
       {std::vector<int64_t>{}, {2, 3}, {3, 2}, {4, 4}, {0}, {1}}) {
    const auto build = [&] { return at::ones({2, 3}).t().resize_(sizes); };
    const auto lazy = lazily(build);
    const auto eager = eagerly(build);
    ASSERT_TRUE(is_lazy(lazy));
    EXPECT_EQ(lazy.sizes(), eager.sizes());
    EXPECT_EQ(lazy.strides(), eager.strides());
    EXPECT_EQ(lazy._version(), eager._version()) << eager.sizes();
    EXPECT_EQ(lazy.storage().nbytes(), eager.storage().nbytes()) << eager.sizes();
  }
}

// Versions and inference mode.

TEST(BumpVersion, CountsAWriteWhereEagerWould) {
  const auto tensor = at::ones({2});
  const auto before = tensor._version();
  bump_version(tensor);
  EXPECT_EQ(tensor._version(), before + 1);
  {
    const at::AutoDispatchBelowADInplaceOrView below;
    bump_version(tensor);
  }
  EXPECT_EQ(tensor._version(), before + 1);
  Tensor uncounted;
  {
    const c10::InferenceMode inference;
    uncounted = at::ones({2});
  }
  bump_version(uncounted);  // has no version to count
}

TEST(RefusesWrites, OfInferenceTensorsOutsideInferenceMode) {
  EXPECT_FALSE(refuses_writes(at::ones({2})));
  const c10::InferenceMode inference;
  const auto tensor = at::ones({2});
  EXPECT_FALSE(refuses_writes(tensor));
  const c10::InferenceMode outside(false);
  EXPECT_TRUE(refuses_writes(tensor));
}

// clone_storage.

Tensor clone_of(const Tensor& tensor) {
  return make_tensor(clone_storage(tensor.storage()), Geometry::of(tensor));
}

TEST(CloneStorage, OfRealBytesIsRealAndOfItsOwn) {
  const auto tensor = at::arange(6, at::kFloat);
  const auto clone = clone_of(tensor);
  EXPECT_FALSE(is_lazy(clone));
  tensor.zero_();
  EXPECT_TRUE(same_bits(clone, at::arange(6, at::kFloat)));
}

TEST(CloneStorage, OfALazyStorageIsLazyAndSeesNoLaterWrite) {
  const auto tensor = lazily([] { return at::arange(6, at::kFloat).mul_(2); });
  const auto clone = clone_of(tensor.narrow(0, 1, 3));
  {
    const LazyInit guard;
    tensor.fill_(-1);
    clone.narrow(0, 0, 1).add_(100);
  }
  ASSERT_TRUE(is_lazy(clone));
  EXPECT_EQ(clone.storage().nbytes(), tensor.storage().nbytes());
  dormant::materialize({clone, tensor});
  EXPECT_TRUE(same_bits(clone, at::tensor({102.0F, 4.0F, 6.0F})));
  EXPECT_TRUE(same_bits(tensor, at::full({6}, -1.0)));
}

TEST(CloneStorage, OfWhatNobodyWroteToReadsNothing) {
  const auto tensor = lazily([] { return at::empty({5}); });
  EXPECT_FALSE(history_of(clone_of(tensor))->tail);
}

TEST(CloneStorageThreads, HasTheValuesThatAnotherThreadIsMaking) {
  for (int round = 0; round < 100; ++round) {
    const auto tensor = lazily([] { return at::arange(1000, at::kFloat).mul_(2); });
    std::atomic<bool> begun{false};
    std::thread other([&] {
      begun = true;
      dormant::materialize(tensor);
    });
    while (!begun) {
      std::this_thread::yield();
    }
    const auto clone = make_tensor(clone_storage(tensor.storage()), Geometry::of(tensor));
    other.join();
    if (is_lazy(clone)) {
      dormant::materialize(clone);
    }
    ASSERT_TRUE(same_bits(clone, at::arange(1000, at::kFloat).mul(2))) << round;
  }
}

// Two threads that use one storage.

void in_threads(const std::function<void(int)>& work) {
  std::vector<std::thread> threads;
  threads.reserve(kThreads);
  for (int i = 0; i < kThreads; ++i) {
    threads.emplace_back(work, i);
  }
  for (auto& thread : threads) {
    thread.join();
  }
}

TEST(RecordThreads, NoWriteToASharedStorageIsLost) {
  constexpr int kWrites = 200;
  const auto shared = lazily([] { return at::zeros({kThreads, 8}); });
  const auto version = shared._version();
  const auto rows = shared.unbind(0);
  in_threads([&](int i) {
    const LazyInit guard;
    for (int n = 0; n < kWrites; ++n) {
      rows[static_cast<size_t>(i)].add_(1);
    }
  });
  ASSERT_TRUE(is_lazy(shared));
  EXPECT_EQ(length(shared), static_cast<size_t>(kThreads * kWrites + 1));
  EXPECT_EQ(shared._version(), version + kThreads * kWrites);
  dormant::materialize(shared);
  EXPECT_TRUE(same_bits(shared, at::full({kThreads, 8}, static_cast<float>(kWrites))));
}

TEST(RecordThreads, ACallThatIsTriedAgainDrawsOnce) {
  constexpr int kDraws = 200;
  const auto shared = lazily([] { return at::zeros({kThreads, 40}); });
  const auto rows = shared.unbind(0);
  std::vector<at::Generator> generators;
  for (int i = 0; i < kThreads; ++i) {
    generators.push_back(at::detail::createCPUGenerator(static_cast<uint64_t>(i)));
  }
  in_threads([&](int i) {
    const LazyInit guard;
    for (int n = 0; n < kDraws; ++n) {
      rows[static_cast<size_t>(i)].normal_(0, 1, generators[static_cast<size_t>(i)]);
    }
  });
  ASSERT_TRUE(is_lazy(shared));
  dormant::materialize(shared);
  for (int i = 0; i < kThreads; ++i) {
    auto again = at::detail::createCPUGenerator(static_cast<uint64_t>(i));
    Tensor expected;
    for (int n = 0; n < kDraws; ++n) {
      expected = at::empty({40}).normal_(0, 1, again);
    }
    EXPECT_TRUE(same_bits(shared.select(0, i), expected)) << i;
    EXPECT_TRUE(generators[static_cast<size_t>(i)].get_state().equal(again.get_state())) << i;
  }
}

TEST(RecordThreads, GrowingAStorageLosesNothingThatAnotherThreadWrites) {
  for (int round = 0; round < 50; ++round) {
    const auto shared = lazily([] { return at::zeros({kThreads}); });
    const auto elements = shared.unbind(0);
    std::vector<Tensor> views;
    for (int i = 0; i < kThreads; ++i) {
      views.push_back(shared.narrow(0, 0, 1));
    }
    in_threads([&](int i) {
      const LazyInit guard;
      elements[static_cast<size_t>(i)].fill_(i + 1);
      views[static_cast<size_t>(i)].resize_({kThreads + 10 * (i + 1)});
    });
    ASSERT_TRUE(is_lazy(shared));
    EXPECT_EQ(shared.storage().nbytes(), sizeof(float) * (kThreads + 10 * kThreads));
    dormant::materialize(shared);
    ASSERT_TRUE(same_bits(shared, at::arange(1, kThreads + 1, at::kFloat))) << round;
  }
}

}  // namespace
}  // namespace dormant::record
