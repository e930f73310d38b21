#include "record/call_key.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/scalar_tensor.h>
#include <c10/core/DefaultDtype.h>
#include <gtest/gtest.h>

#include <string>
#include <utility>
#include <vector>

namespace dormant::record {
namespace {

std::optional<CallKey> key(const std::string& name, const std::string& overload,
                           std::vector<c10::IValue> arguments) {
  const auto op = c10::Dispatcher::singleton().findSchemaOrThrow(name.c_str(), overload.c_str());
  torch::jit::Stack stack(std::move(arguments));
  return key_of(Call(op, {}, &stack));
}

std::optional<CallKey> sum(const at::Tensor& a, const at::Tensor& b, double alpha = 1.0) {
  return key("aten::add", "Tensor", {a, b, alpha});
}

at::Tensor number(double value) {
  auto tensor = at::scalar_tensor(value, at::kDouble);
  tensor.unsafeGetTensorImpl()->set_wrapped_number(true);
  return tensor;
}

TEST(CallKey, IsEqualForTensorsOfOneGeometry) {
  const auto found = sum(at::empty({2, 3}), at::empty({3}));
  ASSERT_TRUE(found.has_value());
  EXPECT_EQ(found, sum(at::empty({2, 3}), at::empty({3})));
}

TEST(CallKey, TellsApartWhatResultsDependOn) {
  const auto a = at::empty({2, 3});
  const std::vector<std::optional<CallKey>> keys = {
      sum(a, a),
      sum(a, a, 2.0),
      sum(a, at::empty({3})),
      sum(a, at::empty({3, 2}).t()),
      sum(a, a.to(at::kDouble)),
      sum(a, number(1.0)),
      sum(a, number(2.0)),
      key("aten::sub", "Tensor", {a, a, 1.0}),
      key("aten::cat", "", {c10::List<at::Tensor>({a, a}), 0}),
      key("aten::cat", "", {c10::List<at::Tensor>({a, a}), 1}),
      key("aten::cat", "", {c10::List<at::Tensor>({a}), 0}),
  };
  for (size_t i = 0; i < keys.size(); ++i) {
    ASSERT_TRUE(keys[i].has_value()) << i;
    for (size_t j = 0; j < i; ++j) {
      EXPECT_NE(keys[i], keys[j]) << i << " and " << j;
    }
  }
}

TEST(CallKey, DependsOnTheDefaultDtype) {
  const auto a = at::empty({2}, at::kInt);
  const auto before = sum(a, number(0.5));
  const auto dtype = c10::get_default_dtype();
  c10::set_default_dtype(caffe2::TypeMeta::Make<double>());
  const auto after = sum(a, number(0.5));
  c10::set_default_dtype(dtype);
  EXPECT_NE(before, after);
}

TEST(CallKey, IsNoneForBitsThatAreResolvedLater) {
  EXPECT_FALSE(sum(at::empty({2}, at::kComplexFloat).conj(), at::empty({2})).has_value());
}

}  // namespace
}  // namespace dormant::record
