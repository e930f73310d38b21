#include "record/infer.h"

#include <ATen/EmptyTensor.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/aminmax.h>
#include <ATen/ops/index_meta_dispatch.h>
#include <c10/core/impl/LocalDispatchKeySet.h>

#include <algorithm>
#include <string>
#include <unordered_map>
#include <unordered_set>
#include <utility>

#include "record/call_key.h"
#include "record/lazy_storage.h"

namespace dormant::record {
namespace {

/// Products whose Meta kernels do not check that the factors have one dtype, as their CPU kernels
/// do.
bool mixes_dtypes(const Call& call) {
  static const std::unordered_set<std::string> products = {
      "aten::mm",       "aten::bmm",    "aten::addmm",  "aten::addmm_", "aten::baddbmm",
      "aten::baddbmm_", "aten::mv",     "aten::addmv",  "aten::addmv_", "aten::dot",
      "aten::vdot",     "aten::addbmm", "aten::addbmm_"};
  if (products.count(call.op.operator_name().name) == 0) {
    return false;
  }
  std::optional<c10::ScalarType> first;
  bool mixed = false;
  for_each_tensor(call, [&](const at::Tensor& tensor) {
    mixed = mixed || (first && *first != tensor.scalar_type());
    first = tensor.scalar_type();
  });
  return mixed;
}

/// Normalisations of bfloat16 and float16: their Meta kernels say that statistics are float32, the
/// CPU kernels don't.
bool keeps_reduced_statistics(const Call& call) {
  const auto& name = call.op.operator_name().name;
  return (name == "aten::native_layer_norm" || name == "aten::native_group_norm") &&
         c10::isReducedFloatingType(call.arguments()[0].toTensor().scalar_type());
}

/// Indexing. The Meta kernel that PyTorch registers from Python (torch/_meta_registrations.py,
/// meta_index_Tensor) gives other strides than the CPU kernel where an index is transposed; the one
/// in C++, which it hides, shares its iterator with the CPU kernel.
bool is_index(const Call& call) {
  const auto& name = call.op.operator_name();
  return name.overload_name == "Tensor" &&
         (name.name == "aten::index" || name.name == "aten::_unsafe_index");
}

/// Runs the call on meta tensors. False if the kernel is missing or refuses the arguments.
bool run_on_meta(const Call& call, torch::jit::Stack& stack) {
  bool representable = !mixes_dtypes(call) && !keeps_reduced_statistics(call);
  for (const auto& argument : call.arguments()) {
    stack.push_back(map_tensors(argument, [&](const at::Tensor& tensor) -> at::Tensor {
      const auto* impl = tensor.unsafeGetTensorImpl();
      if (tensor.layout() != c10::kStrided || tensor.is_quantized() || tensor.is_conj() ||
          tensor.is_neg() || tensor._is_zerotensor()) {
        representable = false;
        return tensor;
      }
      // A Python scalar stays the CPU tensor it is: it must take part in type promotion as a
      // scalar.
      if (impl->is_wrapped_number() || tensor.is_meta()) {
        return tensor;
      }
      return at::detail::empty_strided_meta(tensor.sizes(), tensor.strides(), tensor.scalar_type());
    }));
  }
  if (!representable) {
    return false;
  }
  const c10::impl::ExcludeDispatchKeyGuard no_recording(c10::DispatchKey::DeferredInit);
  const at::AutoDispatchBelowADInplaceOrView below_autograd;
  try {
    if (is_index(call)) {
      auto result = at::meta::index(stack[0].toTensor(), stack[1].toOptionalTensorList());
      stack.assign(1, c10::IValue(std::move(result)));
    } else {
      call.op.callBoxed(stack);
    }
  } catch (const std::exception&) {
    // Whatever is wrong, the real operator says it better.
    return false;
  }
  return true;
}

bool append_geometry(const c10::IValue& value, std::vector<Geometry>& out) {
  if (value.isTensorList()) {
    for (const at::Tensor& element : value.toTensorVector()) {
      if (!append_geometry(element, out)) {
        return false;
      }
    }
    return true;
  }
  if (!value.isTensor() || !value.toTensor().defined()) {
    return false;
  }
  const auto& tensor = value.toTensor();
  if (!tensor.is_meta() || tensor.layout() != c10::kStrided || tensor.is_quantized() ||
      tensor.storage_offset() != 0 || tensor.is_conj() || tensor.is_neg()) {
    return false;
  }
  out.push_back(Geometry::of(tensor));
  return true;
}

bool in_range(const at::Tensor& index, int64_t low, int64_t high) {
  if (index.numel() == 0) {
    return true;
  }
  const auto wide = index.to(c10::kLong);
  const auto [smallest, largest] = at::aminmax(wide);
  return smallest.item<int64_t>() >= low && largest.item<int64_t>() < high;
}

bool is_index_type(const at::Tensor& tensor) {
  return c10::isIntegralType(tensor.scalar_type(), /*includeBool=*/false);
}

/// What the Meta kernel says of what the call returns.
std::optional<std::vector<Geometry>> ask_for_results(const Call& call) {
  torch::jit::Stack stack;
  if (!run_on_meta(call, stack)) {
    return std::nullopt;
  }
  std::vector<Geometry> results;
  for (const auto& value : stack) {
    if (!append_geometry(value, results)) {
      return std::nullopt;
    }
  }
  return results;
}

/// What the Meta kernel says of what the call writes.
std::optional<std::vector<Geometry>> ask_for_written(const Call& call) {
  // The meta tensors that stand for the written arguments must be looked at after the call, which
  // takes them off the stack: in-place and out= operators return them, in the order of their
  // returns.
  torch::jit::Stack stack;
  if (!run_on_meta(call, stack)) {
    return std::nullopt;
  }
  if (stack.size() != call.traits.written.size()) {
    return std::nullopt;
  }
  std::vector<Geometry> written;
  for (const auto argument : call.traits.written) {
    const auto& alias = call.traits.return_alias;
    const auto found = std::find(alias.begin(), alias.end(), argument);
    if (found == alias.end() ||
        !append_geometry(stack[static_cast<size_t>(found - alias.begin())], written)) {
      return std::nullopt;
    }
  }
  return written;
}

/// ask(call), or what it said of the same call before: many Meta kernels are written in Python and
/// take 50 to 1000 microseconds, and the layers of a model make the same calls over and over.
/// Each question has a table of its own.
template <std::optional<std::vector<Geometry>> (*ask)(const Call&)>
std::optional<std::vector<Geometry>> remembered(const Call& call) {
  // A model makes a few hundred different calls at most.
  constexpr size_t kMostKept = 1024;
  thread_local std::unordered_map<CallKey, std::vector<Geometry>, CallKeyHash> answers;
  auto key = key_of(call);
  if (!key) {
    return ask(call);
  }
  if (const auto known = answers.find(*key); known != answers.end()) {
    return known->second;
  }
  auto answer = ask(call);
  if (answer) {
    if (answers.size() >= kMostKept) {
      answers.clear();
    }
    answers.emplace(std::move(*key), *answer);
  }
  return answer;
}

}  // namespace

std::optional<std::vector<Geometry>> infer_results(const Call& call) {
  return remembered<ask_for_results>(call);
}

std::optional<std::vector<Geometry>> infer_written(const Call& call) {
  return remembered<ask_for_written>(call);
}

bool is_checked_parameter(const Call& call, size_t argument) {
  const auto& formals = call.op.schema().arguments();
  const auto& name = formals[argument].name();
  if (name == "std") {
    return true;
  }
  if (call.op.operator_name().name.find("bernoulli") == std::string::npos) {
    return false;
  }
  // bernoulli(self) draws with self's values; where there is a p, self is only a shape.
  return name == "p" || (name == "self" && !call.op.schema().argumentIndexWithName("p"));
}

bool parameters_in_range(const Call& call) {
  const c10::impl::ExcludeDispatchKeyGuard no_recording(c10::DispatchKey::DeferredInit);
  const at::AutoDispatchBelowADInplaceOrView below_autograd;
  const auto& formals = call.op.schema().arguments();
  const auto arguments = call.arguments();
  for (size_t i = 0; i < arguments.size(); ++i) {
    if (!arguments[i].isTensor() || !is_checked_parameter(call, i)) {
      continue;
    }
    const auto& tensor = arguments[i].toTensor();
    if (!tensor.defined() || is_lazy(tensor) || tensor.is_complex() || tensor.numel() == 0) {
      continue;
    }
    const auto [smallest, largest] = at::aminmax(tensor.to(c10::kDouble));
    const bool probability = formals[i].name() != "std";
    if (!(smallest.item<double>() >= 0) || (probability && !(largest.item<double>() <= 1))) {
      return false;
    }
  }
  return true;
}

bool indices_in_bounds(const Call& call) {
  const c10::impl::ExcludeDispatchKeyGuard no_recording(c10::DispatchKey::DeferredInit);
  const at::AutoDispatchBelowADInplaceOrView below_autograd;
  const auto& schema = call.op.schema();
  const auto arguments = call.arguments();
  const auto& self = arguments[0].toTensor();
  if (call.traits.index_rule == IndexRule::per_element) {
    const auto indices = arguments[1].toOptionalTensorVector();
    for (size_t i = 0; i < indices.size(); ++i) {
      if (!indices[i] || !indices[i]->defined()) {
        continue;
      }
      // A mask, which uint8 is too, spans several dimensions and selects as many elements as its
      // values say. Other integers are refused.
      const auto dtype = indices[i]->scalar_type();
      if ((dtype != c10::ScalarType::Long && dtype != c10::ScalarType::Int) ||
          static_cast<int64_t>(i) >= self.dim()) {
        return false;
      }
      const auto size = self.size(static_cast<int64_t>(i));
      if (!in_range(*indices[i], -size, size)) {
        return false;
      }
    }
    return true;
  }
  int64_t dim = 0;
  if (call.traits.index_rule == IndexRule::along_dim) {
    const auto position = schema.argumentIndexWithName("dim");
    if (!position || !arguments[static_cast<size_t>(*position)].isInt()) {
      return false;
    }
    dim = arguments[static_cast<size_t>(*position)].toInt();
  }
  const auto rank = std::max<int64_t>(self.dim(), 1);
  if (dim < -rank || dim >= rank) {
    return false;
  }
  const auto size = self.dim() == 0 ? 1 : self.size(dim < 0 ? dim + rank : dim);
  for (const char* name : {"index", "indices"}) {
    if (const auto position = schema.argumentIndexWithName(name)) {
      const auto& index = arguments[static_cast<size_t>(*position)];
      return index.isTensor() && is_index_type(index.toTensor()) &&
             in_range(index.toTensor(), 0, size);
    }
  }
  return false;
}

}  // namespace dormant::record
