// Which histories become which programs, and which become none (lowering.cpp). program_test.cpp
// compares the elements of programs.
#include <ATen/ATen.h>

#include <cstdint>
#include <memory>
#include <vector>

#include "record/decoder_example.h"
#include "record/source_node.h"
#include "tile/eager_comparison.h"
#include "tile/program.h"
#include "tile/walk.h"

namespace dormant::tile {
namespace {

using at::Tensor;
using S = StepKind;
using Kinds = std::vector<StepKind>;

Kinds kinds_of(const Program& program) {
  Kinds kinds;
  for (const auto& step : program.steps()) {
    kinds.push_back(step.kind);
  }
  return kinds;
}

Tensor drawn(int64_t n = 100) { return at::empty({n}).uniform_(-1, 1); }
Tensor matrix() { return at::empty({30, 20}).uniform_(-1, 1); }

const Tensor& real_elements() {
  static const auto elements = at::tensor({1.0, 2.0, 3.0}, at::kDouble);
  return elements;
}

struct Lowered {
  const char* what;
  Build build;
  Kinds kinds;
};

/// Whatever becomes of its history, a tensor has the bits of eager.
void expect_eager(const Tensor& lazy, const Build& build) {
  ASSERT_TRUE(record::is_lazy(lazy));
  dormant::materialize(lazy);
  EXPECT_TRUE(same_bits(lazy, eagerly(build)));
}

const std::vector<Lowered>& lowered() {
  static const std::vector<Lowered> all = {
      {"what is filled", [] { return at::full({5}, 2.5); }, {S::in_place}},
      {"an overwrite of everything forgets", [] { return drawn().mul_(2).zero_(); }, {S::in_place}},
      {"a write to no element is no step",
       [] {
         auto t = drawn();
         t.narrow(0, 5, 0).zero_();
         return t;
       },
       {S::uniform}},
      {"a number is written as it is",
       [] { return at::empty({9}).copy_(at::scalar_tensor(1.5, at::kDouble)); },
       {S::in_place}},
      {"real elements are a table",
       [] { return at::empty({3}).copy_(real_elements()); },
       {S::copy}},
      {"a copy and what is done to it",
       [] { return drawn().clone().neg_(); },
       {S::copy, S::in_place}},
      {"arithmetic of two tensors", [] { return drawn().mul(drawn()); }, {S::compute}},
      {"arithmetic in place with a lazy tensor",
       [] { return drawn().add_(at::empty({100}).uniform_()); },
       {S::uniform, S::in_place}},
      {"a comparison", [] { return drawn().gt(0.25); }, {S::compute}},
      {"a truncated normal's erfinv", [] { return drawn().erfinv_(); }, {S::uniform, S::in_place}},
      {"few normal numbers are a table", [] { return at::empty({15}).normal_(); }, {S::copy}},
      {"normal numbers in rows of a matrix",
       [] {
         auto t = at::zeros({4, 16});
         t.select(0, 1).normal_();
         return t;
       },
       {S::in_place, S::normal}},
      {"few numbers of another distribution are a table",
       [] { return at::empty({4096}).log_normal_(); },
       {S::copy}},
      {"two draws for each element", [] { return at::empty({5000}).exponential_(); }, {S::draw}},
      {"integers that are drawn", [] { return at::empty({5000}, at::kLong).random_(); }, {S::draw}},
      {"parts that are joined are copied one by one, empty ones not",
       [] { return at::cat({drawn(3), at::empty({0}), drawn(4), at::ones({2})}); },
       {S::copy, S::copy, S::copy}},
      {"what is padded is filled first",
       [] { return at::constant_pad_nd(drawn(4), {1, 2}, 3); },
       {S::copy, S::copy}},
      {"nothing that is padded",
       [] { return at::constant_pad_nd(at::empty({0}), {1, 2}, 3); },
       {S::copy}},
      {"a view of another dtype that nobody writes through",
       [] { return drawn().view(at::kInt).view(at::kFloat); },
       {S::uniform}},
      {"a copy of a tensor without dimensions",
       [] { return at::zeros({4}).copy_(at::full({}, 3.5)); },
       {S::copy}},
  };
  return all;
}

TEST(Lowering, AHistoryIsAStepForEachWriteThatIsLeft) {
  real_elements();
  for (const auto& c : lowered()) {
    SCOPED_TRACE(c.what);
    const auto lazy = lazily(c.build);
    const auto program = program_of(lazy);
    ASSERT_TRUE(program);
    EXPECT_EQ(kinds_of(*program), c.kinds);
    EXPECT_EQ(program->dtype(), lazy.scalar_type());
    expect_eager(lazy, c.build);
  }
}

struct NotLowered {
  const char* what;
  Build build;
};

const std::vector<NotLowered>& not_lowered() {
  static const std::vector<NotLowered> all = {
      {"one of two results", [] { return std::get<0>(at::sort(drawn())); }},
      {"bits that are written as another dtype",
       [] {
         auto t = drawn();
         t.view(at::kInt).add_(1);
         return t;
       }},
      {"bits that are read as another dtype", [] { return drawn().view(at::kInt).clone(); }},
      {"a copy within a storage",
       [] {
         auto t = drawn();
         t.narrow(0, 0, 50).copy_(t.narrow(0, 50, 50));
         return t;
       }},
      {"arithmetic within a storage",
       [] {
         auto t = drawn();
         t.narrow(0, 0, 50).mul_(t.narrow(0, 50, 50));
         return t;
       }},
      {"a conjugated copy", [] { return at::complex(drawn(), drawn()).conj().clone(); }},
      {"mathematics that vectors and single elements do differently", [] { return drawn().sin(); }},
      {"erfinv of another tensor", [] { return drawn().erfinv(); }},
      {"a comparison in place", [] { return drawn().gt_(0.25); }},
      {"an out of arithmetic",
       [] {
         auto out = at::empty({100});
         at::mul_out(out, drawn(), drawn());
         return out;
       }},
      {"a sum over elements", [] { return drawn().cumsum(0); }},
      {"many numbers of another distribution", [] { return at::empty({4097}).log_normal_(); }},
      {"many integers in a range", [] { return at::empty({4097}, at::kLong).random_(0, 10); }},
      {"normal numbers that lie apart",
       [] {
         auto t = at::zeros({100, 20});
         t.narrow(1, 0, 10).normal_();
         return t;
       }},
      {"probabilities that are elements",
       [] { return at::empty({100}).bernoulli_(at::empty({100}).uniform_()); }},
      {"padding that cuts", [] { return at::constant_pad_nd(drawn(), {1, -2}, 3); }},
      {"a lazy number as an operand", [] { return drawn().mul(at::full({}, 3.5)); }},
      {"a copy of what is made so", [] { return drawn().sin().clone(); }},
      {"a part of a join that is made so", [] { return at::cat({drawn(), drawn().sin()}); }},
  };
  return all;
}

TEST(Lowering, WhatATileCannotMakeHasNoProgramAndIsReplayed) {
  for (const auto& c : not_lowered()) {
    SCOPED_TRACE(c.what);
    const auto lazy = lazily(c.build);
    ASSERT_TRUE(record::is_lazy(lazy));
    EXPECT_FALSE(program_of(lazy));
    expect_eager(lazy, c.build);
  }
}

TEST(Lowering, AStorageThatNobodyWroteToHasAProgramWithoutSteps) {
  const auto program = program_of(lazily([] { return at::empty({6}); }));
  ASSERT_TRUE(program);
  EXPECT_TRUE(program->steps().empty());
  EXPECT_EQ(program->numel() * static_cast<int64_t>(program->itemsize()), 24);
}

TEST(Lowering, WhatReadsMemoryThatNobodyInitializedIsReplayed) {
  EXPECT_FALSE(program_of(lazily([] { return at::empty({6}).clone(); })));
  EXPECT_FALSE(program_of(lazily([] { return at::empty({6}).mul(drawn(6)); })));
}

TEST(Lowering, BytesThatAreNoWholeElementsHaveNoProgram) {
  const auto lazy = lazily([] {
    const auto bytes = at::zeros({7}, at::kByte);
    return bytes.narrow(0, 0, 4).view(at::kFloat).fill_(1);
  });
  // The bytes are written first, then the elements: no dtype is that of all writes.
  EXPECT_FALSE(program_of(lazy));
  const auto only_elements =
      lazily([] { return at::empty({7}, at::kByte).narrow(0, 0, 4).view(at::kFloat).fill_(1); });
  EXPECT_FALSE(program_of(only_elements));
}

TEST(Lowering, StepsSayWhichElementsAreWritten) {
  const auto program = program_of(lazily([] {
    auto t = matrix();
    t.select(0, 3).zero_();
    t.narrow(1, 5, 2).fill_(7);
    return t;
  }));
  ASSERT_TRUE(program);
  const auto& steps = program->steps();
  ASSERT_EQ(steps.size(), 3U);
  EXPECT_EQ(steps[0].region.numel(), 600);
  EXPECT_EQ(steps[1].region.begin(), 60);
  EXPECT_EQ(steps[1].region.end(), 80);
  EXPECT_TRUE(steps[1].region.dense());
  EXPECT_EQ(steps[2].region.begin(), 5);
  EXPECT_EQ(steps[2].region.end(), 29 * 20 + 7);
  EXPECT_EQ(steps[2].region.numel(), 60);
}

TEST(Lowering, DistributionsKeepTheirParameters) {
  const auto last = [](const Build& build) { return program_of(lazily(build))->steps().back(); };
  const auto uniform = last([] { return at::empty({20}).uniform_(-3, 5); });
  EXPECT_EQ(uniform.a, -3);
  EXPECT_EQ(uniform.b, 5);
  const auto normal = last([] { return at::empty({20}).normal_(0.5, 2); });
  EXPECT_EQ(normal.a, 0.5);
  EXPECT_EQ(normal.b, 2);
  EXPECT_EQ(last([] { return at::empty({20}).bernoulli_(0.3); }).a, 0.3);
  EXPECT_EQ(last([] { return at::empty({20}).exponential_(); }).draws, 2U);
  EXPECT_EQ(last([] { return at::empty({20}, at::kLong).random_(); }).draws, 2U);
  EXPECT_EQ(last([] { return at::empty({20}, at::kInt).random_(); }).draws, 1U);
  EXPECT_EQ(last([] { return at::empty({20}).random_(); }).draws, 1U);
}

TEST(Lowering, InputsAreTheOperandsThatHaveElements) {
  const auto program =
      program_of(lazily([] { return at::where(drawn().gt(0), drawn(), drawn().neg()); }));
  ASSERT_TRUE(program);
  const auto& step = program->steps().back();
  ASSERT_EQ(step.inputs.size(), 3U);
  for (size_t i = 0; i < 3; ++i) {
    EXPECT_EQ(step.inputs[i].operand, i);
  }
  const auto scaled = program_of(lazily([] { return drawn().mul(2); }));
  ASSERT_TRUE(scaled);
  EXPECT_EQ(scaled->steps().back().inputs.size(), 1U);
}

// Bounds: what is beyond them is replayed, to the same bits.

TEST(Lowering, ChainsOfCopiesHaveAProgramUpToABound) {
  const auto chain = [](int copies) {
    return [copies] {
      auto t = drawn();
      for (int i = 0; i < copies; ++i) {
        t = t.clone();
      }
      return t;
    };
  };
  EXPECT_TRUE(program_of(lazily(chain(32))));
  EXPECT_FALSE(program_of(lazily(chain(33))));
  for (const int copies : {32, 33}) {
    expect_eager(lazily(chain(copies)), chain(copies));
  }
}

TEST(Lowering, CopiesInAnotherOrderCountMore) {
  // Each reads more elements than are wanted.
  const auto chain = [](int copies) {
    return [copies] {
      auto t = matrix();
      for (int i = 0; i < copies; ++i) {
        t = t.t().contiguous();
      }
      return t;
    };
  };
  EXPECT_TRUE(program_of(lazily(chain(4))));
  EXPECT_FALSE(program_of(lazily(chain(5))));
  for (const int copies : {4, 5}) {
    expect_eager(lazily(chain(copies)), chain(copies));
  }
}

TEST(Lowering, AnElementHasABoundedNumberOfSourcesButPartsOfAJoinAreOneOrTheOther) {
  const auto sum = [](int terms) {
    return [terms] {
      auto t = drawn();
      for (int i = 0; i < terms; ++i) {
        t.add_(drawn());
      }
      return t;
    };
  };
  EXPECT_TRUE(program_of(lazily(sum(63))));
  EXPECT_FALSE(program_of(lazily(sum(64))));
  expect_eager(lazily(sum(64)), sum(64));
  const auto join = [] {
    std::vector<Tensor> parts;
    for (int i = 0; i < 200; ++i) {
      parts.push_back(drawn(3).mul(drawn(3)));
    }
    return at::cat(parts).add(1);
  };
  const auto joined = lazily(join);
  EXPECT_TRUE(program_of(joined));
  expect_eager(joined, join);
}

// Bytes that exist elsewhere.

TEST(Lowering, ReadBytesAreAStepOfTheirOwn) {
  const auto values = at::arange(6, at::kFloat);
  const auto read = program_of(record::read_of(values));
  ASSERT_TRUE(read);
  EXPECT_EQ(kinds_of(*read), Kinds{S::read});
  EXPECT_EQ(read->numel(), 6);
  Tensor cast;
  {
    const LazyInit guard;
    cast = record::read_of(values).to(at::kHalf);
  }
  const auto program = program_of(cast);
  ASSERT_TRUE(program);
  EXPECT_EQ(kinds_of(*program), Kinds{S::copy});
  EXPECT_EQ(kinds_of(*program->steps()[0].inputs[0].program), Kinds{S::read});
}

TEST(Lowering, ADecodedTensorReadsItsPartsInTheirLogicalOrder) {
  const auto decoder = std::make_shared<record::RowGroups>(6, 24);
  const auto parts = decoder->example();
  std::vector<Tensor> lazy;
  for (const auto& part : parts) {
    lazy.push_back(record::read_of(part));
  }
  lazy[2] = record::read_of(at::cat({parts[2], parts[2]}, 1)).narrow(1, 24, 24);
  const auto decoded = record::decode(lazy, decoder);
  const auto program = program_of(decoded);
  ASSERT_TRUE(program);
  EXPECT_EQ(kinds_of(*program), Kinds{S::decode});
  const auto& inputs = program->steps()[0].inputs;
  ASSERT_EQ(inputs.size(), 3U);
  for (size_t i = 0; i < 3; ++i) {
    EXPECT_EQ(inputs[i].operand, i + 1);
  }
  dormant::materialize(decoded);
  EXPECT_TRUE(same_bits(decoded, record::RowGroups::expected(parts)));
}

// The elements of a tensor.

std::shared_ptr<const Program> program_of_elements(const Tensor& lazy) {
  const auto history = record::history_of(lazy);
  return Program::of(record::Geometry::of(lazy), *history->buffer, history->tail);
}

TEST(Lowering, TheElementsOfAWholeTensorAreItsHistory) {
  const auto lazy = lazily([] { return matrix().mul_(2); });
  EXPECT_EQ(kinds_of(*program_of_elements(lazy)), (Kinds{S::uniform, S::in_place}));
  EXPECT_EQ(kinds_of(*program_of_elements(lazy.view({600}))), (Kinds{S::uniform, S::in_place}));
}

TEST(Lowering, TheElementsOfAViewAreACopyOfItsHistory) {
  const auto lazy = lazily([] { return matrix().mul_(2); });
  for (const auto& view : {lazy.narrow(0, 3, 5), lazy.narrow(1, 3, 5), lazy.select(1, 2),
                           lazy.narrow(0, 2, 1).expand({7, 20})}) {
    const auto program = program_of_elements(view);
    ASSERT_TRUE(program);
    EXPECT_EQ(kinds_of(*program), Kinds{S::copy});
    EXPECT_EQ(program->numel(), view.numel());
    EXPECT_EQ(kinds_of(*program->steps()[0].inputs[0].program), (Kinds{S::uniform, S::in_place}));
  }
}

TEST(Lowering, ElementsOfAnotherDtypeOrOfConjugatedBitsHaveNone) {
  const auto lazy = lazily([] { return matrix(); });
  EXPECT_FALSE(program_of_elements(lazy.view(at::kInt)));
  const auto complex = lazily([] { return at::zeros({4}, at::kComplexFloat); });
  EXPECT_TRUE(program_of_elements(complex));
  EXPECT_FALSE(program_of_elements(complex.conj()));
  EXPECT_FALSE(program_of_elements(at::imag(complex.conj())));
}

TEST(Lowering, NoElementsAndUnwrittenOnesHaveNoSteps) {
  const auto lazy = lazily([] { return matrix(); });
  const auto none = program_of_elements(lazy.narrow(0, 3, 0));
  ASSERT_TRUE(none);
  EXPECT_TRUE(none->steps().empty());
  EXPECT_EQ(none->numel(), 0);
  const auto unwritten = program_of_elements(lazily([] { return at::empty({4, 3}); }).t());
  ASSERT_TRUE(unwritten);
  EXPECT_TRUE(unwritten->steps().empty());
  EXPECT_EQ(unwritten->numel(), 12);
  EXPECT_EQ(unwritten->dtype(), at::kFloat);
}

TEST(Lowering, ElementsThatTurnTheMatrixHaveAProgramOfRectangles) {
  const auto lazy = lazily([] { return at::empty({300, 517}).normal_(); });
  const auto program = program_of_elements(lazy.t());
  ASSERT_TRUE(program);
  EXPECT_TRUE(walk_of(*program).transposed);
  // What goes through random numbers again and again has none.
  const auto deep = lazily([] { return at::empty({100, 100, 30}).normal_(); });
  EXPECT_FALSE(program_of_elements(deep.permute({2, 1, 0})));
}

}  // namespace
}  // namespace dormant::tile
