// The tensors of a model by name.
#pragma once

#include <ATen/core/Tensor.h>

#include <string>
#include <type_traits>
#include <utility>
#include <vector>

namespace dormant {

using NamedTensors = std::vector<std::pair<std::string, at::Tensor>>;

/// A torch::nn::Module, or a class with the same functions for tensors and children.
template <typename Module>
concept ModuleLike = requires(const Module& module) {
  module.named_parameters(false);
  module.named_buffers(false);
  module.named_children();
};

/// A module holder (torch::nn::Linear and the like) or a shared_ptr to a module.
template <typename Holder>
concept ModuleHolderLike =
    requires(const Holder& holder) { requires ModuleLike<std::remove_cvref_t<decltype(*holder)>>; };

/// Parameters and buffers of a module and its children, in the order of a state dict: the tensors
/// of a module come before those of its children. Tied tensors are listed under each name.
template <ModuleLike Module>
NamedTensors named_tensors(const Module& module, const std::string& prefix = "") {
  NamedTensors tensors;
  for (const auto& parameter : module.named_parameters(false)) {
    tensors.emplace_back(prefix + parameter.key(), parameter.value());
  }
  for (const auto& buffer : module.named_buffers(false)) {
    tensors.emplace_back(prefix + buffer.key(), buffer.value());
  }
  for (const auto& child : module.named_children()) {
    auto below = named_tensors(*child.value(), prefix + child.key() + ".");
    tensors.insert(tensors.end(), below.begin(), below.end());
  }
  return tensors;
}

template <ModuleHolderLike Holder>
NamedTensors named_tensors(const Holder& holder, const std::string& prefix = "") {
  return named_tensors(*holder, prefix);
}

}  // namespace dormant
