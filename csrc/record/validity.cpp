#include "record/validity.h"

#include <ATen/ExpandUtils.h>

#include <string>

#include "record/elementwise.h"
#include "record/infer.h"
#include "record/lazy_storage.h"
#include "record/numbers.h"

namespace dormant::record {
namespace {

/// Whether `other` may be the second operand of arithmetic that is written to a floating tensor.
bool is_real_operand(const c10::IValue& other) {
  if (!other.isTensor()) {
    return is_real_number(other);
  }
  const auto& tensor = other.toTensor();
  return tensor.dim() == 0 && tensor.is_cpu() && is_common_number(tensor.scalar_type());
}

/// Calls that no shape or dtype rule can refuse: neither a Meta kernel nor the CPU kernel needs to
/// be asked.
bool obviously_valid(const Call& call) {
  const auto rule = call.traits.write;
  if (rule == WriteRule::ask || call.traits.written.size() != 1 || call.traits.written[0] != 0) {
    return false;
  }
  const auto arguments = call.arguments();
  const auto& self = arguments[0].toTensor();
  const auto dtype = self.scalar_type();
  const bool floating = is_common_floating(dtype);
  constexpr double kLargest = 1e4;  // fits every floating dtype
  switch (rule) {
    case WriteRule::ask:
    case WriteRule::range:
      return false;
    case WriteRule::always:
      return true;
    case WriteRule::value:
      return fits(arguments[1], dtype);
    case WriteRule::copy: {
      const auto& source = arguments[1].toTensor();
      const auto is_common = [](c10::ScalarType type) {
        return is_common_number(type) || c10::isComplexType(type) || type == c10::ScalarType::Bool;
      };
      return source.layout() == c10::kStrided && is_common(dtype) &&
             is_common(source.scalar_type()) && at::is_expandable_to(source.sizes(), self.sizes());
    }
    case WriteRule::floating:
      return floating;
    case WriteRule::normal:
      return floating && arguments[2].isDouble() && arguments[2].toDouble() >= 0;
    case WriteRule::uniform:
      return floating && arguments[1].isDouble() && arguments[2].isDouble() &&
             arguments[1].toDouble() >= -kLargest &&
             arguments[1].toDouble() <= arguments[2].toDouble() &&
             arguments[2].toDouble() <= kLargest;
    case WriteRule::factor:
      return floating && arguments.size() == 2 && is_real_operand(arguments[1]);
    case WriteRule::summand:
      return floating && is_real_operand(arguments[1]) && is_real_number(arguments[2]) &&
             fits(arguments[2], dtype);
    case WriteRule::bounds: {
      const auto bounds = [&](const c10::IValue& bound) {
        return bound.isNone() || (is_real_number(bound) && fits(bound, dtype));
      };
      return floating && bounds(arguments[1]) && bounds(arguments[2]) &&
             !(arguments[1].isNone() && arguments[2].isNone());
    }
  }
  return false;
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
  if (const auto length =
          call.traits.write == WriteRule::range ? arange_length(call) : std::nullopt) {
    const auto& out = call.arguments()[3].toTensor();
    if (out.numel() != *length) {
      auto geometry = Geometry::of(out);
      geometry.sizes.assign(1, *length);
      geometry.strides.assign(1, 1);
      changed.push_back(std::move(geometry));
    }
    return true;
  }
  const bool out_variant = call.op.operator_name().overload_name.find("out") != std::string::npos;
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

std::optional<size_t> valid_nbytes(const Geometry& geometry) {
  try {
    return geometry.nbytes_needed();
  } catch (const c10::ValueError&) {
    return std::nullopt;
  }
}

}  // namespace dormant::record
