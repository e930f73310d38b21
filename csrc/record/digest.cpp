#include "record/digest.h"

#include <bit>
#include <string>
#include <type_traits>

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
  void add(const std::string& text) { add(text.data(), text.size()); }
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

void add_draw(Hash& hash, const Node& node) {
  hash.add(full_name(node.op));
  for (const auto& operand : node.operands) {
    if (operand.written) {
      hash.add(operand.geometry.numel());
    }
  }
  const auto engine = node.position->engine();
  hash.add(engine.next_);
  hash.add(engine.left_);
  hash.add(engine.state_.data(), sizeof engine.state_);
  hash.add(node.position->cached_normal().value_or(0));
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

}  // namespace dormant::record
