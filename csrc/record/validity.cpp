#include "record/validity.h"

#include <ATen/ExpandUtils.h>
#include <ATen/ops/empty.h>

#include <algorithm>
#include <string>

#include "record/elementwise.h"
#include "record/infer.h"
#include "record/lazy_storage.h"
#include "record/recorder.h"
#include "record/replay.h"

namespace dormant::record {
namespace {

bool plain_number(const c10::IValue& value) {
  return value.isInt() || value.isDouble() || value.isBool() || value.isNone();
}

/// Calls that no shape or dtype rule can refuse: they need no Meta kernel to check them.
bool obviously_valid(const Call& call) {
  const auto& name = call.op.operator_name().name;
  const auto arguments = call.arguments();
  if (call.traits.written.size() != 1 || call.traits.written[0] != 0) {
    return false;
  }
  const auto& self = arguments[0].toTensor();
  if (name == "aten::zero_") {
    return true;
  }
  if (name == "aten::fill_") {
    return plain_number(arguments[1]);
  }
  if (name == "aten::copy_") {
    return at::is_expandable_to(arguments[1].toTensor().sizes(), self.sizes());
  }
  if (!self.is_floating_point()) {
    return false;
  }
  if (name == "aten::erfinv_") {
    return true;
  }
  // Parameters that fit every floating dtype.
  constexpr double kLargest = 1e4;
  if (name == "aten::normal_") {
    return arguments[2].isDouble() && arguments[2].toDouble() >= 0;
  }
  if (name == "aten::uniform_") {
    return arguments[1].isDouble() && arguments[2].isDouble() &&
           arguments[1].toDouble() >= -kLargest &&
           arguments[1].toDouble() <= arguments[2].toDouble() &&
           arguments[2].toDouble() <= kLargest;
  }
  if (name == "aten::mul_" || name == "aten::add_" || name == "aten::sub_" ||
      name == "aten::div_") {
    const auto& other = arguments[1];
    const bool real_scalar = other.isTensor()
                                 ? other.toTensor().dim() == 0 && !other.toTensor().is_complex()
                                 : plain_number(other);
    return real_scalar && (arguments.size() < 3 || plain_number(arguments[2]));
  }
  if (name == "aten::clamp_" && arguments.size() == 3) {
    return plain_number(arguments[1]) && plain_number(arguments[2]) &&
           !(arguments[1].isNone() && arguments[2].isNone());
  }
  return false;
}

/// Random in-place operators check their parameters against the dtype whatever the number of
/// elements: run them on none. Raises nothing; the real operator will.
bool parameters_accepted(const Call& call) {
  torch::jit::Stack stack;
  for (const auto& argument : call.arguments()) {
    stack.push_back(map_tensors(argument, [](const at::Tensor& tensor) {
      return at::empty({0}, tensor.options().dtype(tensor.scalar_type()));
    }));
  }
  try {
    call.op.callBoxed(stack);
  } catch (const std::exception&) {
    return false;
  }
  return true;
}

/// Whether eager would refuse the write because an input shares part of its memory
/// (at::get_overlap_status, which needs data pointers): two dense ranges of one storage that
/// intersect and are not the same.
bool partly_overlaps(const Geometry& a, const Geometry& b) {
  if (a == b || !a.dense() || !b.dense()) {
    return false;
  }
  const auto begin = [](const Geometry& g) {
    return g.offset * static_cast<int64_t>(c10::elementSize(g.dtype));
  };
  const auto end = [](const Geometry& g) {
    return (g.offset + g.numel()) * static_cast<int64_t>(c10::elementSize(g.dtype));
  };
  return begin(a) < end(b) && begin(b) < end(a);
}

/// Arithmetic that would put fractions into an integer tensor: eager refuses most of it, Meta
/// kernels let it pass.
bool narrows(const Call& call) {
  if (call.traits.movement || call.traits.random) {
    return false;
  }
  bool fractions = false;
  for_each_tensor(call,
                  [&](const at::Tensor& t) { fractions = fractions || t.is_floating_point(); });
  for (const auto& argument : call.arguments()) {
    fractions = fractions || argument.isDouble();
  }
  return fractions &&
         std::any_of(call.traits.written.begin(), call.traits.written.end(), [&](size_t i) {
           const auto dtype = call.arguments()[i].toTensor().scalar_type();
           return c10::isIntegralType(dtype, /*includeBool=*/true);
         });
}

}  // namespace

bool operands_overlap(const Call& call, const at::Tensor& written) {
  bool overlap = false;
  const auto geometry = Geometry::of(written);
  const auto storage_impl = [](const at::Tensor& tensor) {
    return tensor.unsafeGetTensorImpl()->unsafe_storage().unsafeGetStorageImpl();
  };
  for_each_tensor(call, [&](const at::Tensor& other) {
    overlap = overlap || (is_lazy(other) && storage_impl(other) == storage_impl(written) &&
                          partly_overlaps(geometry, Geometry::of(other)));
  });
  return overlap;
}

bool valid_write(const Call& call, std::vector<Geometry>& changed) {
  if (obviously_valid(call)) {
    return true;
  }
  if (const auto length = arange_length(call)) {
    const auto& out = call.arguments()[3].toTensor();
    if (out.numel() != *length) {
      auto geometry = Geometry::of(out);
      geometry.sizes.assign(1, *length);
      geometry.strides.assign(1, 1);
      changed.push_back(std::move(geometry));
    }
    return true;
  }
  if (narrows(call)) {
    return false;
  }
  const bool out_variant = call.op.operator_name().overload_name.find("out") != std::string::npos;
  if (call.traits.random && !out_variant && call.traits.written.size() == 1) {
    size_t tensors = 0;
    for_each_tensor(call, [&](const at::Tensor&) { ++tensors; });
    if (tensors == 1) {
      return parameters_accepted(call);
    }
  }
  auto geometries = infer_written(call);
  if (!geometries) {
    return false;
  }
  for (size_t i = 0; i < geometries->size(); ++i) {
    const auto& tensor = call.arguments()[call.traits.written[i]].toTensor();
    const bool same = at::IntArrayRef((*geometries)[i].sizes) == tensor.sizes();
    if (!same && !out_variant) {
      return false;
    }
    if (!same) {
      changed = std::move(*geometries);
      return true;
    }
  }
  return true;
}

bool values_in_range(const Call& call) {
  const bool index = call.traits.index_rule != IndexRule::none;
  if (!index && !call.traits.random) {
    return true;
  }
  std::vector<c10::Storage> storages;
  const auto arguments = call.arguments();
  const auto for_each_checked = [&](const auto& f) {
    for (size_t i = index ? 1 : 0; i < arguments.size(); ++i) {
      const auto& written = call.traits.written;
      if (std::find(written.begin(), written.end(), i) == written.end() &&
          (index || is_checked_parameter(call, i))) {
        for_each_tensor(arguments[i], f);
      }
    }
  };
  for_each_checked([&](const at::Tensor& tensor) {
    if (is_lazy(tensor) && (index ? !c10::isFloatingType(tensor.scalar_type())
                                  : tensor.storage().nbytes() <= kCaptureLimit)) {
      storages.push_back(tensor.storage());
    }
  });
  materialize(storages, {});
  for_each_checked([](const at::Tensor& tensor) { sync_key(tensor); });
  return index ? indices_in_bounds(call) : parameters_in_range(call);
}

}  // namespace dormant::record
