#include "record/default_dtype.h"

#include <c10/core/DefaultDtype.h>
#include <c10/core/impl/LocalDispatchKeySet.h>

#include <algorithm>
#include <string>

#include "record/elementwise.h"
#include "record/infer.h"

namespace dormant::record {
namespace {

constexpr auto kKey = c10::DispatchKey::DeferredInit;

bool is_fraction(c10::ScalarType dtype) {
  return c10::isFloatingType(dtype) || c10::isComplexType(dtype);
}

bool is_wrapped(const at::Tensor& tensor) {
  return tensor.unsafeGetTensorImpl()->is_wrapped_number();
}

bool is_written(const Call& call, size_t argument) {
  const auto& written = call.traits.written;
  return std::find(written.begin(), written.end(), argument) != written.end();
}

bool is_read(const Call& call, size_t argument) {
  return !call.traits.write_only || !is_written(call, argument);
}

/// A tensor that selects and takes no part in type promotion.
bool selects(const c10::Argument& argument) {
  return argument.name() == "condition" || argument.name() == "mask";
}

/// What a call reads, as type promotion sees it.
struct Reads {
  bool tensors = false;           ///< any but Python scalars and conditions
  bool scalars = false;           ///< Python scalars
  bool fractions = false;         ///< floating or complex tensors
  bool fraction_scalars = false;  ///< floating or complex Python scalars
  bool complex_scalars = false;
  bool dtype = false;  ///< a dtype argument
};

Reads reads_of(const Call& call) {
  Reads reads;
  const auto arguments = call.arguments();
  const auto& formals = call.op.schema().arguments();
  for (size_t i = 0; i < arguments.size(); ++i) {
    const auto& value = arguments[i];
    const auto type = formals[i].real_type()->str();
    reads.dtype = reads.dtype || (type.find("ScalarType") != std::string::npos && value.isInt());
    if (value.isScalar() && type.find("Scalar") == 0) {
      reads.scalars = true;
      reads.complex_scalars = reads.complex_scalars || value.isComplexDouble();
      reads.fraction_scalars =
          reads.fraction_scalars || value.isDouble() || value.isComplexDouble();
    }
    if (!is_read(call, i) || selects(formals[i])) {
      continue;
    }
    for_each_tensor(value, [&](const at::Tensor& tensor) {
      const bool fraction = is_fraction(tensor.scalar_type());
      if (is_wrapped(tensor)) {
        reads.scalars = true;
        reads.fraction_scalars = reads.fraction_scalars || fraction;
        reads.complex_scalars = reads.complex_scalars || tensor.is_complex();
      } else {
        reads.tensors = true;
        reads.fractions = reads.fractions || fraction;
      }
    });
  }
  return reads;
}

/// Whether a floating or complex tensor decides what the call computes in.
bool reads_fractions(const Call& call) {
  const auto arguments = call.arguments();
  bool found = false;
  for (size_t i = 0; i < arguments.size() && !found; ++i) {
    if (is_read(call, i)) {
      for_each_tensor(arguments[i], [&](const at::Tensor& tensor) {
        found = found || (is_fraction(tensor.scalar_type()) && !is_wrapped(tensor));
      });
    }
  }
  return found;
}

/// The dtype that integers and fractional scalars are promoted to: of complex numbers the parts'.
/// The complex default of bfloat16 has parts of float32.
c10::ScalarType promoted_dtype(const Reads& reads) {
  return reads.complex_scalars
             ? c10::toRealValueType(c10::typeMetaToScalarType(c10::get_default_complex_dtype()))
             : c10::get_default_dtype_as_scalartype();
}

}  // namespace

bool depends_on_default_dtype(const Call& call, const std::vector<Geometry>& results) {
  if (call.traits.movement || call.traits.random || call.traits.index != IndexRule::none) {
    return false;
  }
  if (reads_fractions(call)) {
    return false;  // nearly all calls: found out without looking at the schema
  }
  const auto reads = reads_of(call);
  if (reads.dtype || !(reads.tensors || reads.scalars)) {
    return false;
  }
  bool gives_fractions = reads.fraction_scalars;
  for (const auto& result : results) {
    gives_fractions = gives_fractions || is_fraction(result.dtype);
  }
  for (const auto argument : call.traits.written) {
    gives_fractions =
        gives_fractions || is_fraction(call.arguments()[argument].toTensor().scalar_type());
  }
  return gives_fractions;
}

std::optional<torch::jit::Stack> convert_integers(const Call& call,
                                                  const std::vector<Geometry>& results) {
  if (!call.op.hasTag(at::Tag::pointwise)) {
    return std::nullopt;
  }
  const auto reads = reads_of(call);
  const auto dtype = promoted_dtype(reads);
  const auto arguments = call.arguments();
  const auto& formals = call.op.schema().arguments();
  torch::jit::Stack converted(arguments.begin(), arguments.end());
  {
    auto state = c10::impl::tls_local_dispatch_key_set();
    const c10::impl::ForceDispatchKeyGuard recorded(state.included_.add(kKey),
                                                    state.excluded_.remove(kKey));
    for (size_t i = 0; i < arguments.size(); ++i) {
      if (selects(formals[i])) {
        continue;
      }
      const bool is_integer_or_scalar = arguments[i].isTensor() &&
                                        arguments[i].toTensor().defined() &&
                                        (is_wrapped(arguments[i].toTensor()) ||
                                         !is_fraction(arguments[i].toTensor().scalar_type()));
      if (!is_integer_or_scalar) {
        if (arguments[i].isTensorList() || arguments[i].isOptionalTensorList()) {
          return std::nullopt;
        }
        continue;
      }
      const auto& tensor = arguments[i].toTensor();
      if (is_wrapped(tensor) && reads.tensors) {
        continue;
      }
      const bool is_complex = tensor.is_complex();
      // A copy of a Python scalar is a tensor like any other.
      converted[i] = tensor.to(is_complex ? c10::toComplexType(dtype) : dtype,
                               /*non_blocking=*/false, /*copy=*/is_wrapped(tensor));
    }
  }
  const c10::impl::ExcludeDispatchKeyGuard no_recording(kKey);
  const Call same(call.op, call.keys, &converted);
  auto found = infer_elementwise(same);
  found = found ? found : infer_results(same);
  return found == results ? std::make_optional(std::move(converted)) : std::nullopt;
}

}  // namespace dormant::record
