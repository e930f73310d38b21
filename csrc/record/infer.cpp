#include "record/infer.h"

#include <ATen/EmptyTensor.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/ops/index_meta_dispatch.h>
#include <c10/core/impl/LocalDispatchKeySet.h>

#include <algorithm>
#include <string>
#include <unordered_map>
#include <utility>

#include "record/call_key.h"
#include "record/known_geometry.h"
#include "record/probe.h"
#include "system/refusal.h"

namespace dormant::record {
namespace {

/// Indexing. The Meta kernel that PyTorch registers from Python (torch/_meta_registrations.py,
/// meta_index_Tensor) gives other strides than the CPU kernel where an index is transposed; the one
/// in C++, which it hides, shares its iterator with the CPU kernel.
bool is_index(const Call& call) {
  return call.traits.geometry == GeometryRule::index &&
         call.op.operator_name().overload_name == "Tensor";
}

/// Runs the call on meta tensors. False if the kernel is missing or refuses the arguments.
bool run_on_meta(const Call& call, torch::jit::Stack& stack) {
  bool representable = true;
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
  } catch (const std::exception& error) {
    if (!system::is_refusal(error)) {
      throw;
    }
    return false;  // whatever is wrong, the real operator says it better
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

/// A random in-place operator with numbers for parameters leaves the geometry as it is.
bool fills_at_random(const Call& call) {
  size_t tensors = 0;
  for_each_tensor(call, [&](const at::Tensor&) { ++tensors; });
  return call.traits.random && tensors == 1 && call.traits.written.size() == 1 &&
         call.traits.written[0] == 0;
}

/// What a rule, else the Meta kernel, says of what the call returns.
std::optional<std::vector<Geometry>> ask_for_results(const Call& call) {
  if (auto known = known_results(call)) {
    return known;
  }
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

/// What a rule, else the Meta kernel, says of what the call writes.
std::optional<std::vector<Geometry>> ask_for_written(const Call& call) {
  if (fills_at_random(call)) {
    return std::vector<Geometry>{Geometry::of(call.arguments()[0].toTensor())};
  }
  if (auto known = known_written(call)) {
    return known;
  }
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

/// ask(call) where the CPU operator accepts the call as well, or what came of the same call before:
/// many Meta kernels are written in Python and take 50 to 1000 microseconds, and the layers of a
/// model make the same calls over and over. Each question has a table of its own.
template <std::optional<std::vector<Geometry>> (*ask)(const Call&)>
std::optional<std::vector<Geometry>> remembered(const Call& call) {
  // A model makes a few hundred different calls at most.
  constexpr size_t kMostKept = 1024;
  using Answer = std::optional<std::vector<Geometry>>;
  thread_local std::unordered_map<CallKey, Answer, CallKeyHash> answers;
  auto key = key_of(call);
  if (key) {
    if (const auto known = answers.find(*key); known != answers.end()) {
      return known->second;
    }
  }
  auto answer = ask(call);
  if (answer && !cpu_accepts(call, *answer)) {
    answer.reset();
  }
  if (key) {
    if (answers.size() >= kMostKept) {
      answers.clear();
    }
    answers.emplace(std::move(*key), answer);
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

}  // namespace dormant::record
