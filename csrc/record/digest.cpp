#include "record/digest.h"

#include <bit>
#include <sstream>
#include <string>
#include <string_view>
#include <type_traits>
#include <unordered_map>

#include "record/lazy_storage.h"
#include "record/node.h"
#include "record/operator_traits.h"

namespace dormant::record {
namespace {

/// FNV-1a, the same in every process.
class Hash {
 public:
  void add(const void* bytes, size_t count) {
    for (size_t i = 0; i < count; ++i) {
      value_ = (value_ ^ static_cast<const unsigned char*>(bytes)[i]) * 0x100000001b3ULL;
    }
    any_ = true;
  }
  void add(std::string_view text) { add(text.data(), text.size()); }
  template <typename T>
    requires std::is_arithmetic_v<T>
  void add(T number) {
    add(&number, sizeof number);
  }
  std::optional<uint64_t> value() const { return any_ ? std::optional(value_) : std::nullopt; }

 private:
  uint64_t value_ = 0xcbf29ce484222325ULL;
  bool any_ = false;
};

void add_position(Hash& hash, const random::Position& position) {
  const auto engine = position.engine();
  hash.add(engine.next_);
  hash.add(engine.left_);
  hash.add(engine.state_.data(), sizeof engine.state_);
  hash.add(position.cached_normal().value_or(0));
}

void add_draw(Hash& hash, const Node& node) {
  hash.add(full_name(node.op));
  for (const auto& operand : node.operands) {
    if (operand.written) {
      hash.add(operand.geometry.numel());
    }
  }
  add_position(hash, *node.position);
}

/// Zeros are left out: a part that is padded has them, another has not.
void add_fill(Hash& hash, const Node& node) {
  for (const auto& argument : node.arguments) {
    const auto* value = std::get_if<c10::IValue>(&argument);
    if (value == nullptr || !value->isScalar()) {
      continue;
    }
    const auto number = value->toScalar().toComplexDouble();
    if (number != c10::complex<double>(0)) {
      hash.add(number.real());
      hash.add(number.imag());
    }
  }
}

void add_geometry(Hash& hash, const Geometry& geometry) {
  hash.add(geometry.sizes.size());
  for (size_t i = 0; i < geometry.sizes.size(); ++i) {
    hash.add(geometry.sizes[i]);
    hash.add(geometry.strides[i]);
  }
  hash.add(geometry.offset);
  hash.add(static_cast<int>(geometry.dtype));
  hash.add(geometry.wrapped_number);
  hash.add(geometry.conjugate);
  hash.add(geometry.negative);
}

void add_argument(Hash& hash, const Argument& argument) {
  hash.add(argument.index());
  if (const auto* value = std::get_if<c10::IValue>(&argument)) {
    std::ostringstream text;
    text.precision(17);
    text << value->tagKind() << *value;
    hash.add(text.str());
  } else if (const auto* slot = std::get_if<TensorSlot>(&argument)) {
    hash.add(slot->operand);
  } else if (const auto* list = std::get_if<TensorListSlot>(&argument)) {
    hash.add(list->operands.size());
    hash.add(list->operands.data(), list->operands.size() * sizeof list->operands[0]);
  }
}

void add_source(Hash& hash, const Node& node) {
  const std::string_view name = node.source->name();
  hash.add(name.substr(name.rfind('/') + 1));
  hash.add(node.source_offset);
}

/// What nodes and buffers are called in the hash: in the order in which they are met.
using Numbers = std::unordered_map<const void*, size_t>;

size_t number_of(Numbers& numbers, const void* thing) {
  return thing == nullptr ? 0 : numbers.try_emplace(thing, numbers.size() + 1).first->second;
}

void add_operand(Hash& hash, const Operand& operand, Numbers& numbers) {
  add_geometry(hash, operand.geometry);
  hash.add(operand.written);
  hash.add(number_of(numbers, operand.buffer.get()));
  hash.add(number_of(numbers, operand.before.get()));
  if (operand.buffer) {
    hash.add(operand.buffer->nbytes);
  } else if (operand.captured.defined()) {
    hash.add(operand.captured.storage().data(), operand.captured.storage().nbytes());
  }
}

void add_node(Hash& hash, const Node& node, Numbers& numbers) {
  hash.add(number_of(numbers, &node));
  hash.add(static_cast<int>(node.kind));
  hash.add(full_name(node.op));
  for (const auto& argument : node.arguments) {
    add_argument(hash, argument);
  }
  for (const auto& operand : node.operands) {
    add_operand(hash, operand, numbers);
  }
  if (node.position) {
    add_position(hash, *node.position);
  }
  if (node.source) {
    add_source(hash, node);
  }
  if (node.quantizer) {
    hash.add(node.quantizer->name());
  }
  if (node.decoder) {
    hash.add(node.decoder->name());
  }
}

}  // namespace

std::optional<uint64_t> digest(const at::Tensor& tensor) {
  Hash hash;
  const auto history = history_of(tensor);
  if (history) {
    for (const auto* node : closure({history->tail.get()})) {
      if (node->position) {
        add_draw(hash, *node);
      } else if (traits_of(node->op).write == WriteRule::value) {
        add_fill(hash, *node);
      }
    }
  }
  return hash.value();
}

uint64_t history_digest(const at::Tensor& tensor) {
  const auto history = history_of(tensor);
  if (!history) {
    return 0;
  }
  Hash hash;
  Numbers numbers;
  hash.add(history->buffer->nbytes);
  for (const auto* node : closure({history->tail.get()})) {
    add_node(hash, *node, numbers);
  }
  hash.add(number_of(numbers, history->buffer.get()));
  return hash.value().value_or(0);
}

}  // namespace dormant::record
