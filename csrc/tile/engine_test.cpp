#include "tile/engine.h"

#include <ATen/Parallel.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/constant_pad_nd.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/full.h>
#include <ATen/ops/linalg_qr.h>
#include <ATen/ops/randn.h>
#include <ATen/ops/stack.h>

#include <atomic>
#include <chrono>
#include <cstring>
#include <functional>
#include <memory>
#include <stdexcept>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "record/recorder.h"
#include "record/source.h"
#include "record/source_node.h"
#include "system/faults.h"
#include "tile/eager_comparison.h"

namespace dormant::tile {
namespace {

using at::Tensor;

/// How the tensor's own storage was made real.
Way bring_to_life(const Tensor& lazy, const Options& options = {}) {
  const auto done = materialize({lazy.storage()}, options);
  record::settle(lazy);
  EXPECT_EQ(done.size(), 1U);
  EXPECT_FALSE(record::is_lazy(lazy));
  return done.at(0).way;
}

class Threads {
 public:
  explicit Threads(int count) : before_(at::get_num_threads()) { at::set_num_threads(count); }
  ~Threads() { at::set_num_threads(before_); }
  Threads(const Threads&) = delete;
  Threads& operator=(const Threads&) = delete;

 private:
  int before_;
};

struct Case {
  const char* name;
  Build build;
  Way way;
};

Tensor whole(at::ScalarType dtype = at::kFloat) {
  return at::empty({300, 517}, dtype).normal_(0, 0.02);
}

const std::vector<Case>& cases() {
  static const std::vector<Case> all = {
      {"row chunk", [] { return whole().chunk(8, 0)[3].clone(); }, Way::tiles},
      {"column chunk, uneven", [] { return whole().chunk(8, 1)[7].clone(); }, Way::tiles},
      {"column chunk of bfloat16",
       [] { return whole(at::kBFloat16).narrow(1, 13, 65).contiguous(); }, Way::tiles},
      {"middle of three dimensions",
       [] { return at::empty({9, 31, 70}).uniform_(-1, 1).narrow(1, 3, 17).clone(); }, Way::tiles},
      {"chain of three copies",
       [] {
         return whole()
             .narrow(0, 20, 200)
             .clone()
             .narrow(1, 9, 400)
             .to(at::kBFloat16)
             .narrow(0, 5, 50)
             .to(at::kFloat);
       },
       Way::tiles},
      {"embedding with a padding row",
       [] {
         auto weight = whole();
         weight.select(0, 1).zero_();
         return weight;
       },
       Way::tiles},
      {"shard of an embedding with a padding row",
       [] {
         auto weight = whole();
         weight.select(0, 1).zero_();
         return weight.narrow(1, 100, 33).clone();
       },
       Way::tiles},
      {"rows joined", [] { return at::cat({whole(), at::empty({40, 517}).uniform_(0, 1)}, 0); },
       Way::tiles},
      {"rows joined twice",
       [] {
         const auto rows = at::empty({3, 40}).uniform_(0, 1);
         return at::cat({rows, rows.narrow(0, 1, 2), at::empty({0}), rows}, -2);
       },
       Way::tiles},
      {"columns joined", [] { return at::cat({whole(), whole()}, 1); }, Way::tiles},
      {"the last of four dimensions joined",
       [] {
         const auto part = at::empty({3, 5, 7, 11}).uniform_(0, 1);
         return at::cat({part, part.narrow(3, 2, 4), at::empty({0}), part.neg()}, -1);
       },
       Way::tiles},
      {"channels last joined",
       [] {
         const auto part = at::empty({3, 5, 7, 11}, at::MemoryFormat::ChannelsLast).uniform_(0, 1);
         return at::cat({part, part}, 1);
       },
       Way::tiles},
      {"dtypes joined",
       [] { return at::cat({whole(), whole(at::kBFloat16), whole(at::kDouble)}, 1); }, Way::tiles},
      {"stacked", [] { return at::stack({whole(), whole().narrow(1, 0, 517), whole().neg_()}, 1); },
       Way::tiles},
      {"stacked at the end", [] { return at::stack({whole(), whole()}, -1); }, Way::tiles},
      {"padded", [] { return at::constant_pad_nd(whole(), {3, 0, 1, 5}, -7.5); }, Way::tiles},
      {"padded, of integers",
       [] { return at::constant_pad_nd(at::empty({90}, at::kLong).random_(), {0, 6}, 2); },
       Way::tiles},
      {"truncated normal",
       [] {
         return at::empty({100000}).uniform_(-0.9, 0.9).erfinv_().mul_(0.02).add_(0.1).clamp_(-2,
                                                                                              2);
       },
       Way::tiles},
      {"a few normal numbers", [] { return at::empty({3, 5}).normal_(); }, Way::tiles},
      {"nothing", [] { return at::empty({0, 5}).normal_(); }, Way::replay},
      {"transposed copy", [] { return whole().t().contiguous(); }, Way::tiles},
      {"transposed copy in another dtype",
       [] {
         return whole().t().to(at::kBFloat16, false, true, at::MemoryFormat::Contiguous).mul_(3);
       },
       Way::tiles},
      {"shard of a transposed copy",
       [] { return whole().t().contiguous().narrow(1, 20, 33).clone(); }, Way::tiles},
      {"permuted copy",
       [] { return at::empty({9, 31, 70}).normal_().permute({2, 0, 1}).contiguous(); }, Way::tiles},
      {"a few columns of a narrow matrix",
       [] { return at::empty({3000, 9}).normal_().narrow(1, 2, 3).clone(); }, Way::tiles},
      {"a few columns of a narrow matrix of another distribution",
       [] { return at::empty({3000, 40}).exponential_().narrow(1, 2, 3).clone(); }, Way::tiles},
      {"a few columns of a wide matrix of another distribution",
       [] { return at::empty({300, 400}).exponential_().narrow(1, 2, 3).clone(); }, Way::tiles},
      {"every other column", [] { return whole().slice(1, 0, 517, 2).clone(); }, Way::tiles},
      {"every hundredth row", [] { return whole().slice(0, 3, 300, 100).clone(); }, Way::tiles},
      {"one row many times", [] { return whole().narrow(0, 7, 1).expand({50, 517}).contiguous(); },
       Way::tiles},
      {"one column many times",
       [] { return whole().narrow(1, 7, 1).expand({300, 50}).contiguous(); }, Way::tiles},
      {"written through columns",
       [] {
         auto weight = whole();
         weight.narrow(1, 0, 100).zero_();
         weight.slice(1, 100, 517, 2).mul_(3);
         weight.narrow(1, 200, 70).copy_(at::empty({300, 70}).uniform_(5, 6));
         weight.narrow(1, 300, 9).uniform_(7, 8);
         weight.slice(0, 0, 300, 7).slice(1, 3, 517, 5).bernoulli_(0.3);
         weight.select(1, 516).fill_(-1);
         return weight;
       },
       Way::tiles},
      {"rows added to a matrix",
       [] {
         const auto row = at::empty({517}).uniform_(0, 1);
         const auto column = at::empty({300, 1}).uniform_(0, 1);
         return whole().add_(row).mul_(column).sub(row).div(column);
       },
       Way::tiles},
      {"orthogonal", [] { return std::get<0>(at::linalg_qr(at::randn({20, 20}))); }, Way::replay},
      {"mathematics on rows", [] { return whole().cumsum(0); }, Way::replay},
  };
  return all;
}

TEST(Engine, GivesTheBitsOfEagerTheWayItShould) {
  for (const auto& c : cases()) {
    SCOPED_TRACE(c.name);
    const auto lazy = lazily(c.build);
    ASSERT_TRUE(record::is_lazy(lazy));
    EXPECT_EQ(bring_to_life(lazy), c.way);
    EXPECT_TRUE(same_bits(lazy, eagerly(c.build)));
  }
}

TEST(EngineThreads, OneAndTwoGiveTheSameBits) {
  // Several pieces of 16 MiB, the last one short.
  const auto build = [] {
    auto weight = at::empty({(20 << 20) / 4 * 2 + 77}, at::kFloat).normal_(0.5, 2);
    weight.narrow(0, 4194300, 8).zero_();
    return weight;
  };
  const auto expected = eagerly(build);
  for (const int count : {1, 2}) {
    const Threads threads(count);
    const auto lazy = lazily(build);
    EXPECT_EQ(bring_to_life(lazy), Way::tiles);
    EXPECT_TRUE(same_bits(lazy, expected)) << count << " threads";
  }
}

TEST(Engine, WorksWhileRecording) {
  const auto build = [] { return at::empty({7}).normal_(); };
  const auto lazy = lazily(build);
  {
    const LazyInit guard;
    EXPECT_EQ(bring_to_life(lazy), Way::tiles);
  }
  EXPECT_TRUE(same_bits(lazy, eagerly(build)));
}

TEST(Engine, WhatStopsItLeavesTheRestLazyAndItCanBeRepeated) {
  const Threads threads(1);
  const auto build = [] { return at::empty({6 << 20}).uniform_(-1, 1); };
  std::vector<Tensor> lazy;
  for (int i = 0; i < 8; ++i) {
    lazy.push_back(lazily(build));
  }
  std::vector<c10::Storage> storages;
  for (const auto& tensor : lazy) {
    storages.push_back(tensor.storage());
  }
  for (const bool at_once : {true, false}) {
    Options options;
    options.on_step = [&](size_t done, size_t total) {
      EXPECT_LE(done, total);
      if (at_once || done > 0) {
        throw std::runtime_error("stop");
      }
    };
    EXPECT_THROW(materialize(storages, options), std::runtime_error);
    EXPECT_EQ(record::is_lazy(lazy.back()), true) << "stopped at " << at_once;
  }
  materialize(storages, {});
  const auto expected = eagerly(build);
  for (const auto& tensor : lazy) {
    record::settle(tensor);
    EXPECT_TRUE(same_bits(tensor, expected));
  }
}

TEST(Engine, ProgressEndsWithEverything) {
  const auto lazy = lazily([] { return at::empty({100000}).uniform_(-1, 1); });
  size_t last = 0;
  Options options;
  options.on_step = [&](size_t done, size_t total) {
    EXPECT_GE(done, last);
    EXPECT_EQ(total, 400000U);
    last = done;
  };
  bring_to_life(lazy, options);
  EXPECT_EQ(last, 400000U);
}

/// The least budget, as the error for a budget of one byte says it.
size_t minimum_budget(const Tensor& lazy) {
  Options options;
  options.memory_budget = 1;
  try {
    materialize({lazy.storage()}, options);
  } catch (const c10::ValueError& error) {
    const std::string message = error.what_without_backtrace();
    const std::string before = "the minimum for these tensors is ";
    const auto at = message.find(before);
    EXPECT_NE(at, std::string::npos) << message;
    return std::stoul(message.substr(at + before.size()));
  }
  ADD_FAILURE() << "a budget of one byte was accepted";
  return 0;
}

TEST(Engine, ABudgetTooSmallSaysTheMinimumWhichIsEnough) {
  const std::vector<Build> builds = {
      [] { return whole().narrow(1, 100, 33).to(at::kBFloat16, false, true); },
      [] { return at::empty({300, 517}).normal_().cumsum(0); },
  };
  for (const auto& build : builds) {
    const auto lazy = lazily(build);
    const auto least = minimum_budget(lazy);
    Options options;
    options.memory_budget = least - 1;
    EXPECT_THROW(materialize({lazy.storage()}, options), c10::ValueError);
    ASSERT_TRUE(record::is_lazy(lazy));
    options.memory_budget = least;
    bring_to_life(lazy, options);
    EXPECT_TRUE(same_bits(lazy, eagerly(build)));
  }
}

TEST(Engine, AStorageThatChangedMeanwhileGetsTheValuesThatItHasThen) {
  const auto lazy = lazily([] { return at::empty({100000}).uniform_(-1, 1); });
  Options options;
  bool written = false;
  options.on_step = [&](size_t, size_t) {
    if (!written) {
      written = true;
      lazy.fill_(3);
      EXPECT_TRUE(record::is_lazy(lazy));
    }
  };
  materialize({lazy.storage()}, options);
  record::settle(lazy);
  EXPECT_TRUE(same_bits(lazy, at::full({100000}, 3.0)));
}

/// Bytes of value 7 that take longer to read than it takes until progress is told.
class SlowSource final : public record::Source {
 public:
  /// `wait` is called before each read.
  explicit SlowSource(std::function<void()> wait) : wait_(std::move(wait)) {}

  void read(uint64_t /*offset*/, size_t count, void* out) const override {
    wait_();
    std::memset(out, 7, count);
  }
  const std::string& name() const override { return name_; }

 private:
  const std::function<void()> wait_;
  const std::string name_ = "slow";
};

Tensor slow(int64_t tiles, std::function<void()> wait) {
  return record::make_read_tensor(std::make_shared<SlowSource>(std::move(wait)), 0,
                                  {tiles * 128 * 1024}, at::kByte);
}

TEST(EngineThreads, WhoWaitsForOneStorageDoesNotWaitForTheOthers) {
  const Threads threads(1);
  const auto first = lazily([] { return at::empty({1000}).uniform_(-1, 1); });
  std::atomic<bool> is_working{false};
  std::atomic<bool> has_first{false};
  const auto second = slow(100, [&] {
    is_working = true;
    if (!has_first) {
      std::this_thread::sleep_for(std::chrono::milliseconds(60));
    }
  });
  std::thread other([&] {
    while (!is_working) {
      std::this_thread::yield();
    }
    materialize({first.storage()}, {});
    EXPECT_FALSE(record::is_lazy(first));
    EXPECT_TRUE(record::is_lazy(second));
    has_first = true;
  });
  materialize({first.storage(), second.storage()}, {});
  other.join();
  EXPECT_FALSE(record::is_lazy(second));
}

TEST(Engine, WhatItFinishedStaysWhereTheRestFails) {
  const Threads threads(1);
  const Build build = [] { return at::empty({1000}).uniform_(-1, 1); };
  const auto first = lazily(build);
  bool fails = true;
  const auto second = slow(2, [&] {
    if (fails) {
      throw std::runtime_error("cannot be read");
    }
  });
  EXPECT_THROW(materialize({second.storage(), first.storage()}, {}), std::runtime_error);
  record::settle(first);
  EXPECT_TRUE(same_bits(first, eagerly(build)));
  ASSERT_TRUE(record::is_lazy(second));
  fails = false;
  materialize({second.storage()}, {});
  record::settle(second);
  EXPECT_TRUE(same_bits(second, at::full({2 * 128 * 1024}, 7, at::kByte)));
}

TEST(EngineThreads, ExhaustedMemoryLeavesEverythingToBeMadeAgain) {
  const std::vector<Build> builds = {
      [] { return whole().add(whole()); },
      [] { return whole().t().contiguous(); },
      [] { return whole().narrow(1, 3, 50).to(at::kBFloat16); },
      [] { return whole().cumsum(0); },
  };
  const Threads threads(2);
  for (uint64_t n = 1;; ++n) {
    std::vector<Tensor> lazy;
    std::vector<c10::Storage> storages;
    for (const auto& build : builds) {
      lazy.push_back(lazily(build));
      storages.push_back(lazy.back().storage());
    }
    bool failed = false;
    system::set_faults("allocate:" + std::to_string(n));
    try {
      materialize(storages, {});
    } catch (const c10::Error&) {
      failed = true;
    }
    const auto allocations = system::set_faults("")[0];
    EXPECT_EQ(failed, allocations >= n) << "at allocation " << n;
    materialize(storages, {});
    for (size_t i = 0; i < builds.size(); ++i) {
      record::settle(lazy[i]);
      EXPECT_TRUE(same_bits(lazy[i], eagerly(builds[i]))) << "tensor " << i << ", " << n;
    }
    if (!failed) {
      EXPECT_GT(n, 5U);
      return;
    }
  }
}

}  // namespace
}  // namespace dormant::tile
