#include "recipe/allowed_operators.h"

#include <ATen/core/Tensor.h>
#include <c10/core/ScalarType.h>

#include <algorithm>
#include <string_view>
#include <unordered_set>

#include "record/operator_traits.h"

namespace dormant::recipe {
namespace {

// Names are without "aten::", without overload, and without the underscore of an in-place operator.
// A name stands for all of these that recording makes a node of.
const std::unordered_set<std::string_view> kAllowed = {
    // First values.
    "zero", "fill", "copy", "arange", "range", "linspace", "logspace", "eye", "complex", "polar",
    // Random numbers.
    "normal", "uniform", "bernoulli", "exponential", "cauchy", "geometric", "log_normal", "random",
    "rand", "randn", "randint", "randperm", "multinomial",
    // Moving elements.
    "cat", "stack", "repeat", "flip", "roll", "rot90", "constant_pad_nd", "tril", "triu",
    "diag_embed", "block_diag", "pixel_shuffle", "pixel_unshuffle", "channel_shuffle", "where",
    "masked_fill", "slice_scatter", "select_scatter", "diagonal_scatter", "narrow_copy",
    "alias_copy", "detach_copy", "permute_copy", "transpose_copy", "t_copy", "view_copy",
    "expand_copy", "squeeze_copy", "unsqueeze_copy", "diagonal_copy", "slice_copy", "select_copy",
    "_reshape_copy", "_conj_copy",
    // Indices, which recording checks by value.
    "index", "index_select", "index_add", "index_copy", "index_fill", "index_put", "index_reduce",
    "gather", "scatter", "scatter_add", "scatter_reduce", "embedding",
    // Arithmetic.
    "add", "sub", "rsub", "mul", "div", "floor_divide", "remainder", "fmod", "neg", "abs", "sgn",
    "sign", "signbit", "copysign", "reciprocal", "sqrt", "rsqrt", "pow", "hypot", "lerp", "addcmul",
    "addcdiv", "floor", "ceil", "round", "trunc", "frac", "clamp", "clamp_min", "clamp_max",
    "maximum", "minimum", "fmax", "fmin", "nan_to_num", "nextafter", "ldexp", "frexp", "heaviside",
    "gcd", "lcm", "conj_physical", "angle", "deg2rad", "rad2deg",
    // Functions of one or two numbers.
    "exp", "exp2", "expm1", "log", "log2", "log10", "log1p", "logaddexp", "logaddexp2", "xlogy",
    "sin", "cos", "tan", "asin", "acos", "atan", "atan2", "sinh", "cosh", "tanh", "asinh", "acosh",
    "atanh", "sinc", "erf", "erfc", "erfinv", "lgamma", "digamma", "polygamma", "igamma", "igammac",
    "i0", "special_i0e", "special_i1", "special_i1e", "special_entr", "special_erfcx",
    "special_ndtri", "special_log_ndtr", "special_xlog1py", "special_zeta", "special_bessel_j0",
    "special_bessel_j1", "special_bessel_y0", "special_bessel_y1",
    // Logic and comparisons.
    "bitwise_and", "bitwise_or", "bitwise_xor", "bitwise_not", "bitwise_left_shift",
    "bitwise_right_shift", "__lshift__", "__rshift__", "logical_and", "logical_or", "logical_xor",
    "logical_not", "eq", "ne", "lt", "le", "gt", "ge", "isnan", "isinf", "isposinf", "isneginf",
    "isin",
    // Reductions and orders.
    "sum", "nansum", "mean", "prod", "max", "min", "amax", "amin", "aminmax", "argmax", "argmin",
    "all", "any", "std", "var", "std_mean", "var_mean", "norm", "linalg_vector_norm", "dist",
    "trace", "renorm", "logsumexp", "count_nonzero", "cumsum", "cumprod", "cummax", "cummin",
    "logcumsumexp", "median", "nanmedian", "kthvalue", "mode", "sort", "topk", "searchsorted",
    "bucketize",
    // Products and decompositions.
    "mm", "bmm", "mv", "dot", "vdot", "addmm", "addmv", "addr", "baddbmm", "addbmm",
    "_cdist_forward", "cholesky", "cholesky_solve", "triangular_solve", "linalg_qr", "linalg_lu",
    "linalg_cholesky_ex", "linalg_inv_ex", "linalg_lu_factor_ex", "linalg_solve_triangular",
    "linalg_householder_product", "linalg_cross", "_linalg_det", "_linalg_slogdet",
    // Layers.
    "relu", "gelu", "silu", "mish", "elu", "celu", "leaky_relu", "hardtanh", "hardsigmoid",
    "hardswish", "hardshrink", "softshrink", "softplus", "threshold", "sigmoid", "logit", "glu",
    "log_sigmoid_forward", "_prelu_kernel", "_softmax", "_log_softmax", "_safe_softmax",
    "native_layer_norm"};

}  // namespace

bool is_allowed(const c10::OperatorHandle& op) {
  constexpr std::string_view kNamespace = "aten::";
  std::string_view name = op.operator_name().name;
  if (!name.starts_with(kNamespace)) {
    return false;
  }
  name.remove_prefix(kNamespace.size());
  if (name.ends_with('_') && !name.ends_with("__")) {
    name.remove_suffix(1);
  }
  const auto& returns = op.schema().returns();
  const auto route = record::traits_of(op).route;
  return kAllowed.count(name) != 0 &&
         (route == record::Route::in_place || route == record::Route::functional) &&
         std::all_of(returns.begin(), returns.end(), [](const c10::Argument& result) {
           return result.type()->kind() == c10::TypeKind::TensorType;
         });
}

bool may_crash(const c10::OperatorHandle& op, c10::ArrayRef<c10::IValue> arguments) {
  // The smallest integer divided by -1 is the processor's exception for a division by zero; of all
  // divisions this alone is one of integers (div_trunc_kernel in ATen/native/cpu/BinaryOps
  // Kernel.cpp).
  const auto& name = op.operator_name().name;
  const auto integral = [](const c10::IValue& value) {
    return value.isTensor() &&
           c10::isIntegralType(value.toTensor().scalar_type(), /*includeBool=*/false);
  };
  return (name == "aten::div" || name == "aten::div_") && integral(arguments[0]) &&
         std::any_of(arguments.begin(), arguments.end(), [](const c10::IValue& value) {
           return value.isString() && value.toStringRef() == "trunc";
         });
}

}  // namespace dormant::recipe
