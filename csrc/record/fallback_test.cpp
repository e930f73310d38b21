#include "record/fallback.h"

#include <ATen/ATen.h>
#include <ATen/autocast_mode.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <c10/core/InferenceMode.h>
#include <dormant/dormant.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/function.h>

#include <atomic>
#include <cstdint>
#include <exception>
#include <functional>
#include <optional>
#include <string>
#include <thread>
#include <unordered_map>

#include <vector>

#include "record/eager_comparison.h"
#include "record/lazy_storage.h"

namespace dormant::record {
namespace {

using at::Tensor;

Tensor lazy_numbers() {
  return lazily([] { return at::arange(6, at::kFloat).view({2, 3}); });
}

Tensor numbers() { return at::arange(6, at::kFloat).view({2, 3}); }

/// What `work` raises, without its backtrace; empty where it raises nothing.
std::string raised_by(const std::function<void()>& work) {
  try {
    work();
  } catch (const c10::Error& error) {
    return error.what_without_backtrace();
  } catch (const std::exception& error) {
    return error.what();
  }
  return "";
}

// Recording.

TEST(Recording, IsOfOneThreadAndGoesBackToWhatItWas) {
  EXPECT_FALSE(recording());
  EXPECT_FALSE(set_recording(true));
  EXPECT_TRUE(recording());
  EXPECT_TRUE(set_recording(true));
  EXPECT_TRUE(is_lazy(at::ones({2})));
  std::thread([] {
    EXPECT_FALSE(recording());
    EXPECT_FALSE(is_lazy(at::ones({2})));
  }).join();
  EXPECT_TRUE(set_recording(false));
  EXPECT_FALSE(recording());
  EXPECT_FALSE(is_lazy(at::ones({2})));
}

TEST(ValueReads, CountTheBytesThatAnOperatorNeededWhileRecording) {
  reset_value_reads();
  const auto outside = lazy_numbers();
  outside.sum();  // not recorded: nobody is told
  EXPECT_TRUE(value_reads().empty());
  {
    const LazyInit guard;
    const auto tensor = at::ones({6});
    EXPECT_EQ(tensor.select(0, 2).item<float>(), 1);
    EXPECT_EQ(tensor.select(0, 3).item<float>(), 1);  // has values by now
    const auto integers = at::ones({3}, at::kLong);
    EXPECT_EQ(integers.nonzero().size(0), 3);
  }
  EXPECT_EQ(value_reads(), (std::unordered_map<std::string, uint64_t>{
                               {"aten::_local_scalar_dense", 24}, {"aten::nonzero", 24}}));
  std::thread([] { EXPECT_TRUE(value_reads().empty()); }).join();
  reset_value_reads();
  EXPECT_TRUE(value_reads().empty());
}

// Which calls keep a lazy tensor lazy.

TEST(Fallback, OutsideTheContextGeometryAndMovementStayLazyAndArithmeticRuns) {
  const std::vector<std::function<Tensor(const Tensor&)>> lazily_done = {
      [](const Tensor& t) { return t.t(); },
      [](const Tensor& t) { return t.clone(); },
      [](const Tensor& t) { return t.to(at::kBFloat16); },
      [](const Tensor& t) { return at::cat({t, t}); },
      [](const Tensor& t) { return t.repeat({2, 1}); },
      [](const Tensor& t) { return t.contiguous().fill_(3); },
      [](const Tensor& t) { return at::zeros_like(t); },
      [](const Tensor& t) { return at::empty_like(t).copy_(t); },
  };
  for (size_t i = 0; i < lazily_done.size(); ++i) {
    const auto tensor = lazy_numbers();
    const auto result = lazily_done[i](tensor);
    EXPECT_TRUE(is_lazy(result)) << i;
    EXPECT_TRUE(is_lazy(tensor)) << i;
    dormant::materialize(result);
    EXPECT_TRUE(same_bits(result, lazily_done[i](numbers()))) << i;
  }
  const auto tensor = lazy_numbers();
  const auto sum = tensor.add(1);
  EXPECT_FALSE(is_lazy(sum));
  EXPECT_FALSE(is_lazy(tensor));
  EXPECT_TRUE(same_bits(sum, numbers().add(1)));
}

TEST(Fallback, MetaTensorsNeedNoValues) {
  const auto tensor = lazy_numbers();
  const auto meta = tensor.to(at::kMeta);
  EXPECT_TRUE(meta.is_meta());
  meta.copy_(tensor);
  EXPECT_TRUE(is_lazy(tensor));
}

TEST(Fallback, ListsOfTensorsAreWrittenOneByOne) {
  const auto build = [] {
    const std::vector<Tensor> all = {at::ones({2}), at::full({3}, 2.0)};
    at::_foreach_add_(all, 1);
    at::_foreach_mul_(all, 3);
    EXPECT_EQ(all[0]._version(), all[1]._version());
    return at::cat(all);
  };
  const auto lazy = lazily(build);
  ASSERT_TRUE(is_lazy(lazy));
  dormant::materialize(lazy);
  EXPECT_TRUE(same_bits(lazy, eagerly(build)));
}

// Versions, graphs and gradients are those of eager.

TEST(Fallback, WritesAreCountedAsInEager) {
  const auto build = [] {
    auto tensor = at::empty({4, 4});
    tensor.normal_();
    tensor.select(0, 1).zero_();
    tensor.copy_(at::ones({4, 4}));
    at::mul_out(tensor, tensor, at::scalar_tensor(2));
    const at::NoGradGuard no_grad;
    tensor.t().add_(1).clamp_(0, 1);
    at::_foreach_add_({tensor}, 1);
    at::nan_to_num_(tensor);
    return tensor;
  };
  const auto lazy = lazily(build);
  EXPECT_TRUE(is_lazy(lazy));
  EXPECT_EQ(lazy._version(), eagerly(build)._version());
}

TEST(Fallback, FactoriesHaveTheVersionsOfEager) {
  const std::vector<Build> builds = {
      [] { return at::zeros({3}); },        [] { return at::ones({3}); },
      [] { return at::randn({3}); },        [] { return at::full({3}, 2); },
      [] { return at::arange(3); },         [] { return at::eye(3); },
      [] { return at::randperm(3); },       [] { return at::linspace(0, 1, 3); },
      [] { return at::ones({3}).clone(); }, [] { return at::rand_like(at::ones({3})); },
  };
  for (size_t i = 0; i < builds.size(); ++i) {
    EXPECT_EQ(lazily(builds[i])._version(), eagerly(builds[i])._version()) << i;
  }
}

struct Graph {
  Tensor leaf;
  Tensor result;
};

Graph build_graph() {
  const auto leaf = at::arange(6, at::kFloat).view({2, 3}).set_requires_grad(true);
  auto hidden = leaf.mul(2).t();
  hidden.add_(1);
  const auto parts = hidden.split(2);
  return {leaf, at::cat({parts[1], parts[0].detach().clone()}).pow(2)};
}

std::string names_of_graph(const Tensor& tensor) {
  std::string names;
  std::vector<const torch::autograd::Node*> nodes = {tensor.grad_fn().get()};
  for (size_t i = 0; i < nodes.size(); ++i) {
    if (nodes[i] != nullptr) {
      names += nodes[i]->name() + " ";
      for (const auto& edge : nodes[i]->next_edges()) {
        nodes.push_back(edge.function.get());
      }
    }
  }
  return names;
}

TEST(Fallback, GraphsAndGradientsAreThoseOfEager) {
  Graph lazy;
  {
    const LazyInit guard;
    lazy = build_graph();
  }
  const auto eager = build_graph();
  ASSERT_TRUE(is_lazy(lazy.leaf));
  ASSERT_TRUE(is_lazy(lazy.result));
  EXPECT_TRUE(lazy.leaf.is_leaf());
  EXPECT_TRUE(lazy.leaf.requires_grad());
  EXPECT_TRUE(lazy.result.requires_grad());
  EXPECT_EQ(names_of_graph(lazy.result), names_of_graph(eager.result));
  dormant::materialize({lazy.leaf, lazy.result});
  EXPECT_TRUE(same_bits(lazy.result.detach(), eager.result.detach()));
  lazy.result.sum().backward();
  eager.result.sum().backward();
  EXPECT_TRUE(same_bits(lazy.leaf.grad(), eager.leaf.grad()));
}

TEST(Fallback, WithoutGradNothingEntersAGraph) {
  const LazyInit guard;
  const auto leaf = at::ones({3}).set_requires_grad(true);
  const at::NoGradGuard no_grad;
  leaf.mul_(2);
  EXPECT_TRUE(is_lazy(leaf));
  EXPECT_TRUE(leaf.is_leaf());
  EXPECT_FALSE(leaf.mul(2).requires_grad());
}

TEST(Fallback, AutocastComputesInTheDtypeOfEager) {
  const auto build = [] {
    const auto matrix = at::arange(16, at::kFloat).view({4, 4}).div(7);
    at::autocast::set_autocast_enabled(at::kCPU, true);
    auto product = at::mm(matrix, matrix);
    at::autocast::clear_cache();
    at::autocast::set_autocast_enabled(at::kCPU, false);
    return product;
  };
  const auto lazy = lazily(build);
  dormant::materialize(lazy);
  EXPECT_EQ(lazy.scalar_type(), at::kBFloat16);
  EXPECT_TRUE(same_bits(lazy, eagerly(build)));
}

TEST(Fallback, DeterministicAlgorithmsFillWhatNobodyInitialized) {
  auto& context = at::globalContext();
  for (const auto dtype :
       {at::kFloat, at::kBFloat16, at::kComplexFloat, at::kInt, at::kByte, at::kBool}) {
    for (const bool counted : {true, false}) {  // torch::empty counts no write, at::empty does
      const auto build = [&] {
        std::optional<at::AutoDispatchBelowADInplaceOrView> below;
        if (!counted) {
          below.emplace();
        }
        return at::empty({5}, dtype);
      };
      context.setDeterministicAlgorithms(true, false);
      const auto lazy = lazily(build);
      const auto eager = eagerly(build);
      context.setDeterministicAlgorithms(false, false);
      ASSERT_TRUE(is_lazy(lazy));
      EXPECT_EQ(lazy._version(), eager._version()) << dtype << ", " << counted;
      dormant::materialize(lazy);
      EXPECT_TRUE(same_bits(lazy, eager)) << dtype;
    }
  }
}

// Calls that raise.

struct Raising {
  const char* what;
  std::function<void(const Tensor&)> call;
};

TEST(Fallback, ACallThatRaisesSaysWhatEagerSaysAndTheTensorIsAsItWas) {
  const auto index = at::tensor({3}, at::kLong);
  const auto memory = at::ones({3});
  const std::vector<Raising> cases = {
      {"sizes that do not fit", [](const Tensor& t) { t.add_(at::ones({5})); }},
      {"a dimension out of range", [](const Tensor& t) { at::sort(t, 5); }},
      {"an index out of range", [&](const Tensor& t) { at::index_select(t, 1, index); }},
      {"an input that shares a part",
       [](const Tensor& t) { t.view({6}).narrow(0, 0, 4).add_(t.view({6}).narrow(0, 2, 4)); }},
      {"an expanded destination",
       [](const Tensor& t) { t.narrow(1, 0, 1).expand({2, 3}).add_(1); }},
      {"a probability above one", [](const Tensor& t) { t.bernoulli_(1.5); }},
      {"a negative deviation", [](const Tensor& t) { t.normal_(0, -1); }},
      {"a sparse source", [](const Tensor& t) { t.copy_(at::ones({2, 3}).to_sparse()); }},
      {"a source of other sizes", [](const Tensor& t) { t.copy_(at::ones({4})); }},
      {"a large source of other sizes", [](const Tensor& t) { t.copy_(at::ones({70000})); }},
      {"a negative size", [](const Tensor& t) { t.resize_({-1}); }},
      {"an offset below the storage",
       [](const Tensor& t) { Tensor(t).set_(t.storage(), -1, {2}, {1}); }},
      {"strides of another rank",
       [](const Tensor& t) { Tensor(t).set_(t.storage(), 0, {2, 2}, {1}); }},
      {"a negative stride", [](const Tensor& t) { Tensor(t).set_(t.storage(), 4, {2}, {-1}); }},
      {"a result of more bytes than can be counted",
       [](const Tensor& t) { t.repeat({int64_t{1} << 30, int64_t{1} << 30}); }},
      {"an offset below another storage",
       [&](const Tensor& t) { Tensor(t).set_(memory.storage(), -1, {2}, {1}); }},
      {"an out of another dtype",
       [](const Tensor& t) {
         Tensor out = t;
         at::gt_out(out, at::ones({2, 3}, at::kComplexFloat), at::ones({2, 3}));
       }},
      {"a result that does not fit the dtype",
       [](const Tensor& t) { t.to(at::kLong).mul_(at::full({3}, 0.5)); }},
      {"matrices that do not fit", [](const Tensor& t) { at::mm(t, t); }},
  };
  for (const auto& raising : cases) {
    for (const bool inside : {true, false}) {
      SCOPED_TRACE(std::string(raising.what) + (inside ? ", recording" : ""));
      const auto lazy = lazy_numbers();
      const auto eager = numbers();
      auto generator = at::detail::getDefaultCPUGenerator();
      const auto state = generator.get_state();
      std::string got;
      {
        std::optional<LazyInit> guard;
        if (inside) {
          guard.emplace();
        }
        got = raised_by([&] { raising.call(lazy); });
      }
      const auto moved = generator.get_state();
      generator.set_state(state);
      EXPECT_EQ(got, raised_by([&] { raising.call(eager); }));
      EXPECT_NE(got, "");
      EXPECT_TRUE(moved.equal(generator.get_state()));
      EXPECT_EQ(lazy._version(), eager._version());
      if (is_lazy(lazy)) {
        dormant::materialize(lazy);
      }
      EXPECT_TRUE(same_bits(lazy, eager));
    }
  }
}

TEST(Fallback, AFactoryThatRaisesSaysWhatEagerSays) {
  constexpr int64_t kHuge = int64_t{1} << 40;
  const std::vector<std::function<void()>> calls = {
      [] { at::empty({-1}); },
      [] { at::zeros({4 * kHuge, kHuge / 2}); },
      [] { at::empty({kHuge, kHuge}); },
      [] { at::empty({int64_t{1} << 62}); },
      [] { at::empty_strided({kHuge, kHuge}, {kHuge, 1}); },
      [] { at::empty_strided({2, 3}, {1}); },
      [] { at::empty_strided({2}, {-1}); },
      [] { at::empty({2, 3}, at::MemoryFormat::ChannelsLast); },
      [] { at::full({2}, -1e9, at::kHalf); },
      [] { at::randperm(-1); },
      [] { at::arange(0, 3, -1); },
      [] { at::normal(0, -1, {2}); },
  };
  for (size_t i = 0; i < calls.size(); ++i) {
    std::string got;
    {
      const LazyInit guard;
      got = raised_by(calls[i]);
    }
    EXPECT_NE(got, "") << i;
    EXPECT_EQ(got, raised_by(calls[i])) << i;
  }
}

TEST(Fallback, AWriteToALeafThatRequiresGradIsRefusedAndItStaysLazy) {
  const LazyInit guard;
  const auto leaf = at::ones({3}).set_requires_grad(true);
  const auto before = history_of(leaf);
  const auto version = leaf._version();
  for (const auto& write : std::vector<std::function<void()>>{
           [&] { leaf.add_(1); }, [&] { leaf.zero_(); }, [&] { leaf.normal_(); },
           [&] { leaf.narrow(0, 0, 1).fill_(2); }}) {
    EXPECT_NE(raised_by(write).find("leaf Variable that requires grad"), std::string::npos);
    EXPECT_EQ(history_of(leaf), before);
    EXPECT_EQ(leaf._version(), version);
  }
}

TEST(Fallback, AWriteToATensorOfInferenceModeIsRefusedAsInEager) {
  const auto make = [](bool lazy) {
    const c10::InferenceMode inference;
    return lazy ? lazily([] { return at::ones({3}); }) : at::ones({3});
  };
  const auto lazy = make(true);
  const auto eager = make(false);
  ASSERT_TRUE(is_lazy(lazy));
  for (const auto& write : std::vector<std::function<void(const Tensor&)>>{
           [](const Tensor& t) { t.add_(1); },
           [](const Tensor& t) { t.copy_(at::zeros({3})); },
           [](const Tensor& t) { at::_foreach_add_({t}, 1); },
       }) {
    const auto got = raised_by([&] { write(lazy); });
    EXPECT_NE(got, "");
    EXPECT_EQ(got, raised_by([&] { write(eager); }));
  }
  const c10::InferenceMode inference;
  EXPECT_TRUE(same_bits(lazy, eager));
}

// copy_ of real values over all of a storage.

// Too large to be captured.
constexpr int64_t kRows = 200;
constexpr int64_t kColumns = 100;

TEST(Fallback, LargeRealValuesReplaceAHistoryInTheirOrderAndDtype) {
  const auto tensor = lazily([] { return at::zeros({kRows, kColumns}); });
  const auto view = tensor.t();
  const auto version = tensor._version();
  const auto values = at::arange(kRows * kColumns).view({kColumns, kRows});
  view.copy_(values);
  EXPECT_FALSE(is_lazy(tensor));
  EXPECT_FALSE(carries_key(view));
  EXPECT_EQ(tensor._version(), version + 1);
  EXPECT_TRUE(same_bits(view, at::zeros({kRows, kColumns}).t().copy_(values)));
}

TEST(Fallback, RealValuesOverAPartLeaveTheRest) {
  const auto tensor = lazy_numbers();
  tensor.select(0, 1).copy_(at::full({3}, -1.0));
  if (is_lazy(tensor)) {
    dormant::materialize(tensor);
  }
  EXPECT_TRUE(same_bits(tensor, at::tensor({0.0F, 1.0F, 2.0F, -1.0F, -1.0F, -1.0F}).view({2, 3})));
}

// set_.

TEST(Fallback, ATensorThatIsSetToALazyStorageSharesIt) {
  const auto source = lazy_numbers();
  auto all = at::ones({2});
  auto flat = at::ones({2});
  auto part = at::ones({2});
  const auto version = all._version();
  {
    const LazyInit guard;
    all.set_(source);
    flat.set_(source.storage());
    part.set_(source.storage(), 1, {2, 2}, {1, 2});
  }
  ASSERT_TRUE(is_lazy(source));
  for (const auto& tensor : {all, flat, part}) {
    EXPECT_TRUE(tensor.storage().is_alias_of(source.storage()));
    EXPECT_EQ(tensor._version(), version + 1);
  }
  dormant::materialize({source, all, flat, part});
  EXPECT_TRUE(same_bits(all, numbers()));
  EXPECT_TRUE(same_bits(flat, numbers().view({6})));
  EXPECT_TRUE(same_bits(part, numbers().as_strided({2, 2}, {1, 2}, 1)));
}

TEST(Fallback, ALazyTensorThatIsSetToRealMemoryIsReal) {
  const auto tensor = lazy_numbers();
  const auto alias = tensor.detach();
  tensor.set_(at::ones({4}));
  EXPECT_FALSE(is_lazy(tensor));
  EXPECT_FALSE(carries_key(tensor));
  EXPECT_TRUE(same_bits(tensor, at::ones({4})));
  EXPECT_TRUE(is_lazy(alias));
}

TEST(Fallback, AGeometryThatDoesNotFitGrowsALazyStorageAsInEager) {
  const auto set = [](const Tensor& source) {
    auto tensor = at::ones({2});
    const LazyInit guard;  // without a lazy argument nobody sees the storage outside
    tensor.set_(source.storage(), 4, {4}, {1});
    EXPECT_EQ(source.storage().nbytes(), 8 * sizeof(float));
    return tensor.narrow(0, 0, 2);
  };
  EXPECT_TRUE(same_bits(set(lazy_numbers()), set(numbers())));
}

// Elements that are read with our key off.

TEST(Fallback, AnElementIsReadWhereOurKeyIsOff) {
  const auto tensor = lazily([] { return at::full({}, 2.5); });
  const c10::impl::ExcludeDispatchKeyGuard off(c10::DispatchKey::DeferredInit);
  EXPECT_EQ(tensor.item<float>(), 2.5F);
  EXPECT_FALSE(is_lazy(tensor));
}

// Threads.

TEST(FallbackThreads, WhoCopiesASharedTensorGetsItsValuesWhoeverReadsThem) {
  for (int round = 0; round < 100; ++round) {
    const auto shared = lazily([] { return at::randn({50, 20}); });
    const auto expected = eagerly([] { return at::randn({50, 20}); });
    std::atomic<int> ready{0};
    std::vector<Tensor> copies(2);
    double sum = 0;
    const auto meet = [&] {
      ++ready;
      while (ready < 3) {
        std::this_thread::yield();
      }
    };
    std::thread reader([&] {
      const auto alias = shared.detach();
      meet();
      sum = alias.to(at::kDouble).sum().item<double>();
    });
    std::vector<std::thread> copiers;
    for (auto& copy : copies) {
      copiers.emplace_back([&] {
        const auto alias = shared.detach();
        meet();
        copy = alias.clone();
      });
    }
    reader.join();
    for (auto& copier : copiers) {
      copier.join();
    }
    dormant::materialize(copies);
    ASSERT_EQ(sum, expected.to(at::kDouble).sum().item<double>());
    for (const auto& copy : copies) {
      ASSERT_TRUE(same_bits(copy, expected)) << round;
    }
  }
}

TEST(FallbackThreads, OfTwoThatReplaceAllOfAStorageOneComesLast) {
  for (int round = 0; round < 100; ++round) {
    const auto shared = lazily([] { return at::zeros({kRows, kColumns}); });
    const std::vector<Tensor> values = {at::full({kRows, kColumns}, 1.0),
                                        at::full({kRows, kColumns}, 2.0)};
    std::vector<std::thread> threads;
    for (const auto& value : values) {
      threads.emplace_back([alias = shared.detach(), &value] { alias.copy_(value); });
    }
    for (auto& thread : threads) {
      thread.join();
    }
    ASSERT_FALSE(is_lazy(shared));
    sync_key(shared);
    ASSERT_TRUE(same_bits(shared, values[0]) || same_bits(shared, values[1])) << round;
  }
}

}  // namespace
}  // namespace dormant::record
