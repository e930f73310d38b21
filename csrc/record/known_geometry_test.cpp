#include "record/known_geometry.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <string>
#include <utility>
#include <vector>

namespace dormant::record {
namespace {

using Answer = std::optional<std::vector<Geometry>>;

struct Case {
  const char* name;
  const char* overload;
  std::vector<c10::IValue> arguments;
};

c10::OperatorHandle operator_of(const Case& c) {
  return c10::Dispatcher::singleton().findSchemaOrThrow((std::string("aten::") + c.name).c_str(),
                                                        c.overload);
}

template <Answer (*ask)(const Call&)>
Answer known(const Case& c) {
  torch::jit::Stack stack = c.arguments;
  return ask(Call(operator_of(c), {}, &stack));
}

Geometry of_eager(const Case& c) {
  torch::jit::Stack stack = c.arguments;
  operator_of(c).callBoxed(stack);
  return Geometry::of(stack.at(0).toTensor());
}

const std::vector<int64_t> kNone;

TEST(KnownGeometry, OfResultsIsThatOfEager) {
  const auto none = c10::IValue();
  for (const int64_t n : {3, 300}) {
    const auto x = at::ones({n, 1, n + 1});
    const auto turned = at::ones({n + 2, n}).t();
    const auto sliced = at::ones({n, 2 * n}).slice(1, 0, 2 * n, 2);
    const auto spread = at::ones({n, 1}).expand({n, n});
    const auto integers = at::ones({n, 1}, at::kLong);
    const std::vector<int64_t> first = {0};
    const std::vector<Case> cases = {
        {"round", "", {turned}},
        {"round", "", {sliced}},
        {"pow", "Tensor_Scalar", {turned, 2}},
        {"pow", "Scalar", {2.0, x}},
        {"pow", "Tensor_Tensor", {integers, x}},
        {"isinf", "", {x}},
        {"where", "self", {x > 0, integers, x.to(at::kDouble)}},
        {"masked_fill", "Scalar", {x, x > 0, 0.5}},
        {"clamp", "", {turned, 0, none}},
        {"remainder", "Scalar", {integers, 2}},
        {"logical_not", "", {spread}},
        {"addcmul", "", {x, x, at::ones({n, 1, 1}), 1}},
        {"complex", "", {turned, turned}},
        {"tril", "", {turned, 0}},
        {"triu", "", {x, 1}},
        {"cumsum", "", {integers, 0, none}},
        {"cumprod", "", {turned, -1, none}},
        {"sum", "", {x.to(at::kBool), none}},
        {"sum", "dim_IntList", {turned, first, false, none}},
        {"mean", "dim", {x, first, true, none}},
        {"mean", "dim", {x, kNone, false, none}},
        {"amax", "", {turned, first, true}},
        {"argmax", "", {x, -1, false}},
        {"any", "dim", {x, 1, true}},
        {"var", "correction", {turned, first, 1, false}},
        {"linalg_vector_norm", "", {turned, 2, none, true, none}},
        {"mm", "", {turned, turned.t()}},
        {"bmm", "", {x, at::ones({n, n + 1, 2})}},
        {"mv", "", {turned, at::ones({n + 2})}},
        {"dot", "", {spread.select(1, 0), at::ones({n})}},
        {"flip", "", {x, first}},
        {"roll", "", {x, first, first}},
        {"_softmax", "", {x, -1, false}},
        {"repeat", "", {turned, std::vector<int64_t>{2, 1, 3}}},
    };
    for (const auto& c : cases) {
      const auto found = known<known_results>(c);
      ASSERT_TRUE(found && found->size() == 1) << c.name << '.' << c.overload << " of " << n;
      EXPECT_TRUE(found->front() == of_eager(c)) << c.name << '.' << c.overload << " of " << n;
    }
  }
}

TEST(KnownGeometry, OfWhatIsWrittenIsThatOfEager) {
  const auto generator = c10::IValue();
  for (const int64_t n : {3, 300}) {
    const auto x = at::ones({n + 1, n}).t();
    const auto column = at::ones({n, 1});
    const auto apart = at::empty({2 * n}, at::kLong).slice(0, 0, 2 * n, 2);
    const std::vector<Case> cases = {
        {"pow_", "Scalar", {x, 2}},
        {"masked_fill_", "Scalar", {x, column > 0, 0.5}},
        {"fill_", "Tensor", {x, at::ones({})}},
        {"tril_", "", {x, 0}},
        {"cumsum_", "", {x, 1, c10::IValue()}},
        {"randperm", "generator_out", {n, generator, at::empty({0}, at::kInt)}},
        {"randperm", "out", {n, apart}},
        {"eye", "out", {n, at::empty({2})}},
        {"eye", "m_out", {n, n + 3, at::empty({n + 3, n}).t()}},
        {"linspace", "out", {0, 1, n, at::empty({0})}},
        {"logspace", "out", {0, 1, n, 10.0, at::empty({0}, at::kHalf)}},
    };
    for (const auto& c : cases) {
      const auto found = known<known_written>(c);
      ASSERT_TRUE(found && found->size() == 1) << c.name << '.' << c.overload << " of " << n;
      EXPECT_TRUE(found->front() == of_eager(c)) << c.name << '.' << c.overload << " of " << n;
    }
  }
}

TEST(KnownGeometry, IsLeftToTheMetaKernelWhereNoRuleHolds) {
  for (const int64_t n : {3, 300}) {
    const auto x = at::ones({n, n});
    const std::vector<Case> results = {
        {"sort", "", {x, 0, false}},
        {"mm", "", {x, at::ones({n + 1, n})}},  // eager refuses
        {"pow", "Tensor_Tensor", {x, at::ones({n + 1, n})}},
        {"bitwise_not", "", {x}},
        {"sum", "dim_IntList", {x, std::vector<int64_t>{2}, false, c10::IValue()}},
        {"tril", "", {at::ones({n}), 0}},
        {"repeat", "", {x, std::vector<int64_t>{2}}},
        {"repeat", "", {x, std::vector<int64_t>{1, 1000000}}},  // too much to try
        {"round", "", {at::_efficientzerotensor({n}, at::kFloat)}},
        // Expanded, then copied: not as the iterator would have it.
        {"masked_fill", "Scalar", {at::ones({1, n}).t(), x > 0, 0.5}},
    };
    for (const auto& c : results) {
      const auto found = known<known_results>(c);
      EXPECT_TRUE(!found || found->front() == of_eager(c)) << c.name << " of " << n;
    }
    const std::vector<Case> writes = {
        {"pow_", "Tensor", {at::ones({n, 1}), x}},  // what is written is not broadcast
        {"tril_", "", {at::ones({n}), 0}},
        {"bitwise_not_", "", {x}},
        {"randperm", "out", {-1, at::empty({0}, at::kLong)}},
        {"cumsum_", "", {x, 4, c10::IValue()}},
        {"scatter_", "value", {x, 0, at::zeros({1, n}, at::kLong), 1}},
    };
    for (const auto& c : writes) {
      EXPECT_FALSE(known<known_written>(c).has_value()) << c.name << " of " << n;
    }
  }
}

}  // namespace
}  // namespace dormant::record
