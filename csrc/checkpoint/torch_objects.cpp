#include "checkpoint/torch_objects.h"

#include <c10/util/ArrayRef.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <array>
#include <utility>

#include "checkpoint/safetensors.h"
#include "text/printable.h"

namespace dormant::checkpoint {
namespace {

using c10::ScalarType;
using text::in_quotes;

constexpr const char* kDamaged = "Cause: the file is damaged. Next: download or save it again.";
constexpr size_t kMostWrappers = 8;  // a parameter of a subclass of a tensor has two

struct Named {
  std::string_view name;
  ScalarType dtype;
};

// torch.FloatStorage and so on (torch/storage.py, _dtype_to_storage_type_map).
constexpr std::array kStorages = {
    Named{"DoubleStorage", ScalarType::Double},
    Named{"FloatStorage", ScalarType::Float},
    Named{"HalfStorage", ScalarType::Half},
    Named{"BFloat16Storage", ScalarType::BFloat16},
    Named{"LongStorage", ScalarType::Long},
    Named{"IntStorage", ScalarType::Int},
    Named{"ShortStorage", ScalarType::Short},
    Named{"CharStorage", ScalarType::Char},
    Named{"ByteStorage", ScalarType::Byte},
    Named{"BoolStorage", ScalarType::Bool},
    Named{"ComplexDoubleStorage", ScalarType::ComplexDouble},
    Named{"ComplexFloatStorage", ScalarType::ComplexFloat},
    Named{"UntypedStorage", ScalarType::Byte},
};

constexpr std::array kDtypes = {
    Named{"float64", ScalarType::Double},
    Named{"float32", ScalarType::Float},
    Named{"float16", ScalarType::Half},
    Named{"bfloat16", ScalarType::BFloat16},
    Named{"float8_e4m3fn", ScalarType::Float8_e4m3fn},
    Named{"float8_e5m2", ScalarType::Float8_e5m2},
    Named{"float8_e4m3fnuz", ScalarType::Float8_e4m3fnuz},
    Named{"float8_e5m2fnuz", ScalarType::Float8_e5m2fnuz},
    Named{"float8_e8m0fnu", ScalarType::Float8_e8m0fnu},
    Named{"float4_e2m1fn_x2", ScalarType::Float4_e2m1fn_x2},
    Named{"complex32", ScalarType::ComplexHalf},
    Named{"complex64", ScalarType::ComplexFloat},
    Named{"complex128", ScalarType::ComplexDouble},
    Named{"bool", ScalarType::Bool},
    Named{"uint8", ScalarType::Byte},
    Named{"uint16", ScalarType::UInt16},
    Named{"uint32", ScalarType::UInt32},
    Named{"uint64", ScalarType::UInt64},
    Named{"int8", ScalarType::Char},
    Named{"int16", ScalarType::Short},
    Named{"int32", ScalarType::Int},
    Named{"int64", ScalarType::Long},
};

// Functions of torch._utils whose tensors are not views of bytes in the file.
struct Kind {
  std::string_view function;
  std::string_view what;
};
constexpr std::array kWithoutBytes = {
    Kind{"_rebuild_sparse_tensor", "a sparse tensor"},
    Kind{"_rebuild_sparse_csr_tensor", "a sparse tensor"},
    Kind{"_rebuild_nested_tensor", "a nested tensor"},
    Kind{"_rebuild_qtensor", "a quantized tensor"},
    Kind{"_rebuild_meta_tensor_no_storage", "a tensor of the meta device"},
    Kind{"_rebuild_wrapper_subclass", "a tensor subclass"},
    Kind{"_rebuild_device_tensor_from_numpy", "a tensor kept as a numpy array"},
    Kind{"_rebuild_device_tensor_from_cpu_tensor", "a tensor of another device"},
};

template <typename Row, size_t N>
const Row* find(const std::array<Row, N>& rows, std::string_view Row::* field,
                std::string_view name) {
  const auto* found =
      std::find_if(rows.begin(), rows.end(), [&](const Row& row) { return row.*field == name; });
  return found == rows.end() ? nullptr : found;
}

bool is_rebuild(const PickleGlobal& function) {
  return function.module == "torch._utils" &&
         (function.name == "_rebuild_tensor" || function.name == "_rebuild_tensor_v2" ||
          function.name == "_rebuild_tensor_v3");
}

bool is_parameter(const PickleGlobal& function) {
  return function.module == "torch._utils" && (function.name == "_rebuild_parameter" ||
                                               function.name == "_rebuild_parameter_with_state");
}

bool is_wrapper(const PickleGlobal& function) {
  return function.module == "torch._tensor" &&
         (function.name == "_rebuild_from_type" || function.name == "_rebuild_from_type_v2");
}

/// torch.Tensor, torch.cuda.FloatTensor and so on, called to make an empty or new one.
bool is_tensor_class(const PickleGlobal& function) {
  return (function.module == "torch" || function.module.starts_with("torch.")) &&
         (function.name.ends_with("Tensor") || function.name == "Parameter") &&
         !function.name.starts_with('_');
}

}  // namespace

std::optional<ScalarType> dtype_named(std::string_view name) {
  const auto* found = find(kDtypes, &Named::name, name);
  return found == nullptr ? std::nullopt : std::make_optional(found->dtype);
}

uint64_t TorchTensor::nbytes() const {
  uint64_t numel = 1;
  for (const auto size : sizes) {
    numel *= static_cast<uint64_t>(size);
  }
  return numel * c10::elementSize(dtype);
}

TorchObjects::TorchObjects(const Pickle& pickle) : pickle_(pickle) {
  for (PickleId id = 0; id < pickle.size(); ++id) {
    if (pickle.is(id, PickleKind::persistent)) {
      read_storage(id);
    }
  }
}

/// A reference has five fields, six in the older layout (torch/serialization.py, persistent_id).
void TorchObjects::read_storage(PickleId id) {
  const auto name = pickle_.persistent(id);
  const auto about = [&] {
    return c10::str("open_checkpoint: ", pickle_.where(), ": at its byte ", pickle_.offset(id),
                    " ");
  };
  const bool is_tuple = pickle_.is(name, PickleKind::tuple);
  const auto fields = is_tuple ? pickle_.items(name) : std::span<const PickleId>();
  const auto is_text = [&](size_t i, std::string_view text) {
    return pickle_.is(fields[i], PickleKind::text) && pickle_.text(fields[i]) == text;
  };
  if (fields.size() == 4 && is_text(0, "module")) {
    return;  // the older layout's way to keep the source of a class beside it
  }
  TORCH_CHECK_VALUE(fields.size() == 5 || fields.size() == 6, about(),
                    "a reference to a storage is ", pickle_.describe(name), " with ", fields.size(),
                    " fields, expected a tuple of 5 or 6. ", kDamaged);
  TORCH_CHECK_VALUE(is_text(0, "storage"), about(), "is a reference to ",
                    pickle_.describe(fields[0]), ", expected one to a storage. ", kDamaged);
  const auto* type = pickle_.is(fields[1], PickleKind::global)
                         ? find(kStorages, &Named::name, pickle_.global(fields[1]).name)
                         : nullptr;
  TORCH_CHECK_VALUE(type != nullptr && pickle_.global(fields[1]).module.starts_with("torch"),
                    about(), "a storage has type ", pickle_.describe(fields[1]),
                    ", expected one of PyTorch. ", kDamaged);
  TORCH_CHECK_VALUE(pickle_.is(fields[2], PickleKind::text), about(), "a storage has key ",
                    pickle_.describe(fields[2]), ", expected text. ", kDamaged);
  const std::string key(pickle_.text(fields[2]));
  TORCH_CHECK_VALUE(pickle_.is(fields[3], PickleKind::text), about(), "storage ", in_quotes(key),
                    " is of device ", pickle_.describe(fields[3]), ", expected text. ", kDamaged);
  const auto count = [&](PickleId number) -> std::optional<uint64_t> {
    if (pickle_.is(number, PickleKind::integer) && pickle_.integer(number).value_or(-1) >= 0) {
      return static_cast<uint64_t>(*pickle_.integer(number));
    }
    return std::nullopt;
  };
  const auto numel = count(fields[4]);
  uint64_t nbytes = 0;
  TORCH_CHECK_VALUE(
      numel && !__builtin_mul_overflow(*numel, c10::elementSize(type->dtype), &nbytes), about(),
      "storage ", in_quotes(key), " has ", pickle_.describe(fields[4]),
      " elements, expected a number that a file can hold. ", kDamaged);
  Reference reference{key, 0, *numel};
  if (fields.size() == 6 && !pickle_.is(fields[5], PickleKind::none)) {
    const auto view = pickle_.is(fields[5], PickleKind::tuple) ? pickle_.items(fields[5])
                                                               : std::span<const PickleId>();
    const bool whole = view.size() == 3 && pickle_.is(view[0], PickleKind::text);
    const auto offset = whole ? count(view[1]) : std::nullopt;
    const auto part = whole ? count(view[2]) : std::nullopt;
    TORCH_CHECK_VALUE(offset && part, about(), "a view of storage ", in_quotes(key), " is ",
                      pickle_.describe(fields[5]),
                      ", expected a key, an offset and a number of elements. ", kDamaged);
    TORCH_CHECK_VALUE(*offset <= *numel && *part <= *numel - *offset, about(), "a view of storage ",
                      in_quotes(key), " has ", *part, " elements from element ", *offset,
                      " on, but the storage has ", *numel, ". ", kDamaged);
    reference.offset = *offset;
    reference.numel = *part;
  }
  const TorchStorage storage{key, type->dtype, *numel, nbytes,
                             std::string(pickle_.text(fields[3]))};
  const auto [known, added] = storages_.try_emplace(key, storage);
  TORCH_CHECK_VALUE(
      added || (known->second.dtype == storage.dtype && known->second.numel == storage.numel),
      about(), "storage ", in_quotes(key), " has ", storage.numel, " ", storage.dtype, " here, ",
      known->second.numel, " ", known->second.dtype, " before. ", kDamaged);
  references_.emplace(id, std::move(reference));
}

std::optional<TorchObjects::Call> TorchObjects::call(PickleId id) const {
  if (!pickle_.is(id, PickleKind::record)) {
    return std::nullopt;
  }
  const auto& record = pickle_.record(id);
  if (!pickle_.is(record.callable, PickleKind::global)) {
    return std::nullopt;
  }
  Call call{pickle_.global(record.callable), pickle_.items(record.arguments)};
  for (size_t i = 0; i < kMostWrappers && is_wrapper(call.function); ++i) {
    const auto& arguments = call.arguments;
    if (arguments.size() != 4 || !pickle_.is(arguments[0], PickleKind::global) ||
        !pickle_.is(arguments[2], PickleKind::tuple)) {
      return call;
    }
    const bool plain_type = pickle_.is_global(arguments[1], "torch", "Tensor");
    const bool empty_state =
        pickle_.is(arguments[3], PickleKind::none) ||
        (pickle_.is(arguments[3], PickleKind::dict) && pickle_.items(arguments[3]).empty());
    call = {pickle_.global(arguments[0]), pickle_.items(arguments[2]),
            call.has_attributes || !plain_type || !empty_state};
  }
  return call;
}

std::optional<std::string_view> TorchObjects::without_bytes(const Call& call) const {
  if (call.function.module == "torch._utils") {
    if (const auto* kind = find(kWithoutBytes, &Kind::function, call.function.name)) {
      return kind->what;
    }
  }
  if (call.function.module.find("sparse") != std::string_view::npos &&
      is_tensor_class(call.function)) {
    return "a sparse tensor";
  }
  return std::nullopt;
}

bool TorchObjects::is_tensor(PickleId id) const {
  const auto found = call(id);
  return found &&
         (is_rebuild(found->function) || is_parameter(found->function) ||
          is_wrapper(found->function) || is_tensor_class(found->function) || without_bytes(*found));
}

TorchTensor TorchObjects::tensor(PickleId id, const std::string& where) const {
  TORCH_CHECK_VALUE(is_tensor(id), "open_checkpoint: ", where, " is ", pickle_.describe(id),
                    ", expected a tensor. ", kDamaged);
  auto found = *call(id);
  bool parameter = false;
  bool requires_grad = false;
  bool attributes = found.has_attributes;
  // A parameter has the tensor that it is made of as its first argument.
  for (size_t i = 0; i < kMostWrappers && is_parameter(found.function); ++i) {
    const auto arguments = found.arguments;
    const auto inner = arguments.empty() ? std::nullopt : call(arguments[0]);
    TORCH_CHECK_VALUE(inner && arguments.size() >= 2, "open_checkpoint: ", where,
                      " is a parameter of something that is not a tensor. ", kDamaged);
    parameter = true;
    requires_grad = pickle_.is(arguments[1], PickleKind::boolean) && pickle_.boolean(arguments[1]);
    attributes = attributes || inner->has_attributes ||
                 found.function.name == "_rebuild_parameter_with_state";
    found = *inner;
  }
  if (const auto what = without_bytes(found)) {
    TORCH_CHECK_NOT_IMPLEMENTED(false, "open_checkpoint: ", where, " is ", *what, " (byte ",
                                pickle_.offset(id), " of ", pickle_.where(),
                                "), whose elements are not bytes of the file; expected strided "
                                "tensors. Next: load it with torch.load and save dense tensors.");
  }
  TORCH_CHECK_NOT_IMPLEMENTED(
      is_rebuild(found.function), "open_checkpoint: ", where, " is made by ",
      text::printable(c10::str(found.function.module, ".", found.function.name)), " (byte ",
      pickle_.offset(id), " of ", pickle_.where(),
      "), so its elements are not bytes of the file; expected strided tensors. Next: load it with "
      "torch.load and save dense tensors.");
  auto tensor = rebuilt(found, where);
  tensor.is_parameter = parameter;
  tensor.requires_grad = parameter ? requires_grad : tensor.requires_grad;
  tensor.has_attributes = attributes;
  return tensor;
}

/// `_rebuild_tensor(storage, offset, sizes, strides)`; v2 goes on with requires_grad, hooks and
/// perhaps metadata; v3 has the dtype between the latter.
TorchTensor TorchObjects::rebuilt(const Call& call, const std::string& where) const {
  const auto& arguments = call.arguments;
  const bool has_dtype = call.function.name == "_rebuild_tensor_v3";
  const auto about = [&] { return "open_checkpoint: " + where; };
  const size_t least = has_dtype ? 7 : call.function.name == "_rebuild_tensor" ? 4 : 6;
  TORCH_CHECK_VALUE(arguments.size() >= least && arguments.size() <= least + 1, about(), " has ",
                    arguments.size(), " arguments, expected ", least, ". ", kDamaged);
  const auto reference = references_.find(arguments[0]);
  TORCH_CHECK_VALUE(reference != references_.end(), about(), " has as its storage ",
                    pickle_.describe(arguments[0]), ", expected a storage. ", kDamaged);
  const auto& [key, view_offset, view_numel] = reference->second;
  const auto& storage = storages_.at(key);
  TorchTensor tensor;
  tensor.storage = key;
  tensor.dtype = storage.dtype;
  if (has_dtype) {
    const auto* dtype = pickle_.is(arguments[6], PickleKind::global) &&
                                pickle_.global(arguments[6]).module == "torch"
                            ? find(kDtypes, &Named::name, pickle_.global(arguments[6]).name)
                            : nullptr;
    TORCH_CHECK_VALUE(dtype != nullptr, about(), " has dtype ", pickle_.describe(arguments[6]),
                      ", expected one of PyTorch. ", kDamaged);
    tensor.dtype = dtype->dtype;
  }
  tensor.sizes = numbers(arguments[2], where, "sizes");
  tensor.strides = numbers(arguments[3], where, "strides");
  TORCH_CHECK_VALUE(tensor.sizes.size() <= kMostDimensions, about(), " has ", tensor.sizes.size(),
                    " dimensions, expected at most ", kMostDimensions, ". ", kDamaged);
  TORCH_CHECK_VALUE(tensor.sizes.size() == tensor.strides.size(), about(), " has ",
                    tensor.sizes.size(), " sizes and ", tensor.strides.size(),
                    " strides, expected as many. ", kDamaged);
  const auto offset = pickle_.is(arguments[1], PickleKind::integer)
                          ? pickle_.integer(arguments[1]).value_or(-1)
                          : -1;
  TORCH_CHECK_VALUE(offset >= 0, about(), " begins at element ", pickle_.describe(arguments[1]),
                    " of its storage, expected a non-negative number. ", kDamaged);
  const auto item = c10::elementSize(tensor.dtype);
  const auto begin = view_offset * c10::elementSize(storage.dtype);
  uint64_t numel = 1;
  bool overflows = false;
  bool is_empty = false;
  // Saturated: what is beyond 64 bits is beyond any storage.
  unsigned __int128 last = static_cast<uint64_t>(offset);
  for (size_t i = 0; i < tensor.sizes.size(); ++i) {
    const auto size = static_cast<uint64_t>(tensor.sizes[i]);
    is_empty = is_empty || size == 0;
    overflows = overflows || __builtin_mul_overflow(numel, std::max<uint64_t>(size, 1), &numel);
    last += static_cast<unsigned __int128>(size == 0 ? 0 : size - 1) *
            static_cast<uint64_t>(tensor.strides[i]);
    last = std::min<unsigned __int128>(last, uint64_t{1} << 62);
  }
  const auto end = begin + (is_empty ? static_cast<unsigned __int128>(offset) : last + 1) * item;
  TORCH_CHECK_VALUE(begin % item == 0 && end <= storage.nbytes, about(), ": sizes ",
                    c10::IntArrayRef(tensor.sizes), " and strides ",
                    c10::IntArrayRef(tensor.strides), " of ", tensor.dtype, " end at byte ",
                    static_cast<uint64_t>(std::min<unsigned __int128>(end, ~uint64_t{0})),
                    " of storage ", in_quotes(key), ", which has ", storage.nbytes, " bytes. ",
                    kDamaged);
  TORCH_CHECK_VALUE(!overflows && numel <= (uint64_t{1} << 62) / item, about(), ": sizes ",
                    c10::IntArrayRef(tensor.sizes), " have more elements than can be counted. ",
                    kDamaged);
  tensor.offset = offset + static_cast<int64_t>(begin / item);
  if (arguments.size() > 4) {
    tensor.requires_grad =
        pickle_.is(arguments[4], PickleKind::boolean) && pickle_.boolean(arguments[4]);
  }
  const auto metadata = has_dtype ? 7U : 6U;
  if (arguments.size() > metadata && pickle_.is(arguments[metadata], PickleKind::dict)) {
    const auto is_set = [&](std::string_view name) {
      const auto value = pickle_.find(arguments[metadata], name);
      return value && pickle_.is(*value, PickleKind::boolean) && pickle_.boolean(*value);
    };
    tensor.conjugated = is_set("conj");
    tensor.negated = is_set("neg");
    TORCH_CHECK_VALUE(!tensor.conjugated || c10::isComplexType(tensor.dtype), about(),
                      " is a conjugate with dtype ", tensor.dtype, ", expected a complex dtype. ",
                      kDamaged);
  }
  return tensor;
}

std::vector<int64_t> TorchObjects::numbers(PickleId id, const std::string& where,
                                           const char* what) const {
  if (pickle_.is_call(id, "torch", "Size") &&
      pickle_.items(pickle_.record(id).arguments).size() == 1) {
    id = pickle_.items(pickle_.record(id).arguments)[0];
  }
  const bool is_sequence = pickle_.is(id, PickleKind::tuple) || pickle_.is(id, PickleKind::list);
  TORCH_CHECK_VALUE(is_sequence, "open_checkpoint: ", where, " has ", what, " ",
                    pickle_.describe(id), ", expected a tuple. ", kDamaged);
  std::vector<int64_t> result;
  for (const auto item : pickle_.items(id)) {
    const auto number =
        pickle_.is(item, PickleKind::integer) ? pickle_.integer(item).value_or(-1) : -1;
    TORCH_CHECK_VALUE(number >= 0, "open_checkpoint: ", where, " has ", pickle_.describe(item),
                      " among its ", what, ", expected non-negative numbers. ", kDamaged);
    result.push_back(number);
  }
  return result;
}

// Containers.

std::optional<std::vector<PickleId>> TorchObjects::entries(PickleId id) const {
  if (pickle_.is(id, PickleKind::dict)) {
    const auto items = pickle_.items(id);
    return std::vector<PickleId>(items.begin(), items.end());
  }
  if (!pickle_.is(id, PickleKind::record)) {
    return std::nullopt;
  }
  const auto& record = pickle_.record(id);
  const bool is_ordered = pickle_.is_call(id, "collections", "OrderedDict");
  if (!is_ordered && record.entries.empty()) {
    return std::nullopt;
  }
  std::vector<PickleId> result;
  const auto arguments = pickle_.items(record.arguments);
  if (is_ordered && !arguments.empty() && pickle_.is(arguments[0], PickleKind::list)) {
    for (const auto pair : pickle_.items(arguments[0])) {
      const auto fields = elements(pair);
      if (fields.size() != 2) {
        return std::nullopt;
      }
      result.insert(result.end(), fields.begin(), fields.end());
    }
  }
  result.insert(result.end(), record.entries.begin(), record.entries.end());
  return result;
}

std::optional<std::span<const PickleId>> TorchObjects::attributes(PickleId id) const {
  if (!pickle_.is(id, PickleKind::record) || !pickle_.record(id).state) {
    return std::nullopt;
  }
  auto state = *pickle_.record(id).state;
  // Of a class with __slots__: (attributes, slots).
  if (pickle_.is(state, PickleKind::tuple) && pickle_.items(state).size() == 2) {
    state = pickle_.items(state)[0];
  }
  if (!pickle_.is(state, PickleKind::dict)) {
    return std::nullopt;
  }
  return pickle_.items(state);
}

PickleId TorchObjects::class_of(PickleId id) const {
  const auto& record = pickle_.record(id);
  auto found = record.callable;
  const auto arguments = pickle_.items(record.arguments);
  if (pickle_.is(found, PickleKind::global) && pickle_.global(found).module == "copyreg" &&
      !arguments.empty()) {
    found = arguments[0];
  }
  // The older layout's reference to a class: ("module", class, file, source).
  if (pickle_.is(found, PickleKind::persistent) && !references_.contains(found)) {
    found = pickle_.items(pickle_.persistent(found))[1];
  }
  return found;
}

std::string TorchObjects::name_of(PickleId id) const {
  if (!pickle_.is(id, PickleKind::global)) {
    return {};
  }
  const auto [module, name] = pickle_.global(id);
  return c10::str(module, ".", name);
}

std::span<const PickleId> TorchObjects::elements(PickleId id) const {
  switch (pickle_.kind(id)) {
    case PickleKind::list:
    case PickleKind::tuple:
    case PickleKind::set:
    case PickleKind::frozenset:
      return pickle_.items(id);
    default:
      break;
  }
  if (pickle_.is_call(id, "builtins", "set") || pickle_.is_call(id, "builtins", "frozenset")) {
    const auto arguments = pickle_.items(pickle_.record(id).arguments);
    if (!arguments.empty() && pickle_.is(arguments[0], PickleKind::list)) {
      return pickle_.items(arguments[0]);
    }
  }
  return {};
}

}  // namespace dormant::checkpoint
