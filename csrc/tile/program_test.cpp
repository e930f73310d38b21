#include "tile/program.h"

#include <ATen/ops/add.h>
#include <ATen/ops/bernoulli.h>
#include <ATen/ops/ceil.h>
#include <ATen/ops/clamp.h>
#include <ATen/ops/clamp_max.h>
#include <ATen/ops/clamp_min.h>
#include <ATen/ops/div.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/floor.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/gt.h>
#include <ATen/ops/le.h>
#include <ATen/ops/mul.h>
#include <ATen/ops/ne.h>
#include <ATen/ops/neg.h>
#include <ATen/ops/reciprocal.h>
#include <ATen/ops/scalar_tensor.h>
#include <ATen/ops/sqrt.h>
#include <ATen/ops/sub.h>

#include <map>
#include <random>
#include <sstream>
#include <string>
#include <vector>

#include "tile/eager_comparison.h"
#include "tile/reader.h"

namespace dormant::tile {
namespace {

using at::Tensor;

// Written once, used under every dtype and size.
struct Operator {
  const char* name;
  StepKind kind;  ///< of the last step
  std::function<Tensor(at::ScalarType dtype, int64_t n)> build;
};

Tensor values(at::ScalarType dtype, int64_t n) { return at::empty({n}, dtype).uniform_(-2, 2); }

const Tensor& real_number() {
  static const Tensor number = at::scalar_tensor(0.37, at::kDouble);
  return number;
}

/// Every kind of step, and every operator that program.cpp lists as the same wherever a tile
/// starts, on numbers that meet their special cases: NaN, infinities, bounds.
const std::vector<Operator>& operators() {
  using S = StepKind;
  using D = at::ScalarType;
  static const std::vector<Operator> all = {
      {"fill_", S::in_place, [](D d, int64_t n) { return at::empty({n}, d).fill_(1.7); }},
      {"fill_(tensor)", S::in_place,
       [](D d, int64_t n) { return at::empty({n}, d).fill_(real_number()); }},
      {"zero_", S::in_place, [](D d, int64_t n) { return values(d, n).zero_(); }},
      {"mul_", S::in_place, [](D d, int64_t n) { return values(d, n).mul_(1.7); }},
      {"mul_(tensor)", S::in_place,
       [](D d, int64_t n) { return values(d, n).mul_(real_number()); }},
      {"add_", S::in_place, [](D d, int64_t n) { return values(d, n).add_(0.3); }},
      {"sub_", S::in_place, [](D d, int64_t n) { return values(d, n).sub_(0.3); }},
      {"div_", S::in_place, [](D d, int64_t n) { return values(d, n).div_(3.3); }},
      {"div_(0)", S::in_place, [](D d, int64_t n) { return values(d, n).div_(0.0); }},
      {"div_(floor)", S::in_place, [](D d, int64_t n) { return values(d, n).div_(0.3, "floor"); }},
      {"div_(trunc)", S::in_place, [](D d, int64_t n) { return values(d, n).div_(0.3, "trunc"); }},
      {"clamp_", S::in_place, [](D d, int64_t n) { return values(d, n).clamp_(-0.5, 0.7); }},
      {"clamp_min_", S::in_place, [](D d, int64_t n) { return values(d, n).clamp_min_(0.1); }},
      {"clamp_max_", S::in_place, [](D d, int64_t n) { return values(d, n).clamp_max_(0.1); }},
      {"erfinv_", S::in_place, [](D d, int64_t n) { return values(d, n).mul_(0.5).erfinv_(); }},
      {"erfinv_, NaN", S::in_place, [](D d, int64_t n) { return values(d, n).erfinv_(); }},
      {"clamp_, NaN", S::in_place,
       [](D d, int64_t n) { return values(d, n).sqrt_().clamp_(0.5, 1); }},
      {"neg_, NaN", S::in_place, [](D d, int64_t n) { return values(d, n).sqrt_().neg_(); }},
      {"sqrt_", S::in_place, [](D d, int64_t n) { return values(d, n).sqrt_(); }},
      {"mul", S::compute, [](D d, int64_t n) { return at::mul(values(d, n), 1.7); }},
      {"mul(a, b)", S::compute, [](D d, int64_t n) { return at::mul(values(d, n), values(d, n)); }},
      {"add", S::compute, [](D d, int64_t n) { return at::add(values(d, n), 0.3); }},
      {"add(a, b)", S::compute, [](D d, int64_t n) { return at::add(values(d, n), values(d, n)); }},
      {"sub(a, b)", S::compute, [](D d, int64_t n) { return at::sub(values(d, n), values(d, n)); }},
      {"div(a, b)", S::compute, [](D d, int64_t n) { return at::div(values(d, n), values(d, n)); }},
      {"div(a, b, floor)", S::compute,
       [](D d, int64_t n) { return at::div(values(d, n), values(d, n), "floor"); }},
      {"clamp", S::compute, [](D d, int64_t n) { return at::clamp(values(d, n), -0.5, 0.7); }},
      {"clamp_min", S::compute,
       [](D d, int64_t n) { return at::clamp_min(values(d, n).sqrt_(), 0.5); }},
      {"clamp_max", S::compute,
       [](D d, int64_t n) { return at::clamp_max(values(d, n).sqrt_(), 0.5); }},
      {"floor", S::compute, [](D d, int64_t n) { return at::floor(values(d, n)); }},
      {"ceil", S::compute, [](D d, int64_t n) { return at::ceil(values(d, n)); }},
      {"reciprocal", S::compute, [](D d, int64_t n) { return at::reciprocal(values(d, n)); }},
      {"reciprocal of zero", S::compute,
       [](D d, int64_t n) { return at::reciprocal(values(d, n).clamp_(-1e-30, 0)); }},
      {"gt", S::compute, [](D d, int64_t n) { return at::gt(values(d, n), 0.1); }},
      {"le(a, b)", S::compute,
       [](D d, int64_t n) { return at::le(values(d, n).sqrt_(), values(d, n)); }},
      {"ne", S::compute, [](D d, int64_t n) { return at::ne(values(d, n).clamp_(0, 1), 0); }},
      {"neg", S::compute, [](D d, int64_t n) { return at::neg(values(d, n)); }},
      {"sqrt", S::compute, [](D d, int64_t n) { return at::sqrt(values(d, n)); }},
      {"uniform_", S::uniform, [](D d, int64_t n) { return values(d, n); }},
      {"normal_", S::normal, [](D d, int64_t n) { return at::empty({n}, d).normal_(0.5, 2); }},
      {"bernoulli_", S::bernoulli,
       [](D d, int64_t n) { return at::empty({n}, d).bernoulli_(0.3); }},
      {"exponential_", S::draw, [](D d, int64_t n) { return at::empty({n}, d).exponential_(1.5); }},
      {"cauchy_", S::draw, [](D d, int64_t n) { return at::empty({n}, d).cauchy_(0.5, 2); }},
      {"geometric_", S::draw, [](D d, int64_t n) { return at::empty({n}, d).geometric_(0.3); }},
      {"random_", S::draw, [](D d, int64_t n) { return at::empty({n}, d).random_(); }},
      {"to(float32)", S::copy,
       [](D d, int64_t n) { return values(d, n).to(at::kFloat, false, true); }},
      {"to(bfloat16)", S::copy,
       [](D d, int64_t n) { return values(d, n).to(at::kBFloat16, false, true); }},
      {"to three times", S::copy,
       [](D d, int64_t n) {
         return values(d, n).to(at::kDouble, false, true).to(at::kHalf, false, true).clone();
       }},
  };
  return all;
}

std::vector<Run> random_runs(std::mt19937& random, int64_t n) {
  std::vector<Run> runs;
  for (auto left = 1 + random() % 4; left > 0; --left) {
    const auto begin = static_cast<int64_t>(random() % n);
    const auto most = std::min<int64_t>(n - begin, 3000);
    runs.push_back({begin, static_cast<int64_t>(random() % (most + 1))});
  }
  return runs;
}

/// The elements of `runs` of `whole`, one after the other.
std::vector<char> part(const Tensor& whole, Runs runs) {
  const auto width = whole.element_size();
  const auto* data = static_cast<const char*>(whole.const_data_ptr());
  std::vector<char> bytes;
  for (const auto& run : runs) {
    bytes.insert(bytes.end(), data + run.begin * width, data + (run.begin + run.count) * width);
  }
  return bytes;
}

/// Equality of bits, but that any NaN of a half type equals any other: ATen rounds NaN to one
/// pattern in vectors and to another in the elements left over, so which of them eager gives
/// depends on the number of threads.
bool same(std::vector<char>& got, std::vector<char> expected, at::ScalarType dtype) {
  if (got == expected || !c10::isReducedFloatingType(dtype)) {
    return got == expected;
  }
  const auto with_one_nan = [dtype](std::vector<char>& bytes) {
    const auto tensor = at::from_blob(bytes.data(), {static_cast<int64_t>(bytes.size() / 2)},
                                      at::TensorOptions().dtype(dtype));
    tensor.masked_fill_(tensor.isnan(), 0.125);
    return tensor.view(at::kShort);
  };
  return with_one_nan(got).equal(with_one_nan(expected));
}

std::string text(Runs runs) {
  std::ostringstream stream;
  for (const auto& run : runs) {
    stream << " [" << run.begin << ", " << run.begin + run.count << ")";
  }
  return stream.str();
}

/// Reads `program` in random runs in random order, and once whole.
void expect_any_part_equals(const Program& program, const Tensor& whole) {
  Reader reader(program);
  std::mt19937 random(3);  // NOLINT: the same runs every time
  for (int i = 0; i < 12; ++i) {
    const auto runs =
        i == 0 ? std::vector<Run>{{0, whole.numel()}} : random_runs(random, whole.numel());
    std::vector<char> got(static_cast<size_t>(total(runs)) * program.itemsize(), '\x5a');
    reader.read(runs, got.data());
    if (!same(got, part(whole, runs), program.dtype())) {
      ADD_FAILURE() << "read " << i << " differs, elements " << text(runs);
      return;
    }
  }
}

/// Names of the operators in a lazy tensor's history.
std::string recorded(const Tensor& lazy) {
  std::string names;
  if (const auto history = record::history_of(lazy); history && history->tail) {
    for (const auto* node : record::closure({history->tail.get()})) {
      names += record::full_name(node->op) + " ";
    }
  }
  return names;
}

class EveryDtype : public ::testing::TestWithParam<at::ScalarType> {};

TEST_P(EveryDtype, AnyPartOfAProgramEqualsThatPartOfEager) {
  const auto dtype = GetParam();
  for (const auto& op : operators()) {
    for (const int64_t n : {1, 15, 16, 17, 1000, 100003}) {
      SCOPED_TRACE(std::string(op.name) + " of " + std::to_string(n));
      const auto build = [&] { return op.build(dtype, n); };
      const auto lazy = lazily(build);
      const auto program = program_of(lazy);
      ASSERT_TRUE(program) << "recorded " << recorded(lazy);
      EXPECT_EQ(program->dtype(), lazy.scalar_type());
      EXPECT_EQ(program->numel(), n);
      // Fewer than 16 normal numbers are a table.
      const auto expected = op.kind == StepKind::normal && n < 16 ? StepKind::copy : op.kind;
      EXPECT_EQ(program->steps().back().kind, expected);
      expect_any_part_equals(*program, eagerly(build));
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Program, EveryDtype,
                         ::testing::Values(at::kFloat, at::kBFloat16, at::kHalf, at::kDouble),
                         [](const auto& info) { return std::string(c10::toString(info.param)); });

TEST(Program, IntegersToo) {
  for (const auto dtype : {at::kLong, at::kInt, at::kByte, at::kBool}) {
    const auto build = [&] { return at::empty({5000}, dtype).random_(); };
    const auto program = program_of(lazily(build));
    ASSERT_TRUE(program) << dtype;
    expect_any_part_equals(*program, eagerly(build));
  }
}

TEST(Program, WritesThroughViewsApplyToTheirElementsOnly) {
  const auto build = [] {
    auto weight = at::empty({90, 41}).normal_(0, 0.02);
    weight.select(0, 3).zero_();
    weight.narrow(0, 10, 7).uniform_(-1, 1);
    weight.narrow(0, 12, 30).normal_(1, 2).mul_(3);
    weight.select(0, 89).narrow(0, 40, 1).fill_(-7);
    weight.select(0, 50).narrow(0, 3, 9).normal_();
    weight.narrow(0, 88, 2).copy_(at::empty({2, 41}).uniform_(5, 6).neg_());
    return weight;
  };
  const auto program = program_of(lazily(build));
  ASSERT_TRUE(program);
  ASSERT_GE(program->steps().size(), 7U);
  expect_any_part_equals(*program, eagerly(build));
}

TEST(Program, DenseInAnyOrderOfDimensions) {
  const auto build = [] { return at::empty({30, 20}).t().uniform_(-1, 1).mul_(2).t(); };
  const auto program = program_of(lazily(build));
  ASSERT_TRUE(program);
  expect_any_part_equals(*program, eagerly(build));
}

TEST(Program, ASumWithAFactorHasNone) {
  // ATen rounds once in vectors and twice in the elements left over, so the bits depend on where
  // these begin.
  EXPECT_FALSE(program_of(lazily([] { return values(at::kFloat, 100).add_(0.3, 1.7); })));
  EXPECT_FALSE(program_of(lazily([] { return values(at::kFloat, 100).sub_(0.3, 1.7); })));
  EXPECT_FALSE(program_of(
      lazily([] { return at::add(values(at::kFloat, 100), values(at::kFloat, 100), 1.7); })));
}

TEST(Program, AStepThatWouldComputeInAnotherDtypeHasNone) {
  // Two numbers without dimensions: eager computes in float64, a tile of float16 would not.
  const auto build = [] { return at::empty({}, at::kHalf).fill_(1.1).mul_(real_number()); };
  EXPECT_FALSE(program_of(lazily(build)));
}

TEST(Program, ReadersNeedNoMoreThanTheySay) {
  const auto lazy = lazily([] {
    return at::empty({1000, 64}).normal_().narrow(1, 3, 32).to(at::kBFloat16, false, true);
  });
  const auto program = program_of(lazy);
  ASSERT_TRUE(program);
  // 1024 elements in float32, the 34 runs they lie in, a span of random numbers and a place in
  // their stream.
  const auto bytes = program->scratch_bytes(1024);
  EXPECT_GE(bytes, 1024 * sizeof(float) + 32 * sizeof(tile::Run) + sizeof(at::mt19937_data_pod));
  EXPECT_LE(bytes, (1024 + kLongestSpan) * sizeof(float) + 34 * sizeof(tile::Run) +
                       3 * sizeof(at::mt19937_data_pod));
}

}  // namespace
}  // namespace dormant::tile
