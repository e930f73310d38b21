#include <c10/util/Exception.h>

#include <nlohmann/json.hpp>
#include <unordered_map>
#include <utility>
#include <variant>

#include "recipe/allowed_operators.h"
#include "recipe/recipe.h"
#include "recipe/value.h"
#include "record/lazy_storage.h"
#include "record/node.h"
#include "record/operator_traits.h"

namespace dormant::recipe {
namespace {

using nlohmann::json;

class Writer {
 public:
  Recipe write(const record::History& history) {
    const auto target = index_of(*history.buffer);
    auto steps = json::array();
    if (history.tail) {
      for (const auto* node : record::closure({history.tail.get()})) {
        steps.push_back(step(*node));
      }
    }
    const json document = {{"schema", kSchemaName},
                           {"version", kSchemaVersion},
                           {"storages", std::move(storages_)},
                           {"steps", std::move(steps)},
                           {"target", target}};
    recipe_.document = document.dump();
    return std::move(recipe_);
  }

 private:
  size_t index_of(const record::Buffer& buffer) {
    const auto [found, added] = indices_.emplace(&buffer, storages_.size());
    if (added) {
      storages_.push_back(buffer.nbytes);
    }
    return found->second;
  }

  json tensor(const record::Operand& operand) {
    if (operand.buffer) {
      TORCH_CHECK_NOT_IMPLEMENTED(!operand.geometry.wrapped_number,
                                  "recipe: a lazy tensor that takes part in type "
                                  "promotion as a Python number cannot be written. Next: "
                                  "dormant.materialize the tensor first.");
      auto encoded = to_json(operand.geometry);
      encoded["storage"] = index_of(*operand.buffer);
      return encoded;
    }
    json encoded = {{"captured", recipe_.tensors.size()}};
    if (operand.geometry.wrapped_number) {
      encoded["number"] = true;
    }
    recipe_.tensors.push_back(operand.captured);
    return encoded;
  }

  json argument(const record::Node& node, const record::Argument& argument) {
    const auto operand = [&](int32_t index) {
      return index < 0 ? json() : tensor(node.operands[static_cast<size_t>(index)]);
    };
    if (const auto* slot = std::get_if<record::TensorSlot>(&argument)) {
      return operand(slot->operand);
    }
    if (const auto* list = std::get_if<record::TensorListSlot>(&argument)) {
      auto elements = json::array();
      for (const auto index : list->operands) {
        elements.push_back(operand(index));
      }
      return elements;
    }
    if (std::holds_alternative<record::GeneratorSlot>(argument)) {
      return to_json(*node.position);
    }
    const auto& value = std::get<c10::IValue>(argument);
    return value.isTensor() ? json() : to_json(value);  // a tensor here is an undefined one
  }

  json step(const record::Node& node) {
    TORCH_CHECK_NOT_IMPLEMENTED(
        node.kind == record::NodeKind::in_place || node.kind == record::NodeKind::functional,
        "recipe: a tensor that is ",
        node.kind == record::NodeKind::read       ? "read from " + node.source->name()
        : node.kind == record::NodeKind::quantize ? "quantized as " + node.quantizer->name()
                                                  : "decoded from " + node.decoder->name(),
        " cannot be written as a recipe. Next: dormant.materialize it first, or write it with "
        "dormant.save.");
    TORCH_CHECK_NOT_IMPLEMENTED(is_allowed(node.op), "recipe: a tensor made by ",
                                record::full_name(node.op),
                                " cannot be written as a recipe. Cause: the operator is not on the "
                                "list of those that recipes "
                                "may contain. Next: dormant.materialize the tensor first.");
    const auto checked = record::traits_of(node.op).checked;
    const auto* parameter =
        checked ? std::get_if<record::TensorSlot>(&node.arguments[*checked]) : nullptr;
    TORCH_CHECK_NOT_IMPLEMENTED(
        parameter == nullptr || !node.operands[static_cast<size_t>(parameter->operand)].buffer,
        "recipe: a tensor made by ", record::full_name(node.op),
        " cannot be written as a recipe. Cause: reading it would require the values of another "
        "lazy tensor. Next: dormant.materialize the tensor first.");
    auto arguments = json::array();
    for (const auto& one : node.arguments) {
      arguments.push_back(argument(node, one));
    }
    json encoded = {{"operator", node.op.operator_name().name},
                    {"overload", node.op.operator_name().overload_name},
                    {"arguments", std::move(arguments)},
                    {"threads", node.threads}};
    if (node.kind == record::NodeKind::functional) {
      auto& results = encoded["results"] = json::array();
      for (size_t i = node.first_result; i < node.operands.size(); ++i) {
        results.push_back(index_of(*node.operands[i].buffer));
      }
    }
    return encoded;
  }

  Recipe recipe_;
  std::vector<size_t> storages_;
  std::unordered_map<const record::Buffer*, size_t> indices_;
};

}  // namespace

Recipe write(const c10::Storage& storage) {
  const auto history = record::history_of(storage.unsafeGetStorageImpl());
  TORCH_CHECK_VALUE(history, "recipe of a storage that already has memory");
  return Writer().write(*history);
}

}  // namespace dormant::recipe
