// Every law against the operator itself: the real operator runs on real tensors with a copy of the
// generator, skip() on tensors of the same geometry without memory, and both generators must agree
// in every bit.
#include "random/draws.h"

#include <ATen/ATen.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <c10/core/CPUAllocator.h>
#include <c10/util/Exception.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <bit>
#include <functional>
#include <limits>
#include <memory>
#include <optional>
#include <sstream>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

namespace dormant::random {

void PrintTo(Draw draw, std::ostream* out) {
  *out << std::array{"none", "skipped", "value_dependent", "unknown"}.at(static_cast<size_t>(draw));
}

namespace {

using Stack = std::vector<c10::IValue>;

const std::vector<at::ScalarType> kFloating = {at::kFloat, at::kDouble, at::kHalf, at::kBFloat16};
const std::vector<at::ScalarType> kDtypes = {
    at::kFloat,        at::kDouble,        at::kHalf,        at::kBFloat16,
    at::kComplexFloat, at::kComplexDouble, at::kComplexHalf, at::kByte,
    at::kChar,         at::kShort,         at::kInt,         at::kLong,
    at::kBool,         at::kUInt16,        at::kUInt32,      at::kUInt64};

c10::OperatorHandle find(const std::string& name, const std::string& overload) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(("aten::" + name).c_str(),
                                                        overload.c_str());
}

Draw skip_of(const c10::OperatorHandle& op, const Stack& arguments,
             at::CPUGeneratorImpl& generator) {
  return skip(law_of(op), op, arguments, generator);
}

// The same geometry over a storage of its own: without memory, so that whoever reads or writes it
// crashes, or with a copy of the data, so that a run that writes or resizes it leaves the others
// alone.
at::Tensor with_storage(const at::Tensor& tensor, c10::Storage storage) {
  return at::empty({0}, tensor.options())
      .set_(std::move(storage), tensor.storage_offset(), tensor.sizes(), tensor.strides());
}

at::Tensor without_memory(const at::Tensor& tensor) {
  return with_storage(
      tensor,
      c10::Storage(c10::Storage::use_byte_size_t(), tensor.storage().nbytes(),
                   at::DataPtr(nullptr, at::kCPU), c10::GetCPUAllocator(), /*resizable=*/true));
}

at::Tensor copied(const at::Tensor& tensor) {
  const auto bytes = static_cast<int64_t>(tensor.storage().nbytes());
  at::Tensor copy = at::empty({bytes}, at::kByte);
  std::copy_n(static_cast<const char*>(tensor.storage().data()), bytes,
              static_cast<char*>(copy.mutable_data_ptr()));
  return with_storage(tensor, copy.storage());
}

std::string describe(const at::mt19937_data_pod& state) {
  std::ostringstream text;
  text << "left " << state.left_ << ", next " << state.next_ << ", words[0..1] " << state.state_[0]
       << ' ' << state.state_[1];
  return text.str();
}

void expect_same(at::CPUGeneratorImpl& got, at::CPUGeneratorImpl& expected,
                 const std::string& where) {
  const at::mt19937_data_pod a = got.engine().data();
  const at::mt19937_data_pod b = expected.engine().data();
  EXPECT_TRUE(a.seed_ == b.seed_ && a.left_ == b.left_ && a.next_ == b.next_ &&
              a.seeded_ == b.seeded_ && a.state_ == b.state_)
      << where << ": got " << describe(a) << "; expected " << describe(b);
  const auto bits = [](std::optional<double> value) {
    return value ? std::optional(std::bit_cast<uint64_t>(*value)) : std::nullopt;
  };
  EXPECT_EQ(bits(got.next_double_normal_sample()), bits(expected.next_double_normal_sample()))
      << where << ": cached normal";
  EXPECT_EQ(got.next_float_normal_sample(), expected.next_float_normal_sample()) << where;
}

struct Start {
  uint64_t seed;
  int draws;
  bool cached_normal;
};

// A fresh generator, one at the end of a block, one inside a block that holds half a pair.
const std::vector<Start> kStarts = {{3, 0, false}, {5, 624, false}, {7, 1000, true}};

std::shared_ptr<at::CPUGeneratorImpl> start_at(const Start& start) {
  auto generator = std::make_shared<at::CPUGeneratorImpl>(start.seed);
  for (int i = 0; i < start.draws; ++i) {
    generator->random();
  }
  if (start.cached_normal) {
    generator->set_next_double_normal_sample(0.25 + static_cast<double>(start.seed));
  }
  return generator;
}

// Runs the operator with `generator`, through its argument or, where it has none, in place of the
// default generator. Returns whether eager accepted it.
bool run_eagerly(const c10::OperatorHandle& op, Stack arguments, at::CPUGeneratorImpl& generator) {
  const auto& parameters = op.schema().arguments();
  bool takes_generator = false;
  auto passed = c10::make_intrusive<at::CPUGeneratorImpl>();
  for (size_t i = 0; i < parameters.size(); ++i) {
    if (parameters[i].name() == "generator") {
      takes_generator = true;
      arguments[i] = at::Generator(passed);
    }
  }
  auto& used =
      takes_generator ? *passed : *at::detail::getDefaultCPUGenerator().get<at::CPUGeneratorImpl>();
  const auto copy = [](at::CPUGeneratorImpl& from, at::CPUGeneratorImpl& to) {
    to.set_engine(from.engine());
    to.set_next_double_normal_sample(from.next_double_normal_sample());
    to.set_next_float_normal_sample(from.next_float_normal_sample());
  };
  copy(generator, used);
  bool accepted = true;
  try {
    op.callBoxed(arguments);
  } catch (const std::exception&) {
    accepted = false;
  }
  copy(used, generator);
  return accepted;
}

enum class Expected { law, run };

// Eager warns of much that is compared here.
class IgnoreWarnings : public c10::WarningHandler {
  void process(const c10::Warning&) override {}
};

struct Layout {
  std::string name;
  at::Tensor tensor;
};

at::Tensor blank(at::IntArrayRef sizes, at::ScalarType dtype) { return at::zeros(sizes, dtype); }

// Sizes about the block of 16 and beyond an engine's block of 624, in every layout that has a law
// of its own.
std::vector<Layout> layouts(at::ScalarType dtype) {
  std::vector<Layout> result;
  for (const int64_t n : {0, 1, 2, 7, 8, 9, 15, 16, 17, 31, 32, 33, 100, 1263}) {
    result.push_back({"contiguous " + std::to_string(n), blank({n}, dtype)});
    result.push_back({"strided " + std::to_string(n), blank({2 * n}, dtype).slice(0, 0, 2 * n, 2)});
  }
  result.push_back({"zero-dim", blank({}, dtype)});
  result.push_back({"matrix", blank({5, 7}, dtype)});
  result.push_back({"transposed", blank({5, 7}, dtype).t()});
  result.push_back({"columns", blank({5, 7}, dtype).slice(1, 0, 3)});
  result.push_back({"transposed columns", blank({5, 17}, dtype).slice(1, 0, 13).t()});
  result.push_back(
      {"channels last", blank({2, 3, 4, 5}, dtype).contiguous(at::MemoryFormat::ChannelsLast)});
  result.push_back({"channels last, contiguous too",
                    blank({2, 1, 4, 5}, dtype).contiguous(at::MemoryFormat::ChannelsLast)});
  result.push_back({"row of a column", blank({1, 40}, dtype).t().t()});
  result.push_back({"empty matrix", blank({3, 0}, dtype)});
  result.push_back({"expanded", blank({1}, dtype).expand({20})});
  result.push_back({"expanded small", blank({1}, dtype).expand({3})});
  result.push_back({"expanded empty", blank({0}, dtype).expand({3, 0})});
  result.push_back({"overlapping", blank({40}, dtype).as_strided({5, 4}, {1, 1})});
  return result;
}

void for_each_tensor(const std::vector<at::ScalarType>& dtypes,
                     const std::function<void(const at::Tensor&, const std::string&)>& check) {
  for (const at::ScalarType dtype : dtypes) {
    for (const Layout& layout : layouts(dtype)) {
      check(layout.tensor, std::string(at::toString(dtype)) + " " + layout.name);
    }
  }
}

class Skip : public testing::Test {
 protected:
  // What eager accepts has a law, unless `expected` says that it is to be run; what eager refuses
  // is left alone.
  void expect_law(const std::string& name, const std::string& overload, const Stack& arguments,
                  const std::string& what, Expected expected = Expected::law) {
    const c10::OperatorHandle op = find(name, overload);
    for (const Start& start : kStarts) {
      const std::string where =
          name + "." + overload + " " + what + ", seed " + std::to_string(start.seed);
      const auto skipped = start_at(start);
      const auto untouched = start_at(start);
      const auto eager = start_at(start);
      Stack lazy = arguments;
      Stack real = arguments;
      bool empty = false;
      for (size_t i = 0; i < arguments.size(); ++i) {
        if (arguments[i].isTensor()) {
          lazy[i] = without_memory(arguments[i].toTensor());
          real[i] = copied(arguments[i].toTensor());
          empty = empty || arguments[i].toTensor().numel() == 0;
        } else if (arguments[i].isIntList()) {
          const std::vector<int64_t> size = arguments[i].toIntVector();
          empty = empty || std::count(size.begin(), size.end(), 0) != 0;
        }
      }
      const Draw draw = skip(law_of(op), op, lazy, *skipped);
      const bool accepted = run_eagerly(op, real, *eager);
      compared_ += accepted ? 1 : 0;
      if (!accepted || expected == Expected::run) {
        EXPECT_TRUE(draw == Draw::unknown || draw == Draw::value_dependent)
            << where << ": got " << testing::PrintToString(draw);
        expect_same(*skipped, *untouched, where + " (to be left alone)");
        continue;
      }
      const bool drew =
          eager->engine().data().next_ != untouched->engine().data().next_ ||
          eager->engine().data().state_ != untouched->engine().data().state_ ||
          eager->next_double_normal_sample() != untouched->next_double_normal_sample();
      // Eager accepts almost any arguments for an empty tensor; a law need not, for running it
      // costs nothing.
      EXPECT_TRUE(draw == (drew ? Draw::skipped : Draw::none) ||
                  (empty && !drew && draw == Draw::unknown))
          << where << ": got " << testing::PrintToString(draw);
      expect_same(*skipped, *eager, where);
    }
  }

  // op_(self, numbers..., generator) on every dtype and layout.
  void expect_fill_law(const std::string& name, const std::string& overload, const Stack& numbers) {
    for_each_tensor(kDtypes, [&](const at::Tensor& tensor, const std::string& what) {
      Stack arguments = {tensor};
      arguments.insert(arguments.end(), numbers.begin(), numbers.end());
      arguments.emplace_back();  // the generator
      std::ostringstream text;
      text << what;
      for (const c10::IValue& number : numbers) {
        text << ' ' << number;
      }
      expect_law(name, overload, arguments, text.str());
    });
  }

  // Fails a test that lost its cases, or whose cases eager refuses.
  void expect_compared(int at_least) const { EXPECT_GE(compared_, at_least); }

 private:
  IgnoreWarnings ignore_;
  c10::WarningUtils::WarningHandlerGuard guard_{&ignore_};
  int compared_ = 0;
};

TEST_F(Skip, NormalEqualsEager) {
  expect_fill_law("normal_", "", {0.0, 1.0});
  expect_fill_law("normal_", "", {-3.0, 0.0});
  expect_fill_law("normal_", "", {0.0, -1.0});
  expect_fill_law("normal_", "", {0.0, std::numeric_limits<double>::quiet_NaN()});
  expect_compared(1854);
}

TEST_F(Skip, UniformEqualsEager) {
  expect_fill_law("uniform_", "", {0.0, 1.0});
  expect_fill_law("uniform_", "", {2.0, 2.0});
  expect_fill_law("uniform_", "", {1.0, 0.0});
  expect_fill_law("uniform_", "", {-60000.0, 60000.0});
  expect_fill_law("uniform_", "", {0.0, 1e39});
  expect_fill_law("uniform_", "", {-3e38, 3e38});
  expect_fill_law("uniform_", "", {-1.7014118346046923e38, 1.7014118346046927e38});
  expect_compared(3045);
}

TEST_F(Skip, BernoulliOfOneProbabilityEqualsEager) {
  for (const double p : {0.0, 0.3, 1.0, 1.5, -0.1}) {
    expect_fill_law("bernoulli_", "float", {p});
  }
  expect_compared(3726);
}

TEST_F(Skip, ExponentialCauchyGeometricAndLogNormalEqualEager) {
  expect_fill_law("exponential_", "", {1.5});
  expect_fill_law("exponential_", "", {0.0});
  expect_fill_law("cauchy_", "", {0.5, 2.0});
  expect_fill_law("cauchy_", "", {0.5, 0.0});
  expect_fill_law("geometric_", "", {0.3});
  expect_fill_law("geometric_", "", {1.0});
  expect_fill_law("log_normal_", "", {0.0, 0.5});
  expect_fill_law("log_normal_", "", {0.0, 0.0});
  expect_compared(2829);
}

TEST_F(Skip, RandomIntegersEqualEager) {
  constexpr int64_t kLowest = std::numeric_limits<int64_t>::lowest();
  constexpr int64_t kHighest = std::numeric_limits<int64_t>::max();
  constexpr int64_t kTwoDraws = int64_t{1} << 28;
  expect_fill_law("random_", "", {});
  for (const int64_t to :
       {int64_t{1}, int64_t{2}, int64_t{100}, int64_t{0}, int64_t{127}, int64_t{129},
        int64_t{65504}, kTwoDraws - 1, kTwoDraws, kTwoDraws + 1, kHighest}) {
    expect_fill_law("random_", "to", {to});
  }
  const std::vector<std::pair<int64_t, int64_t>> bounds = {
      {0, 10},         {-5, 5},         {3, 3},       {-100, 100},
      {-kTwoDraws, 0}, {-kTwoDraws, 1}, {kLowest, 0}, {kLowest, kHighest},
      {0, 256},        {2049, 4000},    {-129, -3},   {70000, 80000}};
  for (const auto& [from, to] : bounds) {
    expect_fill_law("random_", "from", {from, to});
  }
  for (const int64_t from : {int64_t{0}, int64_t{-1}, int64_t{5}, int64_t{300}, int64_t{3000},
                             -kTwoDraws, kLowest, kLowest + 1}) {
    expect_fill_law("random_", "from", {from, c10::IValue()});
  }
  expect_compared(28998);
}

TEST_F(Skip, BernoulliOfATensorEqualsEager) {
  for (const at::ScalarType probability :
       {at::kFloat, at::kDouble, at::kHalf, at::kBFloat16, at::kLong, at::kBool}) {
    const at::Tensor p = probability == at::kLong || probability == at::kBool
                             ? at::ones({}, probability)
                             : at::full({}, 0.5, probability);
    for_each_tensor(kDtypes, [&](const at::Tensor& tensor, const std::string& what) {
      expect_law("bernoulli_", "Tensor", {tensor, p, c10::IValue()},
                 what + " of " + at::toString(probability));
    });
    const at::Tensor self = blank({4, 5}, at::kFloat);
    for (const at::Tensor& shaped : {p.expand({5}), p.expand({4, 1}), p.expand({4, 5}),
                                     p.expand({5, 4}), p.expand({1, 1, 5}), p.expand({2, 4, 5})}) {
      expect_law("bernoulli_", "Tensor", {self, shaped, c10::IValue()}, "of a broadcast tensor");
      expect_law("bernoulli", "Tensor", {self, shaped, c10::IValue()}, "of a broadcast tensor");
    }
  }
  for_each_tensor(kDtypes, [&](const at::Tensor& tensor, const std::string& what) {
    expect_law("bernoulli", "", {tensor, c10::IValue()}, what);
    expect_law("bernoulli", "p", {tensor, 0.5, c10::IValue()}, what);
    for (const at::ScalarType dtype : {at::kFloat, at::kBool, at::kComplexFloat}) {
      expect_law("bernoulli", "out", {tensor, c10::IValue(), blank({0}, dtype)},
                 what + " to an empty out");
      expect_law("bernoulli", "out", {tensor, c10::IValue(), blank(tensor.sizes(), dtype)},
                 what + " to a fitting out");
    }
  });
  expect_compared(10290);
}

// Functionalization calls these.
TEST_F(Skip, GeneratedFunctionalAndOutFormsEqualEager) {
  const std::vector<std::tuple<std::string, std::string, std::string, Stack>> forms = {
      {"normal_functional", "", "", {0.0, 1.0}}, {"normal", "", "out", {0.0, 1.0}},
      {"uniform", "", "out", {0.0, 1.0}},        {"exponential", "", "out", {1.5}},
      {"cauchy", "", "out", {0.5, 2.0}},         {"geometric", "", "out", {0.3}},
      {"log_normal", "", "out", {0.0, 0.5}},     {"random", "", "out", {}},
      {"random", "from", "from_out", {0, 10}},   {"random", "to", "to_out", {10}},
  };
  for (const auto& [name, functional, out, numbers] : forms) {
    for_each_tensor({at::kFloat, at::kBFloat16, at::kDouble, at::kLong},
                    [&](const at::Tensor& tensor, const std::string& what) {
                      Stack arguments = {tensor};
                      arguments.insert(arguments.end(), numbers.begin(), numbers.end());
                      arguments.emplace_back();
                      if (name != "normal") {
                        expect_law(name, functional, arguments, what);
                      }
                      if (!out.empty()) {
                        arguments.emplace_back(blank({0}, tensor.scalar_type()));
                        expect_law(name, out, arguments, what);
                        arguments.back() = blank({0}, at::kInt);
                        expect_law(name, out, arguments, what + " to an out of another dtype");
                      }
                    });
  }
  expect_law("bernoulli", "float_out",
             {blank({5, 7}, at::kFloat).t(), 0.5, c10::IValue(), blank({0}, at::kFloat)}, "");
  expect_law(
      "bernoulli", "Tensor_out",
      {blank({5, 7}, at::kFloat).t(), at::full({5}, 0.5), c10::IValue(), blank({0}, at::kFloat)},
      "");
  expect_compared(7704);
}

TEST_F(Skip, NormalOfTensorsEqualsEager) {
  for_each_tensor(
      {at::kFloat, at::kDouble, at::kHalf, at::kBFloat16, at::kComplexFloat, at::kLong},
      [&](const at::Tensor& tensor, const std::string& what) {
        const at::Tensor other = at::ones({}, at::kFloat);
        expect_law("normal", "Tensor_float", {tensor, 1.0, c10::IValue()}, what);
        expect_law("normal", "Tensor_float", {tensor, -1.0, c10::IValue()}, what);
        expect_law("normal", "float_Tensor", {0.5, tensor, c10::IValue()}, what);
        expect_law("normal", "Tensor_Tensor", {tensor, other, c10::IValue()}, what);
        expect_law("normal", "Tensor_Tensor", {other, tensor, c10::IValue()}, what);
        for (const at::Tensor& out :
             {blank({0}, tensor.scalar_type()), blank(tensor.sizes(), tensor.scalar_type()),
              blank({7, 5}, tensor.scalar_type()).t()}) {
          expect_law("normal", "Tensor_float_out", {tensor, 1.0, c10::IValue(), out}, what);
          expect_law("normal", "float_Tensor_out", {0.5, tensor, c10::IValue(), out}, what);
          expect_law("normal", "Tensor_Tensor_out", {tensor, other, c10::IValue(), out}, what);
        }
      });
  const at::Tensor row = at::ones({5});
  const at::Tensor column = at::ones({7, 1}, at::kDouble);
  expect_law("normal", "Tensor_Tensor", {row, column, c10::IValue()}, "broadcast");
  expect_law("normal", "Tensor_Tensor", {column, row, c10::IValue()}, "broadcast");
  expect_law("normal", "Tensor_Tensor", {row, at::ones({4}), c10::IValue()},
             "that does not broadcast");
  expect_law("normal", "Tensor_float_out", {row, 1.0, c10::IValue(), blank({7, 5}, at::kFloat)},
             "broadcast to out");
  expect_law("normal", "Tensor_Tensor_out",
             {row, column, c10::IValue(), blank({5, 7}, at::kFloat).t()}, "broadcast to out");
  expect_compared(6573);
}

TEST_F(Skip, FactoriesWithOutEqualEager) {
  for (const at::ScalarType dtype :
       {at::kFloat, at::kDouble, at::kBFloat16, at::kLong, at::kByte, at::kComplexFloat}) {
    for (const at::Tensor& out : {blank({0}, dtype), blank({5, 7}, dtype), blank({7, 5}, dtype).t(),
                                  blank({1}, dtype).expand({5, 7})}) {
      for (const std::vector<int64_t>& size :
           std::vector<std::vector<int64_t>>{{5, 7}, {3}, {0}, {}, {-1}}) {
        std::ostringstream what;
        what << dtype << " out " << out.sizes() << out.strides() << " size "
             << c10::IntArrayRef(size);
        expect_law("rand", "out", {size, out}, what.str());
        expect_law("rand", "generator_out", {size, c10::IValue(), out}, what.str());
        expect_law("randn", "out", {size, out}, what.str());
        expect_law("randn", "generator_out", {size, c10::IValue(), out}, what.str());
        expect_law("normal", "float_float_out", {1.0, 2.0, size, c10::IValue(), out}, what.str());
        expect_law("randint", "out", {100, size, out}, what.str());
        expect_law("randint", "generator_out", {100, size, c10::IValue(), out}, what.str());
        expect_law("randint", "low_out", {-3, 100, size, out}, what.str());
        expect_law("randint", "low_generator_out", {5, int64_t{1} << 30, size, c10::IValue(), out},
                   what.str());
      }
    }
  }
  expect_compared(1782);
}

TEST_F(Skip, RandpermEqualsEager) {
  for (const at::ScalarType dtype : kDtypes) {
    for (const int64_t n : {-1, 0, 1, 2, 10, 127, 128, 129, 256, 257, 1500}) {
      const std::string what = std::string(at::toString(dtype)) + " of " + std::to_string(n);
      expect_law("randperm", "generator_out", {n, c10::IValue(), blank({0}, dtype)}, what);
      expect_law("randperm", "out", {n, blank({20}, dtype).slice(0, 0, 20, 2)}, what);
    }
  }
  expect_compared(504);
}

TEST_F(Skip, MultinomialEqualsEager) {
  for (const at::ScalarType dtype :
       {at::kFloat, at::kDouble, at::kHalf, at::kBFloat16, at::kLong}) {
    const at::Tensor weights = at::ones({4, 9}, dtype);
    for (const at::Tensor& given :
         {weights, weights.t(), weights[0], weights[0].expand({3, 9}), weights.slice(0, 0, 0),
          weights.slice(1, 0, 0), weights[0][0], weights.unsqueeze(0)}) {
      for (const int64_t samples : {0, 1, 2, 4, 9, 20}) {
        for (const bool replacement : {false, true}) {
          std::ostringstream what;
          what << dtype << ' ' << given.sizes() << ' ' << samples << " samples, replacement "
               << replacement;
          expect_law("multinomial", "", {given, samples, replacement, c10::IValue()}, what.str());
          expect_law("multinomial", "out",
                     {given, samples, replacement, c10::IValue(), blank({0}, at::kLong)},
                     what.str());
          expect_law("multinomial", "out",
                     {given, samples, replacement, c10::IValue(), blank({0}, at::kInt)},
                     what.str());
        }
      }
    }
  }
  expect_compared(1056);
}

TEST_F(Skip, NativeDropoutEqualsEager) {
  for_each_tensor({at::kFloat, at::kBFloat16, at::kDouble}, [&](const at::Tensor& tensor,
                                                                const std::string& what) {
    for (const double p : {0.0, 0.4, 1.0, 1.5}) {
      for (const c10::IValue& train : {c10::IValue(true), c10::IValue(false), c10::IValue()}) {
        expect_law("native_dropout", "", {tensor, p, train}, what + " p " + std::to_string(p));
      }
    }
  });
  expect_compared(3762);
}

TEST_F(Skip, LeavesRejectionSamplingToBeRun) {
  const at::Tensor half = at::full({20}, 0.5);
  const at::Tensor noise = at::zeros({20});
  for (const char* name : {"poisson", "_standard_gamma", "_sample_dirichlet"}) {
    expect_law(name, "", {half, c10::IValue()}, "", Expected::run);
  }
  expect_law("binomial", "", {at::full({20}, 5.0), half, c10::IValue()}, "", Expected::run);
  expect_law("rrelu_with_noise", "", {half, noise, 0.1, 0.3, true, c10::IValue()}, "in training",
             Expected::run);
  expect_law("rrelu_with_noise", "", {half, noise, 0.1, 0.3, false, c10::IValue()},
             "outside training");
  expect_compared(18);
}

TEST_F(Skip, DistinguishesOperatorsThatDrawNothingFromThoseWithoutALaw) {
  at::CPUGeneratorImpl generator(1);
  const at::Tensor tensor = at::ones({20});
  EXPECT_EQ(skip_of(find("fill_", "Scalar"), Stack{tensor, 1.0}, generator), Draw::none);
  EXPECT_EQ(skip_of(find("add", "Tensor"), Stack{tensor, tensor, 1}, generator), Draw::none);
  EXPECT_EQ(skip_of(find("_fused_dropout", ""), Stack{tensor, 0.5, c10::IValue()}, generator),
            Draw::unknown);
  EXPECT_EQ(skip_of(find("dropout", ""), Stack{tensor, 0.5, true}, generator), Draw::unknown);
  EXPECT_EQ(skip_of(find("rrelu_with_noise_functional", ""),
                    Stack{tensor, tensor, 0.1, 0.3, true, c10::IValue()}, generator),
            Draw::unknown);
  at::CPUGeneratorImpl untouched(1);
  expect_same(generator, untouched, "none of these draws");
}

TEST_F(Skip, LeavesTensorsWithOtherKernelsToBeRun) {
  at::CPUGeneratorImpl generator(1);
  at::CPUGeneratorImpl untouched(1);
  const at::Tensor complex = at::zeros({20}, at::kComplexFloat).conj();
  for (const at::Tensor& tensor : {at::empty({20}, at::device(at::kMeta)),
                                   at::zeros({4, 5}).to_sparse(), complex, at::Tensor()}) {
    EXPECT_EQ(skip_of(find("normal_", ""), Stack{tensor, 0.0, 1.0, c10::IValue()}, generator),
              Draw::unknown);
  }
  expect_same(generator, untouched, "none of these may draw");
}

TEST_F(Skip, RefusesAnIncompleteArgumentList) {
  at::CPUGeneratorImpl generator(1);
  EXPECT_THROW(skip_of(find("normal_", ""), Stack{at::ones({20})}, generator), c10::ValueError);
}

// Large tensors are jumped over, and only these two ever reach the jump.
TEST_F(Skip, EqualsEagerForTensorsLargeEnoughToJump) {
  const at::Tensor large = at::empty({2200, 1000});
  expect_law("normal_", "", {large, 0.0, 1.0, c10::IValue()}, "large");
  expect_law("uniform_", "", {large.slice(1, 0, 999), 0.0, 1.0, c10::IValue()}, "large columns");
  expect_compared(6);
}

}  // namespace
}  // namespace dormant::random
