#include "record/recipe.h"

#include <ATen/core/dispatch/Dispatcher.h>
#include <c10/util/Exception.h>

#include <nlohmann/json.hpp>
#include <unordered_map>
#include <utility>

#include "record/lazy_storage.h"
#include "record/node.h"
#include "record/operator_traits.h"
#include "record/recipe_value.h"

namespace dormant::record {
namespace {

using nlohmann::json;

// Raised when a reader of the old version would misread a document. Other node kinds are new values
// of "kind".
constexpr int kSchemaVersion = 1;
constexpr const char* kSchemaName = "dormant.recipe";

constexpr const char* kInPlace = "in_place";
constexpr const char* kFunctional = "functional";

std::string to_hex(std::string_view bytes) {
  constexpr char kDigits[] = "0123456789abcdef";
  std::string text;
  text.reserve(bytes.size() * 2);
  for (const char c : bytes) {
    const auto byte = static_cast<unsigned char>(c);
    text.push_back(kDigits[byte >> 4]);
    text.push_back(kDigits[byte & 15]);
  }
  return text;
}

std::string from_hex(const std::string& text) {
  const auto digit = [&](char c) -> unsigned {
    if (c >= '0' && c <= '9') {
      return static_cast<unsigned>(c - '0');
    }
    TORCH_CHECK_VALUE(c >= 'a' && c <= 'f', "dormant: recipe: a random position holds '", c,
                      "', which is no hexadecimal digit");
    return static_cast<unsigned>(c - 'a') + 10;
  };
  TORCH_CHECK_VALUE(text.size() % 2 == 0, "dormant: recipe: a random position of odd length ",
                    text.size());
  std::string bytes;
  for (size_t i = 0; i < text.size(); i += 2) {
    bytes.push_back(static_cast<char>(digit(text[i]) * 16 + digit(text[i + 1])));
  }
  return bytes;
}

// ---- writing ----

class Writer {
 public:
  Recipe write(const History& history) {
    document_["schema"] = kSchemaName;
    document_["version"] = kSchemaVersion;
    std::vector<Node*> nodes;
    if (history.tail) {
      nodes = closure({history.tail.get()});
    }
    const auto target = buffer_index(*history.buffer);
    auto encoded = json::array();
    for (size_t i = 0; i < nodes.size(); ++i) {
      node_index_[nodes[i]] = i;
      encoded.push_back(node(*nodes[i]));
    }
    document_["nodes"] = std::move(encoded);
    document_["buffers"] = buffers_;
    document_["target"] = target;
    recipe_.document = document_.dump();
    return std::move(recipe_);
  }

 private:
  size_t buffer_index(const Buffer& buffer) {
    const auto [found, added] = buffer_index_.emplace(&buffer, buffers_.size());
    if (added) {
      buffers_.push_back(buffer.nbytes);
    }
    return found->second;
  }

  static json geometry(const Geometry& g) {
    json encoded = {{"sizes", std::vector<int64_t>(g.sizes.begin(), g.sizes.end())},
                    {"strides", std::vector<int64_t>(g.strides.begin(), g.strides.end())},
                    {"offset", g.offset},
                    {"dtype", static_cast<int>(g.dtype)}};
    if (g.wrapped_number) {
      encoded["number"] = true;
    }
    if (g.conjugate) {
      encoded["conjugate"] = true;
    }
    if (g.negative) {
      encoded["negative"] = true;
    }
    return encoded;
  }

  json operand(const Operand& o) {
    json encoded = {{"geometry", geometry(o.geometry)}};
    if (o.buffer) {
      encoded["buffer"] = buffer_index(*o.buffer);
      encoded["before"] = o.before ? json(node_index_.at(o.before.get())) : json(nullptr);
      encoded["written"] = o.written;
    } else {
      encoded["tensor"] = recipe_.tensors.size();
      recipe_.tensors.push_back(o.captured);
    }
    return encoded;
  }

  static json argument(const Argument& argument) {
    if (const auto* slot = std::get_if<TensorSlot>(&argument)) {
      return {{"t", slot->operand}};
    }
    if (const auto* list = std::get_if<TensorListSlot>(&argument)) {
      return {{list->optional_elements ? "to" : "tl", list->operands}};
    }
    if (std::holds_alternative<GeneratorSlot>(argument)) {
      return {{"g", nullptr}};
    }
    return value_to_json(std::get<c10::IValue>(argument));
  }

  json node(const Node& n) {
    TORCH_CHECK_NOT_IMPLEMENTED(
        n.kind == NodeKind::in_place || n.kind == NodeKind::functional,
        "dormant: recipe: a tensor that is ",
        n.kind == NodeKind::read ? "read from " + n.source->name()
                                 : "quantised as " + n.quantizer->name(),
        " can't be kept as a recipe. Next: dormant.materialize it first, or write it with "
        "dormant.save.");
    json encoded = {{"kind", n.kind == NodeKind::functional ? kFunctional : kInPlace},
                    {"op", n.op.operator_name().name},
                    {"overload", n.op.operator_name().overload_name},
                    {"default_dtype", static_cast<int>(n.default_dtype)},
                    {"threads", n.threads}};
    auto operands = json::array();
    for (const auto& o : n.operands) {
      operands.push_back(operand(o));
    }
    auto arguments = json::array();
    for (const auto& a : n.arguments) {
      arguments.push_back(argument(a));
    }
    encoded["operands"] = std::move(operands);
    encoded["arguments"] = std::move(arguments);
    if (n.kind == NodeKind::functional) {
      encoded["first_result"] = n.first_result;
    }
    if (n.position) {
      encoded["position"] = to_hex(n.position->serialize());
    }
    return encoded;
  }

  json document_;
  Recipe recipe_;
  std::vector<size_t> buffers_;
  std::unordered_map<const Buffer*, size_t> buffer_index_;
  std::unordered_map<const Node*, size_t> node_index_;
};

// ---- reading ----

/// Largest scalar type this build knows; a document from a newer torch may hold others.
c10::ScalarType dtype_from(const json& encoded) {
  const auto number = encoded.get<int>();
  TORCH_CHECK_VALUE(number >= 0 && number < static_cast<int>(c10::ScalarType::Undefined) &&
                        !c10::isQIntType(static_cast<c10::ScalarType>(number)),
                    "dormant: recipe: unknown dtype number ", number);
  return static_cast<c10::ScalarType>(number);
}

class Reader {
 public:
  explicit Reader(c10::ArrayRef<at::Tensor> tensors) : tensors_(tensors) {}

  c10::Storage read(const json& document) {
    TORCH_CHECK_VALUE(document.is_object() && document.value("schema", "") == kSchemaName,
                      "dormant: recipe: not a dormant recipe (field \"schema\" is not \"",
                      kSchemaName, "\")");
    const int version = document.at("version").get<int>();
    TORCH_CHECK_VALUE(version == kSchemaVersion, "dormant: recipe: schema version ", version,
                      ", this release reads ", kSchemaVersion,
                      ". Next: load it with the release that wrote it and materialize it there.");
    for (const auto& nbytes : document.at("buffers")) {
      const auto bytes = nbytes.get<int64_t>();
      TORCH_CHECK_VALUE(bytes >= 0, "dormant: recipe: a storage of ", bytes, " bytes");
      buffers_.push_back(c10::make_intrusive<Buffer>(static_cast<size_t>(bytes)));
    }
    tails_.resize(buffers_.size());
    for (const auto& encoded : document.at("nodes")) {
      node(encoded);
    }
    const auto target = index(document.at("target"), buffers_.size(), "storage");
    return make_first_storage({buffers_[target], tails_[target]});
  }

 private:
  static size_t index(const json& encoded, size_t limit, const char* what) {
    const auto value = encoded.get<int64_t>();
    TORCH_CHECK_VALUE(value >= 0 && static_cast<size_t>(value) < limit, "dormant: recipe: ", what,
                      " number ", value, ", there are ", limit);
    return static_cast<size_t>(value);
  }

  static Geometry geometry(const json& encoded) {
    Geometry g;
    const auto sizes = encoded.at("sizes").get<std::vector<int64_t>>();
    const auto strides = encoded.at("strides").get<std::vector<int64_t>>();
    g.sizes.assign(sizes.begin(), sizes.end());
    g.strides.assign(strides.begin(), strides.end());
    g.offset = encoded.at("offset").get<int64_t>();
    g.dtype = dtype_from(encoded.at("dtype"));
    g.wrapped_number = encoded.value("number", false);
    g.conjugate = encoded.value("conjugate", false);
    g.negative = encoded.value("negative", false);
    return g;
  }

  Operand operand(const json& encoded) {
    Operand o;
    o.geometry = geometry(encoded.at("geometry"));
    const auto needed = o.geometry.nbytes_needed();
    if (encoded.contains("tensor")) {
      o.captured = tensors_[index(encoded.at("tensor"), tensors_.size(), "captured tensor")];
      TORCH_CHECK_VALUE(
          o.captured.defined() && o.captured.is_cpu() &&
              o.captured.sizes() == at::IntArrayRef(o.geometry.sizes) &&
              o.captured.scalar_type() == o.geometry.dtype,
          "dormant: recipe: a captured tensor differs from what the recipe says of it: sizes ",
          at::IntArrayRef(o.geometry.sizes), ", dtype ", o.geometry.dtype);
      if (o.geometry.wrapped_number) {
        o.captured = o.captured.detach().clone();
        o.captured.unsafeGetTensorImpl()->set_wrapped_number(true);
      }
      return o;
    }
    o.buffer = buffers_[index(encoded.at("buffer"), buffers_.size(), "storage")];
    TORCH_CHECK_VALUE(needed <= o.buffer->nbytes, "dormant: recipe: a tensor that needs ", needed,
                      " bytes over a storage of ", o.buffer->nbytes);
    if (!encoded.at("before").is_null()) {
      o.before = nodes_[index(encoded.at("before"), nodes_.size(), "earlier node")];
    }
    o.written = encoded.at("written").get<bool>();
    return o;
  }

  static c10::OperatorHandle find(const json& encoded) {
    const auto name = encoded.at("op").get<std::string>();
    const auto overload = encoded.at("overload").get<std::string>();
    const auto op = c10::Dispatcher::singleton().findSchema({name, overload});
    TORCH_CHECK_VALUE(
        op && may_replay(*op), "dormant: recipe: operator ", name, overload.empty() ? "" : ".",
        overload,
        " is not one that recipes may contain. Cause: the file was written by another release, or "
        "tampered with. Next: do not use it, or load it with the release that wrote it.");
    return *op;
  }

  Argument argument(const json& encoded, const c10::Argument& formal, size_t operands) {
    TORCH_CHECK_VALUE(encoded.is_object() && encoded.size() == 1,
                      "dormant: recipe: malformed argument ", encoded.dump());
    const auto& tag = encoded.begin().key();
    const auto& value = encoded.begin().value();
    if (tag == "t") {
      return TensorSlot{static_cast<int32_t>(index(value, operands, "operand"))};
    }
    if (tag == "tl" || tag == "to") {
      TensorListSlot list{{}, tag == "to"};
      for (const auto& element : value) {
        const bool none = element == -1 && list.optional_elements;
        list.operands.push_back(none ? -1
                                     : static_cast<int32_t>(index(element, operands, "operand")));
      }
      return list;
    }
    if (tag == "g") {
      return GeneratorSlot{};
    }
    return value_from_json(value.is_null() && tag != "n" ? json() : encoded, formal.type());
  }

  void node(const json& encoded) {
    const auto op = find(encoded);
    auto n = c10::make_intrusive<Node>(op);
    const auto kind = encoded.at("kind").get<std::string>();
    TORCH_CHECK_VALUE(kind == kInPlace || kind == kFunctional,
                      "dormant: recipe: unknown kind of node \"", kind,
                      "\". Cause: the file was written by a newer release. Next: load it there.");
    n->kind = kind == kFunctional ? NodeKind::functional : NodeKind::in_place;
    TORCH_CHECK_VALUE(
        (traits_of(op).route == Route::functional) == (n->kind == NodeKind::functional),
        "dormant: recipe: operator ", full_name(op), " recorded as ", kind);
    n->default_dtype = dtype_from(encoded.at("default_dtype"));
    n->threads = std::max(1, encoded.at("threads").get<int>());
    for (const auto& o : encoded.at("operands")) {
      n->operands.push_back(operand(o));
    }
    const auto& formals = op.schema().arguments();
    const auto& arguments = encoded.at("arguments");
    TORCH_CHECK_VALUE(arguments.size() == formals.size(), "dormant: recipe: ", arguments.size(),
                      " arguments for ", full_name(op), ", which takes ", formals.size());
    bool draws = false;
    for (size_t i = 0; i < formals.size(); ++i) {
      n->arguments.push_back(argument(arguments[i], formals[i], n->operands.size()));
      draws = draws || std::holds_alternative<GeneratorSlot>(n->arguments.back());
    }
    if (encoded.contains("position")) {
      n->position =
          random::Position::deserialize(from_hex(encoded.at("position").get<std::string>()));
    }
    TORCH_CHECK_VALUE(!draws || n->position, "dormant: recipe: ", full_name(op),
                      " draws random numbers and has no position");
    n->first_result = n->kind == NodeKind::functional
                          ? index(encoded.at("first_result"), n->operands.size(), "result")
                          : 0;
    check_writes(*n, op);
    n->sequence = next_sequence();
    for (size_t i = 0; i < n->operands.size(); ++i) {
      if (n->operands[i].written) {
        tails_[static_cast<size_t>(
            std::find(buffers_.begin(), buffers_.end(), n->operands[i].buffer) -
            buffers_.begin())] = n;
      }
    }
    nodes_.push_back(std::move(n));
  }

  /// What the operator writes must be exactly what the node says it writes: captured tensors are
  /// shared.
  static void check_writes(const Node& n, const c10::OperatorHandle& op) {
    const auto& written = traits_of(op).written;
    std::vector<bool> expected(n.operands.size(), false);
    for (const auto argument : written) {
      const auto* slot = std::get_if<TensorSlot>(&n.arguments[argument]);
      TORCH_CHECK_VALUE(slot != nullptr, "dormant: recipe: ", full_name(op),
                        " must write a tensor");
      expected[static_cast<size_t>(slot->operand)] = true;
    }
    for (size_t i = 0; i < n.operands.size(); ++i) {
      const bool result = n.kind == NodeKind::functional && i >= n.first_result;
      TORCH_CHECK_VALUE(n.operands[i].written == (expected[i] || result) &&
                            (!n.operands[i].written || n.operands[i].buffer),
                        "dormant: recipe: operand ", i, " of ", full_name(op),
                        " is marked wrongly as written or read");
    }
  }

  c10::ArrayRef<at::Tensor> tensors_;
  std::vector<BufferPtr> buffers_;
  std::vector<NodePtr> tails_;
  std::vector<NodePtr> nodes_;
};

}  // namespace

Recipe dump_recipe(const c10::Storage& storage) {
  const auto history = history_of(storage.unsafeGetStorageImpl());
  TORCH_CHECK_VALUE(history, "dormant: recipe of a storage that already has memory");
  return Writer().write(*history);
}

c10::Storage load_recipe(std::string_view document, c10::ArrayRef<at::Tensor> tensors) {
  try {
    return Reader(tensors).read(json::parse(document));
  } catch (const json::parse_error& error) {
    // The parser's own text quotes the input, which may be anything.
    TORCH_CHECK_VALUE(false, "dormant: recipe: malformed document: not JSON at byte ", error.byte,
                      " of ", document.size());
  } catch (const json::exception& error) {
    TORCH_CHECK_VALUE(false, "dormant: recipe: malformed document: ", error.what());
  }
}

}  // namespace dormant::record
