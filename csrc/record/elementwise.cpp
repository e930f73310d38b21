#include "record/elementwise.h"

#include <ATen/EmptyTensor.h>
#include <ATen/ScalarOps.h>
#include <ATen/TensorIterator.h>
#include <ATen/WrapDimUtils.h>

#include <cmath>

#include "record/numbers.h"
#include "system/refusal.h"

namespace dormant::record {
namespace {

bool plain(const at::Tensor& tensor) {
  return tensor.layout() == c10::kStrided && tensor.is_cpu() && !tensor.is_conj() &&
         !tensor.is_neg() && !tensor._is_zerotensor() && is_common_number(tensor.scalar_type());
}

/// A tensor as the iterator may see it: Python scalars and real 0-dim tensors as they are, others
/// without memory.
at::Tensor stand_in(const c10::IValue& value, bool& usable) {
  if (value.isTensor() && value.toTensor().defined()) {
    const auto& tensor = value.toTensor();
    usable = usable && plain(tensor);
    return tensor.unsafeGetTensorImpl()->is_wrapped_number()
               ? tensor
               : at::Tensor(at::detail::empty_strided_meta(tensor.sizes(), tensor.strides(),
                                                           tensor.scalar_type()));
  }
  if (is_real_number(value)) {
    auto number = at::scalar_to_tensor(value.toScalar());
    number.unsafeGetTensorImpl()->set_wrapped_number(true);
    return number;
  }
  usable = false;
  return {};
}

std::optional<std::vector<Geometry>> by_iterator(const Call& call, GeometryRule rule) {
  const auto arguments = call.arguments();
  const bool unary = rule == GeometryRule::unary || rule == GeometryRule::unary_float;
  // self; self, other; self, other, alpha. A rounding mode or anything else is left to the Meta
  // kernel.
  const bool alpha = arguments.size() == 3 && rule == GeometryRule::sum;
  if (arguments.size() != (unary ? 1U : 2U) && !(alpha && is_real_number(arguments[2]))) {
    return std::nullopt;
  }
  bool usable = true;
  const auto self = stand_in(arguments[0], usable);
  const auto other = unary ? at::Tensor() : stand_in(arguments[1], usable);
  if (!usable) {
    return std::nullopt;
  }
  if (alpha) {
    const auto dtype = at::result_type(self, other);
    if (!fits(arguments[2], dtype) || (arguments[2].isDouble() && !at::isFloatingType(dtype))) {
      return std::nullopt;  // nor does eager take a fractional alpha for integers
    }
  }
  at::Tensor out;
  try {
    switch (rule) {
      case GeometryRule::unary:
        out = at::TensorIterator::unary_op(out, self).output();
        break;
      case GeometryRule::unary_float:
        out = at::TensorIterator::unary_float_op(out, self).output();
        break;
      case GeometryRule::binary:
      case GeometryRule::sum:
        out = at::TensorIterator::binary_op(out, self, other).output();
        break;
      case GeometryRule::binary_float:
        out = at::TensorIterator::binary_float_op(out, self, other).output();
        break;
      case GeometryRule::comparison:
        out = at::TensorIterator::comparison_op(out, self, other).output();
        break;
      default:
        return std::nullopt;
    }
  } catch (const std::exception& error) {
    if (!system::is_refusal(error)) {
      throw;
    }
    return std::nullopt;  // the real operator says it better
  }
  return std::vector<Geometry>{Geometry::of(out)};
}

/// A contiguous geometry.
Geometry contiguous(std::vector<int64_t> sizes, c10::ScalarType dtype) {
  Geometry geometry;
  geometry.dtype = dtype;
  geometry.strides.resize(sizes.size());
  int64_t stride = 1;
  for (size_t i = sizes.size(); i-- > 0;) {
    geometry.strides[i] = stride;
    stride *= std::max<int64_t>(sizes[i], 1);
  }
  geometry.sizes.assign(sizes.begin(), sizes.end());
  return geometry;
}

std::optional<std::vector<Geometry>> joined(const Call& call, bool new_dimension) {
  const auto arguments = call.arguments();
  if (arguments.size() != 2 || !arguments[0].isTensorList() || !arguments[1].isInt()) {
    return std::nullopt;
  }
  const auto tensors = arguments[0].toTensorVector();
  if (tensors.empty()) {
    return std::nullopt;
  }
  const auto& first = tensors.front();
  auto sizes = first.sizes().vec();
  const auto rank = static_cast<int64_t>(sizes.size()) + (new_dimension ? 1 : 0);
  auto dim = arguments[1].toInt();
  if (dim < -rank || dim >= rank || rank == 0) {
    return std::nullopt;
  }
  dim += dim < 0 ? rank : 0;
  int64_t length = 0;
  for (const auto& tensor : tensors) {
    if (!plain(tensor) || !tensor.is_contiguous() || tensor.numel() == 0 ||
        tensor.dim() != first.dim() || tensor.scalar_type() != first.scalar_type()) {
      return std::nullopt;
    }
    for (int64_t i = 0; i < tensor.dim(); ++i) {
      if ((new_dimension || i != dim) && tensor.size(i) != first.size(i)) {
        return std::nullopt;
      }
    }
    length += new_dimension ? 1 : tensor.size(dim);
  }
  // A tensor that is contiguous in two memory formats at once lets the kernel choose: leave it to
  // the Meta kernel.
  if (!new_dimension && (rank == 4 || rank == 5)) {
    return std::nullopt;
  }
  if (new_dimension) {
    sizes.insert(sizes.begin() + dim, length);
  } else {
    sizes[static_cast<size_t>(dim)] = length;
  }
  return std::vector<Geometry>{contiguous(std::move(sizes), first.scalar_type())};
}

}  // namespace

std::optional<std::vector<Geometry>> infer_elementwise(const Call& call) {
  switch (const auto rule = call.traits.geometry) {
    case GeometryRule::unary:
    case GeometryRule::unary_float:
    case GeometryRule::binary:
    case GeometryRule::sum:
    case GeometryRule::binary_float:
    case GeometryRule::comparison:
      return by_iterator(call, rule);
    case GeometryRule::cat:
      return joined(call, /*new_dimension=*/false);
    case GeometryRule::stack:
      return joined(call, /*new_dimension=*/true);
    default:
      return std::nullopt;
  }
}

std::optional<int64_t> arange_length(const Call& call) {
  // (start, end, step, *, out), as at::native::arange_out computes it.
  const auto arguments = call.arguments();
  if (call.op.operator_name().name != "aten::arange" || arguments.size() != 4 ||
      !arguments[3].isTensor()) {
    return std::nullopt;
  }
  const auto dtype = arguments[3].toTensor().scalar_type();
  bool integers = true;
  for (const auto& number : arguments.slice(0, 3)) {
    if (!is_real_number(number)) {
      return std::nullopt;
    }
    integers = integers && number.isInt();
  }
  const auto start = arguments[0].toScalar().toDouble();
  const auto end = arguments[1].toScalar().toDouble();
  const auto step = arguments[2].toScalar().toDouble();
  constexpr double kLimit = 1e9;  // beyond, rounding and overflow are the kernel's to judge
  const auto length = (end - start) / step;
  if (!(length >= 0 && length < kLimit) || std::abs(start) >= kLimit || std::abs(end) >= kLimit ||
      !(integers ? is_common_number(dtype) : is_common_floating(dtype))) {
    return std::nullopt;
  }
  return static_cast<int64_t>(std::ceil(length));
}

}  // namespace dormant::record
