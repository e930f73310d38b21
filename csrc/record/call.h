// One call of an operator as the fallback sees it: the operator, its dispatch keys and its
// arguments on the stack.
#pragma once

#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/core/ivalue.h>
#include <ATen/core/stack.h>
#include <c10/core/DispatchKeySet.h>

#include <cstdint>
#include <optional>

#include "record/operator_traits.h"

namespace dormant::record {

struct Call {
  Call(const c10::OperatorHandle& handle, c10::DispatchKeySet dispatch_keys,
       torch::jit::Stack* arguments_on_stack)
      : op(handle), keys(dispatch_keys), stack(arguments_on_stack), traits(traits_of(handle)) {}

  c10::ArrayRef<c10::IValue> arguments() const {
    return torch::jit::last(*stack, op.schema().arguments().size());
  }

  const c10::OperatorHandle& op;
  const c10::DispatchKeySet keys;
  torch::jit::Stack* const stack;
  const OperatorTraits& traits;
  /// How many threads PyTorch is to use, where that is not as many as it uses now.
  std::optional<int32_t> threads;
};

/// Calls f(tensor) for every defined tensor in `value`, however nested.
template <typename F>
void for_each_tensor(const c10::IValue& value, const F& f) {
  if (value.isTensor()) {
    if (const auto& tensor = value.toTensor(); tensor.defined()) {
      f(tensor);
    }
  } else if (value.isList()) {
    const auto list = value.toListRef();
    for (const auto& element : list) {
      for_each_tensor(element, f);
    }
  } else if (value.isTuple()) {
    for (const auto& element : value.toTupleRef().elements()) {
      for_each_tensor(element, f);
    }
  } else if (value.isGenericDict()) {
    for (const auto& entry : value.toGenericDict()) {
      for_each_tensor(entry.key(), f);
      for_each_tensor(entry.value(), f);
    }
  }
}

template <typename F>
void for_each_tensor(const Call& call, const F& f) {
  for (const auto& argument : call.arguments()) {
    for_each_tensor(argument, f);
  }
}

/// `value` with every tensor in it replaced by f(tensor); lists are copied, everything else is
/// shared.
template <typename F>
c10::IValue map_tensors(const c10::IValue& value, const F& f) {
  if (value.isTensor()) {
    return value.toTensor().defined() ? c10::IValue(f(value.toTensor())) : value;
  }
  if (value.isTensorList()) {
    c10::List<at::Tensor> mapped;
    for (const at::Tensor& element : value.toTensorVector()) {
      mapped.push_back(f(element));
    }
    return mapped;
  }
  if (value.isOptionalTensorList()) {
    c10::List<std::optional<at::Tensor>> mapped;
    for (const std::optional<at::Tensor>& element : value.toOptionalTensorVector()) {
      mapped.push_back(element && element->defined() ? std::make_optional(f(*element))
                                                     : std::nullopt);
    }
    return mapped;
  }
  return value;
}

/// Runs the call with recording off: the kernels below see plain tensors.
void run_below(const Call& call);

}  // namespace dormant::record
