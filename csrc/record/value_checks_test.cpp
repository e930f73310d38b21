#include "record/value_checks.h"

#include <ATen/ATen.h>
#include <dormant/dormant.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <limits>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "record/called_operator.h"
#include "record/eager_comparison.h"
#include "record/lazy_storage.h"
#include "record/source_node.h"

namespace dormant::record {
namespace {

using at::Tensor;

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr float kInfinity = std::numeric_limits<float>::infinity();

struct Called : CalledOperator {
  bool judged() const {
    torch::jit::Stack stack = arguments;
    const auto handle = op();
    return values_in_range(Call(handle, {}, &stack));
  }

  std::vector<Tensor> lazy_checked() const {
    torch::jit::Stack stack = arguments;
    const auto handle = op();
    return lazy_checked_tensors(Call(handle, {}, &stack));
  }
};

Tensor numbers(std::vector<int64_t> values, at::ScalarType dtype = at::kLong) {
  return at::tensor(values).to(dtype);
}

/// A list of indices, of which some may be missing.
c10::IValue list_of(const std::vector<std::optional<Tensor>>& indices) {
  c10::List<std::optional<Tensor>> list;
  for (const auto& index : indices) {
    list.push_back(index);
  }
  return list;
}

TEST(ValuesInRange, SaysOfAnIndexAlongADimensionWhatEagerSays) {
  const auto self = at::ones({3, 5});
  for (const int64_t dim : {-3, -2, -1, 0, 1, 2}) {
    for (const int64_t index : {-1, 0, 2, 3, 4, 5}) {
      const Called select{"index_select", "", {self, dim, numbers({0, index})}};
      EXPECT_EQ(select.judged(), select.accepted()) << dim << ", " << index;
      const Called gather{"gather", "", {self, dim, numbers({0, index}).view({1, 2}), false}};
      EXPECT_EQ(gather.judged(), gather.accepted()) << dim << ", " << index;
      const Called fill{"index_fill_", "int_Scalar", {self.clone(), dim, numbers({index}), 2}};
      // Eager counts these from the end, too.
      EXPECT_TRUE(!fill.judged() || fill.accepted()) << dim << ", " << index;
    }
  }
}

TEST(ValuesInRange, OfATensorWithoutDimensionsOnlyTheFirstElement) {
  for (const int64_t index : {-1, 0, 1}) {
    for (const int64_t dim : {-2, -1, 0, 1}) {
      const Called select{"index_select", "", {at::ones({}), dim, numbers({index})}};
      EXPECT_EQ(select.judged(), select.accepted()) << dim << ", " << index;
    }
  }
}

TEST(ValuesInRange, SaysOfAnEmbeddingWhatEagerSays) {
  for (const int64_t index : {-1, 0, 6, 7}) {
    const Called embedding{
        "embedding", "", {at::ones({7, 2}), numbers({1, index}), -1, false, false}};
    EXPECT_EQ(embedding.judged(), embedding.accepted()) << index;
  }
}

TEST(ValuesInRange, AnEmptyIndexIsInRange) {
  EXPECT_TRUE((Called{"index_select", "", {at::ones({3}), 0, numbers({})}}.judged()));
}

TEST(ValuesInRange, AnIndexOfAnotherKindThanIntegersIsNot) {
  for (const auto dtype : {at::kFloat, at::kBool}) {
    const Called select{"index_select", "", {at::ones({3}), 0, numbers({0, 1}, dtype)}};
    EXPECT_FALSE(select.judged()) << dtype;
    EXPECT_FALSE(select.accepted()) << dtype;
  }
}

TEST(ValuesInRange, SaysOfIndicesOfSeveralDimensionsWhatEagerSays) {
  const auto self = at::ones({3, 5, 2});
  for (const int64_t first : {-4, -3, 0, 2, 3}) {
    for (const int64_t last : {-6, -5, 4, 5}) {
      for (const auto dtype : {at::kLong, at::kInt}) {
        const Called both{
            "index", "Tensor", {self, list_of({numbers({first, 0}, dtype), numbers({last})})}};
        EXPECT_EQ(both.judged(), both.accepted()) << first << ", " << last;
        const Called second{"index", "Tensor", {self, list_of({{}, numbers({last}, dtype)})}};
        EXPECT_EQ(second.judged(), second.accepted()) << last;
      }
    }
  }
}

TEST(ValuesInRange, MoreIndicesThanDimensionsAreNot) {
  const Called index{"index", "Tensor", {at::ones({3}), list_of({numbers({0}), numbers({0})})}};
  EXPECT_FALSE(index.judged());
  EXPECT_FALSE(index.accepted());
}

TEST(ValuesInRange, MasksAreNotSinceTheirValuesDecideTheSize) {
  for (const auto dtype : {at::kBool, at::kByte}) {
    const Called index{"index", "Tensor", {at::ones({3}), list_of({at::ones({3}, dtype)})}};
    EXPECT_FALSE(index.judged()) << dtype;
  }
}

TEST(ValuesInRange, SaysOfValuesThatArePutWhatEagerSays) {
  const std::vector<std::vector<std::optional<Tensor>>> places = {
      {numbers({0, 2})},
      {numbers({0, 2}), numbers({1, 1})},
      {{}, numbers({0, 4, 1})},
      {numbers({0, 2}), {}, numbers({1, 0})},
      {numbers({0, 2}).view({2, 1}), numbers({0, 3, 4})},
      {numbers({0, 2}), numbers({0, 3, 4})},
      {{}, numbers({1, 2}), numbers({0, 1})},
  };
  for (size_t i = 0; i < places.size(); ++i) {
    for (const std::vector<int64_t>& sizes : {std::vector<int64_t>{},
                                              {1},
                                              {2},
                                              {3},
                                              {5},
                                              {2, 2},
                                              {2, 5},
                                              {2, 5, 2},
                                              {3, 2},
                                              {3, 3},
                                              {3, 3, 2},
                                              {2, 3, 2},
                                              {1, 2, 3, 2}}) {
      for (const bool accumulate : {false, true}) {
        const Called put{"index_put_",
                         "",
                         {at::zeros({3, 5, 2}), list_of(places[i]), at::ones(sizes), accumulate}};
        EXPECT_EQ(put.judged(), put.accepted())
            << "places " << i << ", " << at::ones(sizes).sizes();
      }
    }
  }
}

TEST(ValuesInRange, SaysOfDeviationsAndProbabilitiesWhatEagerSays) {
  const c10::IValue none;
  for (const float value : {-1.0F, -0.0F, 0.0F, 0.5F, 1.0F, 1.5F, kNan, kInfinity}) {
    const auto parameter = at::tensor({0.25F, value, 0.5F});
    const auto self = at::zeros({3});
    const std::vector<Called> calls = {
        {"bernoulli_", "Tensor", {self, parameter, none}},
        {"bernoulli", "", {parameter, none}},
        {"normal", "Tensor_Tensor", {self, parameter, none}},
        {"normal", "float_Tensor", {0.5, parameter, none}},
    };
    for (const auto& call : calls) {
      // What is judged may be stricter: such a call runs at once.
      EXPECT_TRUE(!call.judged() || call.accepted()) << call.name << " of " << value;
      if (value >= 0 && value <= 1) {
        EXPECT_TRUE(call.judged()) << call.name << " of " << value;
      }
    }
  }
}

TEST(ValuesInRange, SaysOfWeightsWhatEagerSays) {
  const auto draw = [](const Tensor& weights) {
    return Called{"multinomial", "", {weights, 1, true, c10::IValue()}};
  };
  for (const float value : {-1.0F, 0.0F, 2.0F, kNan, kInfinity, -kInfinity}) {
    const auto call = draw(at::tensor({0.25F, value}));
    EXPECT_EQ(call.judged(), call.accepted()) << value;
  }
  for (const auto& weights :
       {at::zeros({2}), at::eye(2), at::tensor({1.0F, 0.0F, 0.0F, 0.0F}).view({2, 2}), at::ones({}),
        at::ones({0})}) {
    const auto call = draw(weights);
    EXPECT_EQ(call.judged(), call.accepted()) << weights;
  }
}

TEST(ValuesInRange, WithoutARuleAnyValueIs) {
  EXPECT_TRUE((Called{"add", "Tensor", {at::full({2}, kNan), at::ones({2}), 1}}.judged()));
  EXPECT_TRUE(
      (Called{"normal", "Tensor_float", {at::full({2}, kNan), 1.0, c10::IValue()}}.judged()));
}

TEST(ValuesInRange, LazyIndicesBecomeRealAndWhatTheyIndexStaysLazy) {
  const auto table = read_of(at::ones({4, 2}));
  for (const int64_t last : {3, 4}) {
    const auto index = read_of(numbers({0, last}));
    const Called select{"index_select", "", {table, 0, index}};
    EXPECT_EQ(select.judged(), last < 4);
    EXPECT_FALSE(is_lazy(index));
    EXPECT_FALSE(carries_key(index));
    EXPECT_TRUE(same_bits(index, numbers({0, last})));
    EXPECT_TRUE(is_lazy(table));
  }
}

TEST(ValuesInRange, LazyParametersAreLookedAtAndStayLazy) {
  for (const float worst : {1.0F, 1.5F}) {
    const auto parameter = read_of(at::tensor({0.0F, worst, 9.0F})).narrow(0, 0, 2);
    const auto before = history_of(parameter);
    const Called draw{"bernoulli_", "Tensor", {at::zeros({2}), parameter, c10::IValue()}};
    EXPECT_EQ(draw.judged(), worst <= 1);
    EXPECT_EQ(history_of(parameter), before);
  }
}

TEST(LazyCheckedTensors, AreIndicesAndParametersButNotWhatIsWrittenOrIndexed) {
  const auto self = read_of(at::ones({4}));
  const auto index = read_of(numbers({0, 1}));
  const auto values = read_of(at::ones({2}));
  const auto is = [](const std::vector<Tensor>& found, const std::vector<Tensor>& wanted) {
    return std::equal(found.begin(), found.end(), wanted.begin(), wanted.end(),
                      [](const Tensor& a, const Tensor& b) { return a.is_same(b); });
  };
  EXPECT_TRUE(is(Called{"index_select", "", {self, 0, index}}.lazy_checked(), {index}));
  EXPECT_TRUE(is(Called{"index_put_", "", {self, list_of({index}), values, false}}.lazy_checked(),
                 {index}));
  EXPECT_TRUE(is(Called{"index_select", "", {self, 0, numbers({0})}}.lazy_checked(), {}));
  EXPECT_TRUE(is(Called{"bernoulli", "", {values, c10::IValue()}}.lazy_checked(), {values}));
  EXPECT_TRUE(
      is(Called{"bernoulli_", "Tensor", {self, values, c10::IValue()}}.lazy_checked(), {values}));
  EXPECT_TRUE(is(Called{"add", "Tensor", {self, self, 1}}.lazy_checked(), {}));
}

}  // namespace
}  // namespace dormant::record
