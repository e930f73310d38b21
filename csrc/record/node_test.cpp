#include "record/node.h"

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <dormant/dormant.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <set>
#include <span>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "record/lazy_storage.h"
#include "record/source_node.h"

namespace dormant::record {
namespace {

constexpr int kThreads = 4;

c10::OperatorHandle operator_named(const char* name, const char* overload = "") {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, overload);
}

/// A node that reads what `before` left.
NodePtr make_node(const std::vector<NodePtr>& before, const char* name = "aten::zero_") {
  auto node = c10::make_intrusive<Node>(operator_named(name));
  node->sequence = next_sequence();
  for (const auto& earlier : before) {
    node->operands.push_back(
        {Geometry::bytes(8), make_buffer(8, nullptr), earlier, {}, /*written=*/false});
  }
  return node;
}

NodePtr make_chain(int length, NodePtr tail = {}) {
  for (int i = 0; i < length; ++i) {
    tail = make_node({tail});
  }
  return tail;
}

/// The last node of what `build` records.
NodePtr tail_of(const std::function<at::Tensor()>& build) {
  const LazyInit guard;
  return history_of(build())->tail;
}

/// Bytes of a file, or memory that somebody holds.
class Named final : public Source {
 public:
  explicit Named(std::string name, bool in_memory = false)
      : name_(std::move(name)), in_memory_(in_memory) {}

  void read(uint64_t /*offset*/, size_t count, void* out) const override {
    std::memset(out, 0, count);
  }
  std::span<const std::byte> memory() const override {
    return in_memory_ ? std::span<const std::byte>(bytes_) : std::span<const std::byte>();
  }
  const std::string& name() const override { return name_; }

 private:
  const std::string name_;
  const bool in_memory_;
  const std::array<std::byte, 64> bytes_ = {};
};

TEST(Node, ClosureHasEachNodeOnceInTheOrderOfRecording) {
  const auto first = make_node({});
  const auto left = make_node({first});
  const auto right = make_node({first, left});
  const auto last = make_node({right, left, nullptr});
  const auto beside = make_node({});
  EXPECT_EQ(closure({last.get()}),
            (std::vector<Node*>{first.get(), left.get(), right.get(), last.get()}));
  EXPECT_EQ(closure({beside.get(), last.get(), right.get()}),
            (std::vector<Node*>{first.get(), left.get(), right.get(), last.get(), beside.get()}));
}

TEST(Node, ClosureOfNothingIsEmpty) {
  EXPECT_TRUE(closure({}).empty());
  EXPECT_TRUE(closure({nullptr}).empty());
}

TEST(Node, RecordedNodesComeAfterWhatTheyReadHoweverTheyAreLinked) {
  const auto tail = tail_of([] {
    auto a = at::zeros({4});
    auto b = a.add(1);
    a.add_(b);
    b.mul_(a);
    return at::cat({b, a, b});
  });
  const auto nodes = closure({tail.get()});
  ASSERT_GE(nodes.size(), 5U);
  EXPECT_EQ(nodes.back(), tail.get());
  for (const auto* node : nodes) {
    for (const auto& operand : node->operands) {
      EXPECT_TRUE(!operand.before || operand.before->sequence < node->sequence);
    }
  }
}

TEST(NodeThreads, NoTwoNodesGetTheSameNumber) {
  constexpr int kNumbers = 100000;
  std::vector<std::vector<uint64_t>> numbers(kThreads);
  std::atomic<int> ready{0};
  std::vector<std::thread> threads;
  for (auto& mine : numbers) {
    threads.emplace_back([&] {
      mine.reserve(kNumbers);
      ++ready;
      while (ready < kThreads) {
        std::this_thread::yield();
      }
      for (int i = 0; i < kNumbers; ++i) {
        mine.push_back(next_sequence());
      }
    });
  }
  for (auto& thread : threads) {
    thread.join();
  }
  std::set<uint64_t> all;
  for (const auto& mine : numbers) {
    EXPECT_TRUE(std::is_sorted(mine.begin(), mine.end()));
    all.insert(mine.begin(), mine.end());
  }
  EXPECT_EQ(all.size(), static_cast<size_t>(kThreads) * kNumbers);
}

TEST(Node, InitializesWhatGivesElementsTheirFirstValues) {
  EXPECT_TRUE(initializes(*tail_of([] { return at::empty({3}).zero_(); })));
  EXPECT_TRUE(initializes(*tail_of([] { return at::empty({3}).fill_(2); })));
  EXPECT_TRUE(initializes(*tail_of([] { return at::empty({3}).uniform_(); })));
  EXPECT_TRUE(initializes(*tail_of([] { return at::empty({3}).exponential_(); })));
  EXPECT_TRUE(initializes(*tail_of([] { return at::empty({3}).copy_(at::scalar_tensor(1)); })));
}

TEST(Node, WhatReadsLazyTensorsInitializesNothing) {
  EXPECT_FALSE(initializes(*tail_of([] { return at::empty({3}).copy_(at::ones({3})); })));
  EXPECT_FALSE(initializes(*tail_of([] { return at::ones({3}).add_(1); })));
  EXPECT_FALSE(initializes(*tail_of([] { return at::ones({3}).mul(2); })));
}

TEST(Node, NamesOfOperatorsAreInTheOrderOfRecording) {
  const auto tail = tail_of([] {
    const auto other = at::empty({3}).uniform_();
    return at::empty({3}).fill_(1).add_(other);
  });
  EXPECT_EQ(operator_names(tail), (std::vector<std::string>{"aten::uniform_", "aten::fill_.Scalar",
                                                            "aten::add_.Tensor"}));
  EXPECT_TRUE(operator_names(nullptr).empty());
}

TEST(Node, AFullNameHasItsOverload) {
  EXPECT_EQ(full_name(operator_named("aten::normal_")), "aten::normal_");
  EXPECT_EQ(full_name(operator_named("aten::add", "Tensor")), "aten::add.Tensor");
}

TEST(Node, FilesThatAHistoryReadsAreNamedAndSoIsHeldMemory) {
  const auto b = make_read_tensor(std::make_shared<Named>("b"), 8, {4}, at::kFloat);
  const auto a = make_read_tensor(std::make_shared<Named>("a"), 16, {2}, at::kFloat);
  const auto again = make_read_tensor(std::make_shared<Named>("b"), 0, {2}, at::kFloat);
  const auto held = make_read_tensor(std::make_shared<Named>("memory", true), 0, {2}, at::kFloat);
  const auto tail = tail_of([&] { return at::cat({b, a.mul(2), again, held, a}); });
  EXPECT_EQ(source_names(tail), (std::set<std::string>{"a", "b", "memory"}));
  EXPECT_EQ(file_ranges(tail), (std::set<FileRange>{{"a", 16, 24}, {"b", 0, 8}, {"b", 8, 24}}));
  EXPECT_TRUE(source_names(nullptr).empty());
  EXPECT_TRUE(file_ranges(nullptr).empty());
}

/// `node`, which counts in `destroyed` when it is.
NodePtr counted(NodePtr node, std::atomic<int>& destroyed) {
  static char byte = 0;
  node->operands.push_back({});
  node->operands.back().captured =
      at::from_blob(&byte, {1}, [&destroyed](void*) { ++destroyed; }, at::kByte);
  return node;
}

TEST(Node, AHistoryReleasesWhatOnlyItRefersTo) {
  std::atomic<int> destroyed{0};
  const auto make = [&](const std::vector<NodePtr>& before) {
    return counted(make_node(before), destroyed);
  };
  const auto shared = make({make({})});
  auto left = make({make({shared}), shared});
  auto tail = make({left, make({left}), make({nullptr})});
  left = nullptr;
  EXPECT_EQ(destroyed, 0);
  tail = nullptr;
  EXPECT_EQ(destroyed, 5);
  EXPECT_EQ(shared.use_count(), 1U);
  EXPECT_EQ(closure({shared.get()}).size(), 2U);
}

TEST(Node, WhatADestructorReleasesInTurnIsReleasedToo) {
  // A captured tensor whose memory, when it is freed, releases another history.
  std::atomic<int> destroyed{0};
  auto* inner = new NodePtr(make_chain(1000, counted(make_node({}), destroyed)));  // NOLINT
  auto outer = make_node({});
  outer->operands.push_back({});
  outer->operands.back().captured = at::from_blob(
      inner, {1}, [](void* memory) { delete static_cast<NodePtr*>(memory); }, at::kByte);  // NOLINT
  outer = make_chain(1000, outer);
  EXPECT_EQ(destroyed, 0);
  outer = nullptr;
  EXPECT_EQ(destroyed, 1);
}

TEST(NodeThreads, HistoriesThatShareTheirBeginningAreReleasedByWhoeverIsLast) {
  for (int round = 0; round < 200; ++round) {
    std::atomic<int> destroyed{0};
    auto shared = make_chain(50, counted(make_node({}), destroyed));
    std::vector<NodePtr> tails;
    for (int t = 0; t < kThreads; ++t) {
      tails.push_back(make_chain(t, shared));
    }
    shared = nullptr;
    std::atomic<int> ready{0};
    std::vector<std::thread> threads;
    for (auto& tail : tails) {
      threads.emplace_back([&] {
        ++ready;
        while (ready < kThreads) {
          std::this_thread::yield();
        }
        tail = nullptr;
      });
    }
    for (auto& thread : threads) {
      thread.join();
    }
    ASSERT_EQ(destroyed, 1) << round;
  }
}

}  // namespace
}  // namespace dormant::record
