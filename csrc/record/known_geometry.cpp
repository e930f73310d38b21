#include "record/known_geometry.h"

#include <ATen/EmptyTensor.h>
#include <ATen/TensorIterator.h>
#include <ATen/WrapDimUtilsMulti.h>
#include <ATen/core/enum_tag.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <utility>

#include "record/probe.h"
#include "system/refusal.h"

namespace dormant::record {
namespace {

using Arguments = c10::ArrayRef<c10::IValue>;

/// The argument of that name; null where the schema has none.
const c10::IValue* named(const Call& call, Arguments arguments, const char* name) {
  const auto position = call.op.schema().argumentIndexWithName(name);
  return position ? &arguments[static_cast<size_t>(*position)] : nullptr;
}

bool plain(const at::Tensor& tensor) {
  return tensor.layout() == c10::kStrided && tensor.is_cpu() && !tensor.is_quantized() &&
         !tensor.is_conj() && !tensor.is_neg() && !tensor._is_zerotensor();
}

bool all_plain(const Call& call) {
  bool all = true;
  for_each_tensor(call, [&](const at::Tensor& tensor) { all = all && plain(tensor); });
  return all;
}

bool is_pointwise(const Call& call) {
  return !call.traits.random &&
         (call.traits.geometry == GeometryRule::broadcast || call.op.hasTag(at::Tag::pointwise));
}

/// What a TensorIterator gives a new output. Raises where sizes don't fit.
std::optional<Geometry> by_iterator(Arguments arguments, c10::ScalarType dtype) {
  c10::SmallVector<at::Tensor, 4> inputs;
  for (const auto& argument : arguments) {
    if (argument.isTensorList() || argument.isOptionalTensorList()) {
      return std::nullopt;
    }
    if (argument.isTensor() && argument.toTensor().defined()) {
      const auto& tensor = argument.toTensor();
      inputs.push_back(
          at::detail::empty_strided_meta(tensor.sizes(), tensor.strides(), tensor.scalar_type()));
    }
  }
  if (inputs.empty()) {
    return std::nullopt;
  }
  at::TensorIteratorConfig config;
  config.check_all_same_dtype(false).declare_static_dtype_and_device(dtype, c10::kMeta);
  config.add_owned_output(at::Tensor());
  for (const auto& input : inputs) {
    config.add_owned_const_input(input);
  }
  return Geometry::of(config.build().output());
}

/// A contiguous result of the sizes of self without those of the dimensions `dim`: all, where the
/// call names none.
std::optional<Geometry> reduced(const Call& call, Arguments arguments, c10::ScalarType dtype) {
  const auto& self = arguments[0].toTensor();
  const auto* dim = named(call, arguments, "dim");
  const auto* keep = named(call, arguments, "keepdim");
  std::vector<int64_t> dims;
  if (dim != nullptr && dim->isInt()) {
    dims.push_back(dim->toInt());
  } else if (dim != nullptr && dim->isIntList()) {
    dims = dim->toIntVector();
  } else if (dim != nullptr && !dim->isNone()) {
    return std::nullopt;
  }
  const auto removed = at::dim_list_to_bitset(
      dims.empty() ? at::OptionalIntArrayRef() : at::OptionalIntArrayRef(dims), self.dim());
  std::vector<int64_t> sizes;
  for (int64_t i = 0; i < self.dim(); ++i) {
    if (!removed[static_cast<size_t>(i)]) {
      sizes.push_back(self.size(i));
    } else if (keep != nullptr && keep->toBool()) {
      sizes.push_back(1);
    }
  }
  return Geometry::contiguous(sizes, dtype);
}

/// A product of matrices, of a list of them, or of vectors.
std::optional<Geometry> multiplied(Arguments arguments, c10::ScalarType dtype) {
  const auto& a = arguments[0].toTensor();
  const auto& b = arguments[1].toTensor();
  const bool by_vector = b.dim() == 1 && a.dim() <= 2;
  if (a.dim() == 0 || !(by_vector || (a.dim() == b.dim() && a.dim() <= 3)) ||
      a.size(-1) != b.size(by_vector ? 0 : -2) || (a.dim() == 3 && a.size(0) != b.size(0))) {
    return std::nullopt;
  }
  auto sizes = a.sizes().vec();
  sizes.pop_back();
  if (!by_vector) {
    sizes.push_back(b.size(-1));
  }
  return Geometry::contiguous(sizes, dtype);
}

std::optional<Geometry> repeated(Arguments arguments, c10::ScalarType dtype) {
  const auto& self = arguments[0].toTensor();
  auto sizes = arguments[1].toIntVector();
  const auto rank = static_cast<size_t>(self.dim());
  if (sizes.size() < rank) {
    return std::nullopt;
  }
  for (size_t i = 0; i < sizes.size(); ++i) {
    const auto from_end = sizes.size() - i;
    const int64_t size = from_end <= rank ? self.size(static_cast<int64_t>(rank - from_end)) : 1;
    if (sizes[i] < 0 || __builtin_mul_overflow(sizes[i], size, &sizes[i])) {
      return std::nullopt;
    }
  }
  return Geometry::contiguous(sizes, dtype);
}

/// The rule's word for the call with these arguments, and for its result this dtype.
std::optional<Geometry> by_rule(const Call& call, Arguments arguments, c10::ScalarType dtype) {
  switch (call.traits.geometry) {
    case GeometryRule::same_sizes:
      return Geometry::contiguous(arguments[0].toTensor().sizes(), dtype);
    case GeometryRule::reduction:
      return reduced(call, arguments, dtype);
    case GeometryRule::product:
      return multiplied(arguments, dtype);
    case GeometryRule::repeat:
      return repeated(arguments, dtype);
    default:
      return is_pointwise(call) ? by_iterator(arguments, dtype) : std::nullopt;
  }
}

/// The sizes that the numbers of a call say; empty where it is no such operator.
std::optional<std::vector<int64_t>> sizes_in_numbers(const Call& call) {
  const auto arguments = call.arguments();
  const auto* length = named(call, arguments, "n");
  length = length != nullptr ? length : named(call, arguments, "steps");
  if (length == nullptr || !length->isInt()) {
    return std::nullopt;
  }
  std::vector<int64_t> sizes = {length->toInt()};
  if (call.traits.geometry == GeometryRule::matrix_of_numbers) {
    const auto* columns = named(call, arguments, "m");
    sizes.push_back((columns != nullptr ? columns : length)->toInt());
  } else if (call.traits.geometry != GeometryRule::vector_of_numbers) {
    return std::nullopt;
  }
  const bool negative = std::any_of(sizes.begin(), sizes.end(), [](auto size) { return size < 0; });
  return negative ? std::nullopt : std::make_optional(std::move(sizes));
}

/// f(), or nothing where PyTorch or a rule refuses: the real operator says it better.
template <typename F>
auto unless_refused(const F& f) -> decltype(f()) {
  try {
    return f();
  } catch (const std::exception& error) {
    if (!system::is_refusal(error)) {
      throw;
    }
    return std::nullopt;
  }
}

/// An operator in place, of tensors that are broadcast to what it writes, or of that tensor alone.
std::optional<Geometry> written_in_place(const Call& call) {
  const auto& self = call.arguments()[0].toTensor();
  if (call.traits.geometry == GeometryRule::same_sizes) {
    return Geometry::of(self);
  }
  if (!is_pointwise(call)) {
    return std::nullopt;
  }
  const auto broadcast = by_iterator(call.arguments(), self.scalar_type());
  return broadcast && broadcast->sizes == Geometry::of(self).sizes
             ? std::make_optional(Geometry::of(self))
             : std::nullopt;
}

}  // namespace

std::optional<std::vector<Geometry>> known_results(const Call& call) {
  using Answer = std::optional<std::vector<Geometry>>;
  if (call.op.schema().returns().size() != 1 || call.traits.random || !all_plain(call)) {
    return std::nullopt;
  }
  return unless_refused([&]() -> Answer {
    auto promised = by_rule(call, call.arguments(), c10::ScalarType::Float);
    if (!promised) {
      return std::nullopt;
    }
    const auto sample = try_small(call);
    if (!sample || !sample->result.isTensor()) {
      return std::nullopt;
    }
    const auto made = Geometry::of(sample->result.toTensor());
    if (by_rule(call, sample->arguments, made.dtype) != made) {
      return std::nullopt;
    }
    promised->dtype = made.dtype;
    return std::vector<Geometry>{*promised};
  });
}

std::optional<std::vector<Geometry>> known_written(const Call& call) {
  using Answer = std::optional<std::vector<Geometry>>;
  if (call.traits.written.size() != 1 || !all_plain(call)) {
    return std::nullopt;
  }
  const auto written = call.traits.written[0];
  const auto& tensor = call.arguments()[written].toTensor();
  return unless_refused([&]() -> Answer {
    if (written == 0) {
      const auto geometry = written_in_place(call);
      return geometry && try_small(call) ? Answer({*geometry}) : std::nullopt;
    }
    const auto sizes = sizes_in_numbers(call);
    if (!sizes) {
      return std::nullopt;
    }
    // As at::native::resize_output does.
    return Answer({tensor.sizes() == c10::IntArrayRef(*sizes)
                       ? Geometry::of(tensor)
                       : Geometry::contiguous(*sizes, tensor.scalar_type())});
  });
}

}  // namespace dormant::record
