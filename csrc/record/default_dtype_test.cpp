#include "record/default_dtype.h"

#include <ATen/ATen.h>
#include <c10/core/DefaultDtype.h>
#include <gtest/gtest.h>

#include <string>
#include <utility>
#include <vector>

namespace dormant::record {
namespace {

class DefaultDtype {
 public:
  explicit DefaultDtype(c10::ScalarType dtype) : before_(c10::get_default_dtype()) {
    c10::set_default_dtype(c10::scalarTypeToTypeMeta(dtype));
  }
  ~DefaultDtype() { c10::set_default_dtype(before_); }
  DefaultDtype(const DefaultDtype&) = delete;
  DefaultDtype& operator=(const DefaultDtype&) = delete;

 private:
  const caffe2::TypeMeta before_;
};

struct Case {
  const char* name;
  const char* overload;
  std::vector<c10::IValue> arguments;
};

c10::OperatorHandle find(const Case& c) {
  return c10::Dispatcher::singleton().findSchemaOrThrow((std::string("aten::") + c.name).c_str(),
                                                        c.overload);
}

at::Tensor wrapped(const c10::Scalar& value) {
  auto tensor = at::scalar_tensor(value, value.isComplex()        ? at::kComplexDouble
                                         : value.isIntegral(true) ? at::kLong
                                                                  : at::kDouble);
  tensor.unsafeGetTensorImpl()->set_wrapped_number(true);
  return tensor;
}

at::Tensor run(const Case& c, std::vector<c10::IValue> arguments) {
  torch::jit::Stack stack(std::move(arguments));
  find(c).callBoxed(stack);
  return stack.at(0).toTensor();
}

bool depends(const Case& c) {
  torch::jit::Stack stack = c.arguments;
  const auto op = find(c);
  return depends_on_default_dtype(Call(op, {}, &stack), {Geometry::of(run(c, c.arguments))});
}

std::optional<torch::jit::Stack> convert(const Case& c) {
  torch::jit::Stack stack = c.arguments;
  const auto op = find(c);
  return convert_integers(Call(op, {}, &stack), {Geometry::of(run(c, c.arguments))});
}

bool same_bits(const at::Tensor& a, const at::Tensor& b) {
  const auto bytes = [](const at::Tensor& tensor) {
    return (tensor.is_complex() ? at::view_as_real(tensor) : tensor)
        .contiguous()
        .reshape({-1})
        .view(at::kByte);
  };
  return a.scalar_type() == b.scalar_type() && a.sizes() == b.sizes() &&
         a.strides() == b.strides() && bytes(a).equal(bytes(b));
}

// Values that float16 and bfloat16 round.
at::Tensor integers(c10::ScalarType dtype = at::kLong) {
  return at::tensor({1, 3, 77, 1001, 30011, 3, 5, 259, 8191, 1, 2, 6}, dtype).reshape({3, 4});
}

// Not aten::where: it has a Meta kernel in Python only.
std::vector<Case> dependent() {
  const auto a = integers();
  const auto b = integers(at::kInt).flip(0);
  const auto bits = a > 5;
  const auto small = at::tensor({1, 2, 3, 4});
  std::vector<Case> cases = {
      {"add", "Tensor", {a, wrapped(0.3), 1}},
      {"add", "Tensor", {bits, wrapped(0.3), 1}},
      {"add", "Tensor", {a, wrapped(c10::complex<double>(0.1, 0.2)), 1}},
      {"sub", "Tensor", {a, wrapped(0.3), 2}},
      {"mul", "Tensor", {a, wrapped(0.3)}},
      {"mul", "Tensor", {a.t(), wrapped(0.3)}},
      {"mul", "Tensor", {small.expand({3, 4}), wrapped(0.3)}},
      {"mul", "Tensor", {at::tensor(7), wrapped(0.3)}},
      {"mul", "Tensor", {a, wrapped(c10::complex<double>(0.1, 0.2))}},
      {"div", "Tensor", {a, b}},
      {"div", "Tensor", {a, wrapped(3)}},
      {"div", "Tensor_mode", {a, wrapped(2.7), "floor"}},
      {"div", "Tensor_mode", {a, wrapped(2.7), "trunc"}},
      {"remainder", "Tensor", {a, wrapped(2.7)}},
      {"pow", "Tensor_Scalar", {a, 0.7}},
      {"pow", "Tensor_Scalar", {a, -2.0}},
      {"pow", "Scalar", {1.7, small}},
      {"atan2", "", {a, b}},
      {"clamp", "", {a, 2.3, 900.7}},
      {"eq", "Tensor", {a, wrapped(1001.2)}},
      {"gt", "Tensor", {a, wrapped(1000.6)}},
      {"lt", "Scalar", {a, 1000.6}},
      {"xlogy", "Tensor", {a, b}},
      {"copysign", "Tensor", {a, wrapped(-1.5)}},
  };
  for (const char* name :
       {"sqrt", "rsqrt", "exp", "log", "sigmoid", "sin", "cos", "tanh", "reciprocal", "erf",
        "expm1", "log1p", "lgamma", "exp2", "atan", "asinh", "digamma"}) {
    cases.push_back({name, "", {a}});
    cases.push_back({name, "", {bits}});
  }
  return cases;
}

TEST(ConvertIntegers, GivesTheSameBitsWhateverTheDefaultDtypeIs) {
  for (const auto dtype : {at::kDouble, at::kFloat, at::kBFloat16, at::kHalf}) {
    for (const auto& c : dependent()) {
      at::Tensor expected;
      std::optional<torch::jit::Stack> converted;
      {
        const DefaultDtype scope(dtype);
        try {
          expected = run(c, c.arguments).clone();
        } catch (const c10::Error&) {
          continue;  // no kernel for that dtype
        }
        EXPECT_TRUE(depends(c)) << c.name << " by default " << dtype;
        converted = convert(c);
      }
      EXPECT_TRUE(converted.has_value()) << c.name << "." << c.overload << " by default " << dtype;
      if (!converted) {
        continue;
      }
      for (const auto other : {at::kFloat, at::kDouble}) {
        const DefaultDtype scope(other);
        EXPECT_TRUE(same_bits(expected, run(c, *converted)))
            << c.name << "." << c.overload << " by default " << dtype << ", replayed by " << other;
      }
    }
  }
}

TEST(ConvertIntegers, RefusesWhatIsNotPointwiseAndWhatWouldChange) {
  EXPECT_FALSE(convert({"logsumexp", "", {integers(), std::vector<int64_t>{0}, false}}));
  EXPECT_FALSE(convert({"masked_fill", "Scalar", {integers(), integers() > 5, 2.5}}));
}

TEST(DependsOnDefaultDtype, HoldsWhereFractionsOfIntegersAreWritten) {
  const auto a = integers();
  EXPECT_TRUE(depends({"sub", "out", {a, wrapped(0.3), 1, at::empty({3, 4}, at::kDouble)}}));
  EXPECT_TRUE(depends({"sqrt", "out", {a, at::empty({3, 4}, at::kDouble)}}));
  EXPECT_TRUE(depends({"eq_", "Scalar", {a.clone(), 1001.2}}));
}

TEST(DependsOnDefaultDtype, HoldsNotWhereTheDtypeIsGiven) {
  const auto a = integers();
  const auto x = a.to(at::kFloat);
  const std::vector<Case> independent = {
      {"add", "Tensor", {a, a, 1}},
      {"add", "Tensor", {x, wrapped(0.3), 1}},
      {"add", "Tensor", {x, a, 1}},
      {"add_", "Tensor", {x.clone(), a, 1}},
      {"mul", "Tensor", {x, wrapped(c10::complex<double>(0, 1))}},
      {"gt", "Tensor", {a, wrapped(1000)}},
      {"copy_", "", {x.clone(), a, false}},
      {"fill_", "Scalar", {x.clone(), 0.5}},
      {"fill_", "Scalar", {a.clone(), 0.5}},
      {"cumsum", "", {a, 0, at::kDouble}},
      {"sum", "dim_IntList", {a, std::vector<int64_t>{0}, false, at::kFloat}},
      {"arange", "start_out", {0, 1, 0.25, at::empty({4})}},
      {"sqrt", "", {x}},
      {"where", "self", {a > 5, x, wrapped(0.3)}},
      {"index_fill", "int_Scalar", {a, 0, at::tensor({0}, at::kLong), 2.0}},
      {"cat", "", {c10::List<at::Tensor>({a, a}), 0}},
  };
  for (const auto& c : independent) {
    EXPECT_FALSE(depends(c)) << c.name << "." << c.overload;
  }
}

}  // namespace
}  // namespace dormant::record
