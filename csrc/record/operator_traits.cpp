#include "record/operator_traits.h"

#include <ATen/core/enum_tag.h>

#include <algorithm>
#include <string>
#include <string_view>
#include <unordered_map>

namespace dormant::record {
namespace {

/// Operators on lists of tensors, whose CompositeExplicit kernels call the operator of each tensor.
bool works_on_lists(std::string_view name) { return name.starts_with("_foreach_"); }

bool is_tensor(const c10::Argument& argument) {
  return argument.type()->kind() == c10::TypeKind::TensorType;
}

bool is_tensor_list(const c10::Argument& argument) {
  return argument.type()->isSubtypeOf(*c10::ListType::ofTensors());
}

/// Indices of the arguments that are written, tensors and lists of them.
std::vector<size_t> written_arguments(const c10::FunctionSchema& schema) {
  std::vector<size_t> written;
  for (size_t i = 0; i < schema.arguments().size(); ++i) {
    const auto* alias = schema.arguments()[i].alias_info();
    if (alias != nullptr && alias->isWrite()) {
      written.push_back(i);
    }
  }
  return written;
}

/// Fills the tables of an operator that writes arguments. False if one of them can't be described.
bool describe_writes(const c10::FunctionSchema& schema, OperatorTraits& traits) {
  const auto& arguments = schema.arguments();
  traits.written = written_arguments(schema);
  for (const auto i : traits.written) {
    if (!is_tensor(arguments[i])) {
      return false;
    }
  }
  for (const auto& result : schema.returns()) {
    const auto* alias = result.alias_info();
    if (alias == nullptr || !alias->isWrite()) {
      return false;
    }
    const auto source = std::find_if(traits.written.begin(), traits.written.end(), [&](size_t i) {
      return arguments[i].alias_info()->beforeSets() == alias->beforeSets();
    });
    if (source == traits.written.end()) {
      return false;
    }
    traits.return_alias.push_back(*source);
  }
  return true;
}

Route route_of(const c10::OperatorHandle& op, std::string_view name, OperatorTraits& traits) {
  const auto& schema = op.schema();
  const auto has_kernel = [&](c10::DispatchKey key) { return op.hasKernelForDispatchKey(key); };
  if (name == "empty" && schema.overload_name() == "memory_format") {
    return Route::make_empty;
  }
  if (name == "empty_strided") {
    return Route::make_empty;
  }
  if (name == "set_") {
    return Route::set_storage;
  }
  if (name == "resize_") {
    return Route::resize;
  }
  if (traits.kind == Kind::metadata) {
    return Route::metadata;
  }
  if (name == "repeat_interleave" && schema.overload_name() != "self_int") {
    return Route::real;  // its size is the sum of the repeats
  }
  if (traits.kind == Kind::real) {
    return Route::real;
  }
  if (traits.factory || traits.kind == Kind::composite || works_on_lists(name)) {
    for (const auto key : {c10::DispatchKey::CompositeExplicitAutograd,
                           c10::DispatchKey::CompositeExplicitAutogradNonFunctional}) {
      if (has_kernel(key)) {
        traits.composite_key = key;
        traits.below_autograd = true;
        traits.written = written_arguments(schema);
        return Route::decompose;
      }
    }
  }
  if (has_kernel(c10::DispatchKey::CompositeImplicitAutograd) &&
      !has_kernel(c10::DispatchKey::CPU)) {
    return Route::decompose;
  }
  const bool writes = schema.is_mutable();
  const bool aliases =
      std::any_of(schema.returns().begin(), schema.returns().end(),
                  [](const auto& result) { return result.alias_info() != nullptr; });
  if (!writes && aliases) {
    return Route::view;
  }
  // An index of numbers tells the shape, a mask doesn't: values_in_range refuses those.
  const bool by_mask_only = traits.index == IndexRule::per_element;
  if (op.hasTag(at::Tag::data_dependent_output) ||
      (op.hasTag(at::Tag::dynamic_output_shape) && !by_mask_only)) {
    return Route::real;
  }
  if (writes) {
    return !op.hasTag(at::Tag::inplace_view) && describe_writes(schema, traits) ? Route::in_place
                                                                                : Route::real;
  }
  const bool only_tensors =
      !schema.returns().empty() &&
      std::all_of(schema.returns().begin(), schema.returns().end(),
                  [](const auto& result) { return is_tensor(result) || is_tensor_list(result); });
  return only_tensors ? Route::functional : Route::real;
}

/// The argument whose values `rule` is about, where it is a tensor.
std::optional<size_t> checked_argument(const c10::FunctionSchema& schema, ValueRule rule) {
  const auto position = [&](const char* name) { return schema.argumentIndexWithName(name); };
  std::optional<int> found;
  switch (rule) {
    case ValueRule::none:
      break;
    case ValueRule::deviation:
      found = position("std");
      break;
    case ValueRule::probability:
      found = position("p") ? position("p") : position("self");
      break;
    case ValueRule::weights:
      found = position("self");
      break;
  }
  return found && is_tensor(schema.arguments()[static_cast<size_t>(*found)])
             ? std::optional<size_t>(*found)
             : std::nullopt;
}

OperatorTraits describe(const c10::OperatorHandle& op) {
  OperatorTraits traits;
  const std::string& full = op.operator_name().name;
  constexpr std::string_view kNamespace = "aten::";
  if (!full.starts_with(kNamespace)) {
    return traits;  // another namespace: collectives, custom operators; they may read raw pointers
  }
  const std::string_view name = std::string_view(full).substr(kNamespace.size());
  const auto& overload = op.operator_name().overload_name;
  const auto& schema = op.schema();
  static_cast<OperatorFacts&>(traits) = facts_of(name);
  traits.factory = traits.kind == Kind::factory;
  traits.movement = traits.factory || traits.kind == Kind::composite ||
                    traits.kind == Kind::movement || traits.kind == Kind::overwrite;
  traits.generator = random::generator_argument(schema);
  traits.random = op.hasTag(at::Tag::nondeterministic_seeded) || traits.generator;
  traits.law = random::law_of(op);
  traits.write_only = traits.kind == Kind::overwrite || overload.find("out") != std::string::npos;
  traits.autocast = op.hasKernelForDispatchKey(c10::DispatchKey::AutocastCPU);
  traits.checked = checked_argument(schema, traits.values);
  traits.route = route_of(op, name, traits);
  return traits;
}

}  // namespace

const OperatorTraits& traits_of(const c10::OperatorHandle& op) {
  // Keyed by the address of the schema, which is stable while the operator is registered and,
  // unlike its name, needs no hashing of a string on every call.
  thread_local std::unordered_map<const c10::FunctionSchema*, OperatorTraits> cache;
  const auto* key = &op.schema();
  const auto found = cache.find(key);
  return found != cache.end() ? found->second : cache.emplace(key, describe(op)).first->second;
}

}  // namespace dormant::record
