#include "checkpoint/pickle.h"

#include <c10/util/Exception.h>

#include <algorithm>
#include <utility>

#include "checkpoint/pickle_machine.h"
#include "checkpoint/pickle_text.h"
#include "text/printable.h"

namespace dormant::checkpoint {
namespace {

constexpr size_t kDescribed = 60;  // bytes of a value in a message

const char* name_of(PickleKind kind) {
  switch (kind) {
    case PickleKind::none:
      return "NoneType";
    case PickleKind::boolean:
      return "bool";
    case PickleKind::integer:
      return "int";
    case PickleKind::real:
      return "float";
    case PickleKind::text:
      return "str";
    case PickleKind::bytes:
      return "bytes";
    case PickleKind::bytearray:
      return "bytearray";
    case PickleKind::list:
      return "list";
    case PickleKind::tuple:
      return "tuple";
    case PickleKind::dict:
      return "dict";
    case PickleKind::set:
      return "set";
    case PickleKind::frozenset:
      return "frozenset";
    case PickleKind::global:
      return "class or function";
    case PickleKind::record:
      return "object";
    case PickleKind::persistent:
      return "reference to a storage";
  }
  return "value";
}

std::string full_name(const PickleGlobal& global) {
  return text::printable(c10::str(global.module, ".", global.name));
}

}  // namespace

Pickle Pickle::parse(std::string data, std::string where) {
  Pickle pickle(std::move(where));
  pickle.data_ = std::move(data);
  PickleMachine(pickle, nullptr, 0).run();
  return pickle;
}

Pickle Pickle::read(const File& file, uint64_t offset, std::string where) {
  Pickle pickle(std::move(where));
  PickleMachine(pickle, &file, offset).run();
  return pickle;
}

std::optional<int64_t> Pickle::integer(PickleId id) const noexcept {
  const auto& value = values_[id];
  return value.elsewhere ? std::nullopt : std::optional(value.integer);
}

std::string_view Pickle::wide_integer(PickleId id) const noexcept {
  const auto& text = values_[id].text;
  return std::string_view(decoded_).substr(text.begin, text.size);
}

std::string_view Pickle::text(PickleId id) const noexcept {
  const auto& value = values_[id];
  return std::string_view(value.elsewhere ? decoded_ : data_)
      .substr(value.text.begin, value.text.size);
}

std::span<const PickleId> Pickle::items(PickleId id) const noexcept {
  return containers_[values_[id].place];
}

PickleGlobal Pickle::global(PickleId id) const noexcept {
  const auto& [module, name] = globals_[values_[id].place];
  return {module, name};
}

bool Pickle::is_global(PickleId id, std::string_view module, std::string_view name) const noexcept {
  return is(id, PickleKind::global) && global(id) == PickleGlobal{module, name};
}

bool Pickle::is_call(PickleId id, std::string_view module, std::string_view name) const noexcept {
  return is(id, PickleKind::record) && is_global(record(id).callable, module, name);
}

std::optional<PickleId> Pickle::find(PickleId dict, std::string_view key) const noexcept {
  const auto entries = items(dict);
  for (size_t i = entries.size(); i > 0; i -= 2) {
    if (is(entries[i - 2], PickleKind::text) && text(entries[i - 2]) == key) {
      return entries[i - 1];
    }
  }
  return std::nullopt;
}

std::string Pickle::describe(PickleId id) const {
  const std::string kind = name_of(this->kind(id));
  switch (this->kind(id)) {
    case PickleKind::boolean:
      return boolean(id) ? "bool True" : "bool False";
    case PickleKind::integer: {
      const auto value = integer(id);
      return value ? c10::str("int ", *value)
                   : c10::str("int of ", 8 * wide_integer(id).size(), " bits");
    }
    case PickleKind::text:
    case PickleKind::bytes:
      return c10::str(kind, " ", text::in_quotes(text(id).substr(0, kDescribed)),
                      text(id).size() > kDescribed ? "..." : "");
    case PickleKind::global:
      return full_name(global(id));
    case PickleKind::record:
      return is(record(id).callable, PickleKind::global)
                 ? "object of " + full_name(global(record(id).callable))
                 : kind;
    default:
      return kind;
  }
}

}  // namespace dormant::checkpoint
