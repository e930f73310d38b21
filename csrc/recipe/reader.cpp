#include <ATen/core/List.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <optional>
#include <utility>

#include "random/seed_trace.h"
#include "recipe/allowed_operators.h"
#include "recipe/recipe.h"
#include "recipe/value.h"
#include "record/call.h"
#include "record/lazy_storage.h"
#include "record/recorder.h"
#include "record/value_checks.h"
#include "system/dispatch_state.h"
#include "system/refusal.h"
#include "text/printable.h"

namespace dormant::recipe {
namespace {

using nlohmann::json;

constexpr const char* kDamaged =
    " Cause: the document is damaged or was edited, or another release wrote it. Next: write the "
    "recipe again with this release.";

/// Document, steps, step, arguments, list, tensor, sizes; and one more.
constexpr int kDeepest = 8;

/// libgomp ends the process where it cannot start as many threads as it is asked for.
constexpr int64_t kMostThreads = 1024;

/// A tensor that shows the same elements many times costs time and no memory. It has no more
/// elements than this, or than there are bytes in all storages.
constexpr int64_t kMostRepeatedElements = int64_t{1} << 24;

c10::OperatorHandle find_operator(const json& encoded) {
  TORCH_CHECK_VALUE(encoded["operator"].is_string() && encoded["overload"].is_string(),
                    "the name of an operator: got ", encoded["operator"].type_name(), " and ",
                    encoded["overload"].type_name(), ", expected text");
  const auto& name = encoded["operator"].get_ref<const std::string&>();
  const auto& overload = encoded["overload"].get_ref<const std::string&>();
  const auto op = c10::Dispatcher::singleton().findSchema({name, overload});
  TORCH_CHECK_VALUE(op && is_allowed(*op), "operator ", text::in_quotes(name), ", overload ",
                    text::in_quotes(overload), ", is not one that recipes may contain");
  return *op;
}

class Reader {
 public:
  explicit Reader(c10::ArrayRef<at::Tensor> captured) : captured_(captured) {}

  c10::Storage read(const json& document) {
    check_fields(document, "the document", {"schema", "version", "storages", "steps", "target"});
    declare_storages(document["storages"]);
    TORCH_CHECK_VALUE(document["steps"].is_array(), "field \"steps\": got ",
                      document["steps"].type_name(), ", expected an array");
    size_t number = 0;
    for (const auto& encoded : document["steps"]) {
      try {
        step(encoded);
      } catch (const c10::Error& error) {
        if (system::is_exhausted_memory(error)) {
          throw;
        }
        TORCH_CHECK_VALUE(false, "step ", number, ": ", error.what_without_backtrace());
      }
      ++number;
    }
    TORCH_CHECK_VALUE(used_ == captured_.size(), "the steps use ", used_,
                      " captured tensors, there are ", captured_.size());
    return storage(document["target"]).storage;
  }

 private:
  struct DeclaredStorage {
    size_t nbytes;
    c10::Storage storage;  ///< null until a step uses it
  };

  void declare_storages(const json& encoded) {
    TORCH_CHECK_VALUE(encoded.is_array(), "field \"storages\": got ", encoded.type_name(),
                      ", expected an array");
    for (const auto& nbytes : encoded) {
      storages_.push_back(
          {static_cast<size_t>(integer_from_json(nbytes, "bytes of a storage", 0)), {}});
      TORCH_CHECK_VALUE(
          !__builtin_add_overflow(total_nbytes_, static_cast<int64_t>(storages_.back().nbytes),
                                  &total_nbytes_),
          "the storages have more bytes than 64 bits can hold");
    }
  }

  DeclaredStorage& declared(const json& index) {
    return storages_[static_cast<size_t>(integer_from_json(
        index, "the number of a storage", 0, static_cast<int64_t>(storages_.size()) - 1))];
  }

  /// The storage of that number, without history where no step has used it.
  DeclaredStorage& storage(const json& index) {
    auto& found = declared(index);
    if (!found.storage) {
      found.storage = record::make_lazy_storage(found.nbytes);
    }
    return found;
  }

  at::Tensor lazy(const json& encoded) {
    check_fields(encoded, "a tensor", {"storage", "sizes", "strides", "offset", "dtype"},
                 {"conjugate", "negative"});
    const auto geometry = geometry_from_json(encoded);
    const auto& found = storage(encoded["storage"]);
    TORCH_CHECK_VALUE(geometry.nbytes_needed() <= found.nbytes, "a tensor needs ",
                      geometry.nbytes_needed(), " bytes, but its storage has ", found.nbytes);
    TORCH_CHECK_VALUE(geometry.numel() <= std::max(total_nbytes_, kMostRepeatedElements),
                      "a tensor shows ", geometry.numel(),
                      " elements, but all storages together have ", total_nbytes_, " bytes");
    operands_.push_back(&found);
    return record::make_tensor(found.storage, geometry);
  }

  at::Tensor captured(const json& encoded) {
    check_fields(encoded, "a captured tensor", {"captured"}, {"number"});
    const auto index = static_cast<size_t>(
        integer_from_json(encoded["captured"], "the number of a captured tensor", 0));
    TORCH_CHECK_VALUE(index == used_ && index < captured_.size(), "captured tensor ", index,
                      ": expected ", used_, ", the next of ", captured_.size());
    const auto& tensor = captured_[used_++];
    // Recording copies each, so none may be used twice or show few elements many times.
    TORCH_CHECK_VALUE(tensor.defined() && tensor.is_cpu() && tensor.layout() == c10::kStrided &&
                          !tensor.is_quantized() && !record::is_lazy(tensor) &&
                          !tensor.key_set().has(c10::DispatchKey::Python) &&
                          !tensor._is_zerotensor() &&
                          tensor.numel() <= static_cast<int64_t>(record::kCaptureLimit),
                      "captured tensor ", index, " is not a small real tensor on the CPU");
    if (!encoded.contains("number")) {
      return tensor.detach();
    }
    const auto dtype = tensor.scalar_type();
    TORCH_CHECK_VALUE(encoded["number"] == true && tensor.dim() == 0 &&
                          (dtype == c10::kDouble || dtype == c10::kLong || dtype == c10::kBool ||
                           dtype == c10::kComplexDouble),
                      "captured tensor ", index, " of ", tensor.dim(), " dimensions and dtype ",
                      dtype, " is marked as a Python number");
    auto number = tensor.detach().clone();
    number.unsafeGetTensorImpl()->set_wrapped_number(true);
    return number;
  }

  at::Tensor tensor(const json& encoded) {
    return encoded.is_object() && encoded.contains("captured") ? captured(encoded) : lazy(encoded);
  }

  template <typename Element, typename Convert>
  static c10::IValue tensors(const json& encoded, const Convert& convert) {
    TORCH_CHECK_VALUE(encoded.is_array(), "a list of tensors: got ", encoded.type_name());
    c10::List<Element> list;
    for (const auto& element : encoded) {
      list.push_back(convert(element));
    }
    return list;
  }

  c10::IValue argument(const json& encoded, const c10::Argument& formal) {
    using Optional = std::optional<at::Tensor>;
    const auto& type = *formal.type();
    if (type.isSubtypeOf(*c10::TensorType::get())) {
      return tensor(encoded);
    }
    if (type.isSubtypeOf(*c10::ListType::ofTensors())) {
      return tensors<at::Tensor>(encoded, [&](const json& element) { return tensor(element); });
    }
    if (type.isSubtypeOf(*c10::ListType::ofOptionalTensors())) {
      return tensors<Optional>(encoded, [&](const json& element) {
        return element.is_null() ? Optional() : tensor(element);
      });
    }
    if (encoded.is_object() && type.kind() == c10::TypeKind::OptionalType) {
      TORCH_CHECK_VALUE(type.isSubtypeOf(*c10::OptionalType::ofTensor()), "got a tensor, expected ",
                        type.str());
      return tensor(encoded);
    }
    return value_from_json(encoded, formal.real_type());
  }

  void step(const json& encoded) {
    check_fields(encoded, "a step", {"operator", "overload", "arguments", "threads"}, {"results"});
    const auto op = find_operator(encoded);
    const auto& formals = op.schema().arguments();
    const auto& arguments = encoded["arguments"];
    TORCH_CHECK_VALUE(arguments.is_array() && arguments.size() == formals.size(), "got ",
                      arguments.size(), " arguments for ", record::full_name(op), ", expected ",
                      formals.size());
    operands_.clear();
    torch::jit::Stack stack;
    const auto generator = record::traits_of(op).generator;
    for (size_t i = 0; i < formals.size(); ++i) {
      stack.push_back(generator == i ? position_from_json(arguments[i]).restore()
                                     : argument(arguments[i], formals[i]));
    }
    record::Call call(op, c10::DispatchKeySet(c10::DispatchKey::CPU), &stack);
    call.threads = static_cast<int32_t>(
        integer_from_json(encoded["threads"], "a number of threads", 1, kMostThreads));
    TORCH_CHECK_VALUE(!may_crash(op, call.arguments()), record::full_name(op),
                      " of integers that rounds towards zero cannot be in a recipe");
    TORCH_CHECK_VALUE(record::lazy_checked_tensors(call).empty(), record::full_name(op),
                      " would read values of a lazy tensor");
    TORCH_CHECK_VALUE(record::record(call), record::full_name(op),
                      " would not be recorded with these arguments");
    for (const auto* operand : operands_) {
      TORCH_CHECK_VALUE(operand->storage.nbytes() == operand->nbytes, record::full_name(op),
                        " changes a storage of ", operand->nbytes, " bytes to ",
                        operand->storage.nbytes());
    }
    take_results(call, encoded);
  }

  /// The new storages that the call returned get the numbers that the step gives them.
  void take_results(const record::Call& call, const json& encoded) {
    std::vector<at::Tensor> results;
    if (call.traits.route == record::Route::functional) {
      for (const auto& value : *call.stack) {
        record::for_each_tensor(value,
                                [&](const at::Tensor& result) { results.push_back(result); });
      }
    }
    const auto indices = encoded.value("results", json::array());
    TORCH_CHECK_VALUE(indices.is_array() && indices.size() == results.size(),
                      record::full_name(call.op), " has ", results.size(), " results, got ",
                      indices.size());
    for (size_t i = 0; i < results.size(); ++i) {
      auto& result = declared(indices[i]);
      TORCH_CHECK_VALUE(!result.storage, "result ", i, " is a storage that was used before");
      result.storage = results[i].storage();
      TORCH_CHECK_VALUE(result.storage.nbytes() == result.nbytes, "result ", i, " has ",
                        result.storage.nbytes(), " bytes, expected ", result.nbytes);
    }
  }

  c10::ArrayRef<at::Tensor> captured_;
  size_t used_ = 0;  ///< of captured_
  std::vector<DeclaredStorage> storages_;
  int64_t total_nbytes_ = 0;
  std::vector<const DeclaredStorage*> operands_;  ///< of the step that is being read
};

json parse(std::string_view document) {
  try {
    return json::parse(document, [](int depth, json::parse_event_t, json&) {
      TORCH_CHECK_VALUE(depth <= kDeepest, "the document is nested deeper than ", kDeepest);
      return true;
    });
  } catch (const json::exception& error) {
    // The parser's own text quotes the input, which may be anything.
    const auto* parse_error = dynamic_cast<const json::parse_error*>(&error);
    TORCH_CHECK_VALUE(false, "malformed document: not JSON at byte ",
                      parse_error != nullptr ? parse_error->byte : 0, " of ", document.size());
  }
}

void check_schema(const json& document) {
  TORCH_CHECK_VALUE(document.is_object() && document.contains("schema") &&
                        document["schema"] == kSchemaName && document.contains("version"),
                    "the document is not a dormant recipe: it has no field \"schema\" that is \"",
                    kSchemaName, "\", or no \"version\"");
}

}  // namespace

c10::Storage read(std::string_view document, c10::ArrayRef<at::Tensor> tensors) {
  const system::PlainDispatch plain;
  const random::SeparateTrace trace;
  try {
    const auto parsed = parse(document);
    check_schema(parsed);
    const auto version = integer_from_json(parsed["version"], "the version", 0);
    TORCH_CHECK_VALUE(version == kSchemaVersion, "the document has schema version ", version,
                      ", this release reads ", kSchemaVersion);
    return Reader(tensors).read(parsed);
  } catch (const c10::Error& error) {
    if (system::is_exhausted_memory(error)) {
      throw;
    }
    TORCH_CHECK_VALUE(false, "recipe: ", error.what_without_backtrace(), ".", kDamaged);
  }
}

}  // namespace dormant::recipe
