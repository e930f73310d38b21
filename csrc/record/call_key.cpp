#include "record/call_key.h"

#include <ATen/Context.h>
#include <c10/core/DefaultDtype.h>
#include <c10/util/SmallVector.h>

#include <algorithm>
#include <bit>
#include <utility>

#include "record/lazy_storage.h"

namespace dormant::record {
namespace {

/// Kinds of arguments. Each is followed by a fixed number of parts, or by a count of them first, so
/// that keys of different calls cannot look alike.
enum class Kind : int64_t {
  none,
  boolean,
  integer,
  real,
  complex,
  device,
  text,
  generator,
  integers,
  reals,
  booleans,
  tensors,
  tensor,
  number,
};

class Builder {
 public:
  explicit Builder(CallKey& key) : key_(key) {}

  /// False where `value` is of no kind above.
  bool add(const c10::IValue& value) {
    if (value.isTensor()) {
      return add(value.toTensor());
    }
    if (value.isNone()) {
      begin(Kind::none);
    } else if (value.isBool()) {
      begin(Kind::boolean, value.toBool() ? 1 : 0);
    } else if (value.isInt()) {
      begin(Kind::integer, value.toInt());
    } else if (value.isDouble()) {
      begin(Kind::real, bits(value.toDouble()));
    } else if (value.isComplexDouble()) {
      begin(Kind::complex, bits(value.toComplexDouble().real()));
      key_.push_back(bits(value.toComplexDouble().imag()));
    } else if (value.isDevice()) {
      begin(Kind::device, static_cast<int64_t>(value.toDevice().type()));
      key_.push_back(value.toDevice().index());
    } else if (value.isGenerator()) {
      begin(Kind::generator);
    } else if (value.isString()) {
      add_list(Kind::text, value.toStringView(), [](char c) { return int64_t{c}; });
    } else if (value.isIntList()) {
      add_list(Kind::integers, value.toIntVector(), [](int64_t i) { return i; });
    } else if (value.isDoubleList()) {
      add_list(Kind::reals, value.toDoubleVector(), bits);
    } else if (value.isBoolList()) {
      add_list(Kind::booleans, value.toBoolList().vec(), [](bool b) { return int64_t{b}; });
    } else if (value.isTensorList() || value.isOptionalTensorList()) {
      const auto elements = value.toListRef();
      begin(Kind::tensors, static_cast<int64_t>(elements.size()));
      for (const auto& element : elements) {
        if (!add(element)) {
          return false;
        }
      }
    } else {
      return false;
    }
    return true;
  }

 private:
  static int64_t bits(double value) { return std::bit_cast<int64_t>(value); }

  void begin(Kind kind) { key_.push_back(static_cast<int64_t>(kind)); }
  void begin(Kind kind, int64_t part) {
    begin(kind);
    key_.push_back(part);
  }

  template <typename List, typename Part>
  void add_list(Kind kind, const List& list, const Part& part) {
    begin(kind, static_cast<int64_t>(list.size()));
    for (const auto& element : list) {
      key_.push_back(part(element));
    }
  }

  bool add(const at::Tensor& tensor) {
    if (!tensor.defined()) {
      begin(Kind::none);
      return true;
    }
    if (tensor.layout() != c10::kStrided || tensor.is_quantized() || tensor.is_conj() ||
        tensor.is_neg() || tensor._is_zerotensor()) {
      return false;
    }
    if (tensor.unsafeGetTensorImpl()->is_wrapped_number()) {
      return !is_lazy(tensor) && add_number(tensor);
    }
    begin(Kind::tensor, static_cast<int64_t>(tensor.scalar_type()));
    key_.push_back(static_cast<int64_t>(tensor.device().type()));
    key_.push_back(tensor.dim());
    key_.insert(key_.end(), tensor.sizes().begin(), tensor.sizes().end());
    key_.insert(key_.end(), tensor.strides().begin(), tensor.strides().end());
    add_sharing(tensor);
    return true;
  }

  /// Which earlier tensor of the call has the same storage, and how far its first element is.
  void add_sharing(const at::Tensor& tensor) {
    const auto* storage = tensor.unsafeGetTensorImpl()->unsafe_storage().unsafeGetStorageImpl();
    const auto begin = tensor.storage_offset() * static_cast<int64_t>(tensor.element_size());
    const auto first = std::find_if(storages_.begin(), storages_.end(),
                                    [&](const auto& seen) { return seen.first == storage; });
    key_.push_back(first - storages_.begin());
    key_.push_back(first == storages_.end() ? 0 : begin - first->second);
    storages_.emplace_back(storage, begin);
  }

  /// A Python scalar: kernels see its value.
  bool add_number(const at::Tensor& tensor) {
    begin(Kind::number, static_cast<int64_t>(tensor.scalar_type()));
    switch (tensor.scalar_type()) {
      case c10::ScalarType::Double:
        key_.push_back(bits(*tensor.const_data_ptr<double>()));
        return true;
      case c10::ScalarType::Long:
        key_.push_back(*tensor.const_data_ptr<int64_t>());
        return true;
      case c10::ScalarType::Bool:
        key_.push_back(*tensor.const_data_ptr<bool>() ? 1 : 0);
        return true;
      default:
        return false;
    }
  }

  CallKey& key_;
  c10::SmallVector<std::pair<const c10::StorageImpl*, int64_t>, 4> storages_;
};

}  // namespace

std::optional<CallKey> key_of(const Call& call) {
  CallKey key;
  key.reserve(48);
  key.push_back(reinterpret_cast<int64_t>(&call.op.schema()));
  key.push_back(static_cast<int64_t>(c10::get_default_dtype_as_scalartype()));
  key.push_back(at::globalContext().deterministicAlgorithms() ? 1 : 0);
  Builder builder(key);
  for (const auto& argument : call.arguments()) {
    if (!builder.add(argument)) {
      return std::nullopt;
    }
  }
  return key;
}

}  // namespace dormant::record
