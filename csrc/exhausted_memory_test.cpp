// Every allocation of C++ fails once: whatever it stops throws, changes nothing that can be seen,
// and succeeds when it is tried again.
//
// Recipes are not among it: the destructor of nlohmann::json allocates, and ends the process where
// it cannot.
#include <ATen/CPUGeneratorImpl.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/full.h>
#include <ATen/ops/linalg_qr.h>
#include <ATen/ops/randn_like.h>
#include <ATen/ops/randperm.h>
#include <ATen/ops/zeros.h>
#include <dormant/dormant.h>
#include <dormant/save.h>
#include <fcntl.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cctype>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <functional>
#include <iterator>
#include <memory>
#include <new>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "checkpoint/file.h"
#include "checkpoint/scratch_folder.h"
#include "exhausted_memory.h"
#include "quantize/four_bit.h"
#include "random/position.h"
#include "record/lazy_storage.h"
#include "record/node.h"
#include "record/replay.h"
#include "record/snapshot.h"
#include "record/source_node.h"
#include "record/turns.h"
#include "tile/eager_comparison.h"
#include "tile/engine.h"
#include "tile/sink.h"

namespace {

std::atomic<int64_t> blocks{0};

}  // namespace

// NOLINTBEGIN: the program's own operators new and delete, for all libraries in it; all forms,
// since a sanitizer has its own of each.
void* operator new(size_t size, const std::nothrow_t&) noexcept {
  void* memory = dormant::exhausted::is_due() ? nullptr : std::malloc(size == 0 ? 1 : size);
  blocks += memory != nullptr;
  return memory;
}
void* operator new(size_t size) {
  void* memory = operator new(size, std::nothrow);
  if (memory == nullptr) {
    throw std::bad_alloc();
  }
  return memory;
}
void* operator new[](size_t size) { return operator new(size); }
void* operator new[](size_t size, const std::nothrow_t&) noexcept {
  return operator new(size, std::nothrow);
}
void operator delete(void* memory) noexcept {
  blocks -= memory != nullptr;
  std::free(memory);
}
void operator delete(void* memory, size_t) noexcept { operator delete(memory); }
void operator delete(void* memory, const std::nothrow_t&) noexcept { operator delete(memory); }
void operator delete[](void* memory) noexcept { operator delete(memory); }
void operator delete[](void* memory, size_t) noexcept { operator delete(memory); }
void operator delete[](void* memory, const std::nothrow_t&) noexcept { operator delete(memory); }
// NOLINTEND

namespace dormant {
namespace {

using at::Tensor;
using exhausted::ExhaustedMemory;
using exhausted::failed;
using exhausted::FailingNew;
using exhausted::sweep;
using record::History;
using tile::same_bits;

at::CPUGeneratorImpl& generator() {
  return *at::detail::getDefaultCPUGenerator().get<at::CPUGeneratorImpl>();
}

random::Position position() {
  const std::lock_guard<std::mutex> lock(generator().mutex_);
  return random::Position::of(generator());
}

template <typename Function>
auto recorded(Function&& function) {
  const LazyInit guard;
  return function();
}

Tensor drawn(at::IntArrayRef sizes) {
  return recorded([&] { return at::empty(sizes).normal_(0, 0.5); });
}

void materialize(const Tensor& tensor) {
  tile::materialize({tensor.storage()}, {});
  record::settle(tensor);
}

struct Operation {
  const char* name;
  std::function<Tensor(const Tensor&)> run;
};

const std::vector<Operation>& operations() {
  static const std::vector<Operation> all = {
      {"normal_", [](Tensor t) { return t.normal_(1, 2); }},
      {"uniform_", [](Tensor t) { return t.uniform_(-1, 1); }},
      {"bernoulli_", [](Tensor t) { return t.bernoulli_(0.25); }},
      {"mul_", [](Tensor t) { return t.mul_(2); }},
      {"add_ of itself", [](Tensor t) { return t.add_(t.t().clone().t(), 0.5); }},
      {"zero_ of a row", [](Tensor t) { return t.select(0, 1).zero_(); }},
      {"copy_ of a real tensor", [](Tensor t) { return t.copy_(at::full({24, 16}, 3)); }},
      {"copy_ of a real row", [](Tensor t) { return t.copy_(at::full({16}, 3)); }},
      {"copy of a lazy tensor", [](const Tensor& t) { return at::empty_like(t).copy_(t); }},
      {"resize_", [](Tensor t) { return t.resize_({40, 16}).narrow(0, 0, 24); }},
      {"clone of a transposed tensor", [](const Tensor& t) { return t.t().contiguous(); }},
      {"to bfloat16", [](const Tensor& t) { return t.to(at::kBFloat16); }},
      {"sum over rows", [](const Tensor& t) { return t.sum(0); }},
      {"mul", [](const Tensor& t) { return t.mul(t); }},
      {"cat", [](const Tensor& t) { return at::cat({t, t.neg()}, 1); }},
      {"chunks", [](const Tensor& t) { return t.chunk(3, 1)[1].clone(); }},
      {"empty", [](const Tensor&) { return at::empty({3, 4}).fill_(2); }},
      {"zeros", [](const Tensor&) { return at::zeros({3, 4}); }},
      {"arange", [](const Tensor&) { return at::arange(20).add_(1); }},
      {"randperm", [](const Tensor&) { return at::randperm(300); }},
      {"randn_like", [](const Tensor& t) { return at::randn_like(t); }},
  };
  return all;
}

class ExhaustedRecording : public ExhaustedMemory, public ::testing::WithParamInterface<size_t> {};

TEST_P(ExhaustedRecording, ChangesNothingAndSucceedsWhenTriedAgain) {
  const auto& operation = operations()[GetParam()];
  generator().set_current_seed(7);
  const auto eager_input = at::empty({24, 16}).normal_(0, 0.5);
  const auto input_bits = eager_input.clone();
  const auto before = position();
  const auto eager = operation.run(eager_input).clone();
  const auto after = position();

  const auto make_input = [] {
    generator().set_current_seed(7);
    return drawn({24, 16});
  };
  const auto live = record::live_storages();
  {
    auto input = make_input();
    auto history = record::history_of(input);
    auto version = input._version();
    Tensor result;
    const auto run = [&] {
      const LazyInit guard;
      result = operation.run(input);
    };
    const auto verify = [&] {
      materialize(result);
      EXPECT_TRUE(same_bits(result.clone(), eager));
      EXPECT_TRUE(position() == after);
    };
    const auto count = sweep(run, [&](bool stopped) {
      const bool written = record::history_of(input) != history;
      if (stopped) {
        EXPECT_TRUE(record::is_lazy(input));
        EXPECT_EQ(written, input._version() != version);
        // An operation of several operators may stop between two: the next one starts afresh.
        if (!written && position() == before) {
          run();
        } else {
          input = make_input();
          run();
        }
      }
      verify();
      result.reset();
      input = make_input();
      history = record::history_of(input);
      version = input._version();
    });
    EXPECT_GT(count, 3);
    verify();
  }
  EXPECT_EQ(record::live_storages(), live);
}

INSTANTIATE_TEST_SUITE_P(Operations, ExhaustedRecording,
                         ::testing::Range(size_t{0}, operations().size()), [](const auto& info) {
                           std::string name = operations()[info.param].name;
                           for (auto& character : name) {
                             character = std::isalnum(character) ? character : '_';
                           }
                           return name;
                         });

/// One in-place operator draws or does not: it must not stop in between.
TEST_F(ExhaustedMemory, ARandomOperatorThatStopsLeavesTheGeneratorWhereItWas) {
  auto tensor = drawn({24, 16});
  generator().set_current_seed(3);
  const auto before = position();
  auto history = record::history_of(tensor);
  const auto count = sweep([&] { recorded([&] { return tensor.normal_(1, 2); }); },
                           [&](bool stopped) {
                             if (stopped) {
                               EXPECT_TRUE(position() == before);
                               EXPECT_EQ(record::history_of(tensor), history);
                             }
                             generator().set_current_seed(3);
                             history = record::history_of(tensor);
                           });
  EXPECT_GT(count, 3);
}

/// A history of each kind that the engine knows.
struct Made {
  const char* name;
  std::function<Tensor()> build;
};

const std::vector<Made>& histories() {
  static const std::vector<Made> all = {
      {"tiles", [] { return at::empty({70, 33}).normal_(0, 0.02).mul_(3); }},
      {"cast", [] { return at::empty({70, 33}).uniform_(-1, 1).to(at::kBFloat16); }},
      {"turned", [] { return at::empty({70, 33}).normal_(0, 0.02).t().contiguous(); }},
      {"joined", [] { return at::cat({at::empty({9, 5}).normal_(), at::zeros({4, 5})}); }},
      {"replay", [] { return std::get<0>(at::linalg_qr(at::empty({12, 12}).normal_())); }},
      {"captured",
       [index = at::arange(9)] { return at::empty({70, 33}).normal_().index_select(0, index); }},
      {"nothing written", [] { return at::empty({0}); }},
  };
  return all;
}

class ExhaustedMaking : public ExhaustedMemory, public ::testing::WithParamInterface<size_t> {
 protected:
  static Tensor eager() { return tile::eagerly(histories()[GetParam()].build); }
  static Tensor lazy() { return tile::lazily(histories()[GetParam()].build); }
};

TEST_P(ExhaustedMaking, MaterializeLeavesTheTensorLazyOrDone) {
  const auto expected = eager();
  const auto live = record::live_storages();
  auto tensor = lazy();
  sweep([&] { tile::materialize({tensor.storage()}, {}); },
        [&](bool) {
          record::settle(tensor);
          materialize(tensor);
          EXPECT_TRUE(same_bits(tensor, expected));
          tensor = lazy();
        });
  record::settle(tensor);
  EXPECT_TRUE(same_bits(tensor, expected));
  EXPECT_EQ(record::live_storages(), live);
}

TEST_P(ExhaustedMaking, ReplayLeavesTheTensorLazyOrDone) {
  const auto expected = eager();
  auto tensor = lazy();
  sweep([&] { record::materialize({tensor.storage()}, {}); },
        [&](bool) {
          record::settle(tensor);
          record::materialize({tensor.storage()}, {});
          record::settle(tensor);
          EXPECT_TRUE(same_bits(tensor, expected));
          tensor = lazy();
        });
}

TEST_P(ExhaustedMaking, WritingToAFileLeavesTheTensorLazy) {
  const auto expected = eager().contiguous();
  const checkpoint::ScratchFolder folder;
  const auto path = folder.write("file", "");
  const int descriptor = ::open(path.c_str(), O_RDWR);
  ASSERT_GE(descriptor, 0);
  const auto tensor = lazy();
  const auto history = record::history_of(tensor);
  const std::vector<tile::Output> outputs{{tensor, 0}};
  const auto matches = [&] {
    std::ifstream in(path, std::ios::binary);
    const std::string bytes{std::istreambuf_iterator<char>(in), {}};
    return bytes ==
           std::string_view(static_cast<const char*>(expected.const_data_ptr()), expected.nbytes());
  };
  sweep([&] { tile::write(outputs, tile::FileSink(descriptor, path)); },
        [&](bool) {
          EXPECT_EQ(record::history_of(tensor), history);
          tile::write(outputs, tile::FileSink(descriptor, path));
          EXPECT_TRUE(matches());
        });
  EXPECT_TRUE(matches());
  ::close(descriptor);
}

INSTANTIATE_TEST_SUITE_P(Histories, ExhaustedMaking,
                         ::testing::Range(size_t{0}, histories().size()), [](const auto& info) {
                           std::string name = histories()[info.param].name;
                           std::replace(name.begin(), name.end(), ' ', '_');
                           return name;
                         });

TEST_F(ExhaustedMemory, ASaveReplacesTheEarlierFileOrLeavesIt) {
  const checkpoint::ScratchFolder folder;
  const auto path = folder.path("m.safetensors");
  const auto contents = [&] {
    std::string all;
    for (const auto& found : std::filesystem::recursive_directory_iterator(folder.path(""))) {
      std::ifstream in(found.path(), std::ios::binary);
      all += found.path().filename().string() +
             std::string(std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>());
    }
    return all;
  };
  const NamedTensors earlier = {{"a", at::full({3}, 1.0)}};
  const NamedTensors later = {{"a", drawn({6, 5})}, {"b", at::full({2}, 2.0)}};
  save(later, path);
  const auto after = contents();
  save(earlier, path);
  const auto before = contents();
  const auto count = sweep([&] { save(later, path); },
                           [&](bool stopped) {
                             EXPECT_TRUE(record::is_lazy(later[0].second));
                             if (stopped) {
                               EXPECT_EQ(contents(), before);
                             } else {
                               EXPECT_EQ(contents(), after);
                               save(earlier, path);
                             }
                           });
  EXPECT_GT(count, 50);
}

TEST_F(ExhaustedMemory, AQuantizedTensorIsMadeWhenTriedAgain) {
  std::vector<float> codes;
  for (int i = 0; i < 16; ++i) {
    codes.push_back(static_cast<float>(i) / 7.5F - 1);
  }
  const auto quantizer = std::make_shared<quantization::FourBit>("even", 64, codes);
  const auto build = [] { return at::empty({8, 64}).normal_(); };
  const auto expected = record::quantize(tile::eagerly(build), quantizer);
  const auto source = tile::lazily(build);
  const auto history = record::history_of(source);
  std::vector<Tensor> outputs;
  const auto record = [&] { outputs = record::quantize(source, quantizer); };
  sweep(record, [&](bool) { EXPECT_EQ(record::history_of(source), history); });
  const auto make = [&] { tile::materialize({outputs[0].storage(), outputs[1].storage()}, {}); };
  const auto verify = [&] {
    for (size_t i = 0; i < outputs.size(); ++i) {
      record::settle(outputs[i]);
      EXPECT_TRUE(same_bits(outputs[i], expected[i]));
    }
  };
  const auto count = sweep(make, [&](bool) {
    make();
    verify();
    record();
  });
  EXPECT_GT(count, 3);
  verify();
}

TEST_F(ExhaustedMemory, ASnapshotHoldsAllOrNothing) {
  const auto lazy = drawn({6, 5});
  const auto history = record::history_of(lazy);
  const auto real = at::full({100}, 4.0);
  const auto* memory = real.const_data_ptr();
  const std::vector<c10::Storage> storages{lazy.storage(), real.storage()};
  const auto count = sweep([&] { const record::Snapshot snapshot(storages); },
                           [&](bool) {
                             EXPECT_EQ(record::history_of(lazy), history);
                             EXPECT_FALSE(record::is_lazy(real));
                             EXPECT_EQ(real.const_data_ptr(), memory);
                           });
  EXPECT_GT(count, 5);
}

TEST_F(ExhaustedMemory, ATurnIsTakenWhollyOrNotAtAll) {
  const char things[3] = {};
  const auto another_takes_it = [&] {
    std::thread([&] {
      // Where it had to wait it would be called.
      const record::Turn turn({&things[0], &things[1], &things[2]}, [] { ADD_FAILURE(); });
    }).join();
  };
  const auto count = sweep([&] { const record::Turn turn({&things[0], &things[1], &things[2]}); },
                           [&](bool) { another_takes_it(); });
  EXPECT_GT(count, 3);
}

TEST_F(ExhaustedMemory, ASnapshotIsRestoredAllTheSame) {
  const auto real = at::full({100}, 4.0);
  const auto* memory = real.const_data_ptr();
  Tensor copy;
  {
    record::Snapshot snapshot(std::vector<c10::Storage>{real.storage()});
    record::settle(real);
    copy = recorded([&] { return real.clone(); });
    real.add_(1);
    const FailingNew failing(1, /*and_all_after=*/true);
    snapshot.restore();
  }
  record::settle(real);
  EXPECT_EQ(real.const_data_ptr(), memory);
  EXPECT_TRUE(same_bits(real, at::full({100}, 4.0)));
  // There was no memory for what the copy reads, and it says so.
  EXPECT_THROW(materialize(copy), c10::Error);
  EXPECT_TRUE(record::is_lazy(copy));
}

TEST_F(ExhaustedMemory, ASnapshotIsKeptOrStillHeld) {
  const auto lazy = drawn({6, 5});
  const auto make = [] { return at::full({100}, 4.0); };
  auto real = make();
  std::optional<record::Snapshot> snapshot;
  Tensor copy;
  const auto start = [&] {
    real = make();
    snapshot.emplace(std::vector<c10::Storage>{lazy.storage(), real.storage()});
    record::settle(real);
    copy = recorded([&] { return real.mul(2); });
    recorded([&] { return real.add_(1); });
    materialize(real);  // elsewhere, as where something still needs the old bytes
  };
  start();
  const auto verify = [&](double value) {
    record::settle(real);
    EXPECT_TRUE(same_bits(real, at::full({100}, value)));
    materialize(copy);
    EXPECT_TRUE(same_bits(copy, at::full({100}, 8.0)));
  };
  const auto count = sweep([&] { snapshot->keep(); },
                           [&](bool stopped) {
                             if (stopped) {
                               snapshot->restore();
                             }
                             verify(stopped ? 4.0 : 5.0);
                             start();
                           });
  EXPECT_GT(count, 0);
  verify(5.0);
}

size_t entries_of(const char* folder) {
  size_t count = 0;
  for (const auto& entry : std::filesystem::directory_iterator(folder)) {
    static_cast<void>(entry);
    ++count;
  }
  return count;
}

size_t mappings_of(const std::string& path) {
  std::ifstream maps("/proc/self/maps");
  size_t count = 0;
  for (std::string line; std::getline(maps, line);) {
    count += line.find(path) != std::string::npos ? 1 : 0;
  }
  return count;
}

TEST_F(ExhaustedMemory, AFileThatIsNotOpenedLeavesNoDescriptorAndNoMapping) {
  const checkpoint::ScratchFolder folder;
  const auto path = folder.write("file", std::string(8192, 'x'));
  const auto descriptors = entries_of("/proc/self/fd");
  const auto count = sweep(
      [&] {
        const auto file = checkpoint::File::open(path);
        EXPECT_NE(file->map(4096, 4096, record::Guard::if_possible).get(), nullptr);
      },
      [&](bool) {
        EXPECT_EQ(entries_of("/proc/self/fd"), descriptors);
        EXPECT_EQ(mappings_of(path), 0U);
      });
  EXPECT_GT(count, 5);
}

TEST_F(ExhaustedMemory, ALongHistoryIsReleasedWithoutAnyMemory) {
  const auto live = record::live_storages();
  auto tensor = recorded([] {
    auto made = at::empty({4}).normal_();
    for (int i = 0; i < 100'000; ++i) {
      made.add_(1);
    }
    return made;
  });
  {
    const FailingNew failing(1, /*and_all_after=*/true);
    tensor.reset();
  }
  EXPECT_FALSE(failed);
  EXPECT_EQ(record::live_storages(), live);
}

TEST_F(ExhaustedMemory, WhatIsStoppedLosesNoMemory) {
  const auto build = histories()[0].build;
  const auto round = [&] {
    Tensor tensor;
    const auto work = [&] {
      tensor = recorded(build);
      tile::materialize({tensor.storage()}, {});
    };
    sweep(work, [&](bool) { tensor.reset(); });
  };
  round();  // fills what is remembered between calls
  const auto before = blocks.load();
  round();
  EXPECT_EQ(blocks.load(), before);
}

}  // namespace
}  // namespace dormant
