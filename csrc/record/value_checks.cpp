#include "record/value_checks.h"

#include <ATen/DimVector.h>
#include <ATen/ExpandUtils.h>
#include <ATen/ops/aminmax.h>

#include <algorithm>
#include <cmath>
#include <optional>
#include <string>
#include <vector>

#include "record/lazy_storage.h"
#include "record/recorder.h"
#include "record/replay.h"
#include "system/dispatch_state.h"

namespace dormant::record {
namespace {

bool in_range(const at::Tensor& index, int64_t low, int64_t high) {
  if (index.numel() == 0) {
    return true;
  }
  const auto wide = index.to(c10::kLong);
  const auto [smallest, largest] = at::aminmax(wide);
  return smallest.item<int64_t>() >= low && largest.item<int64_t>() < high;
}

bool is_index_type(const at::Tensor& tensor) {
  return c10::isIntegralType(tensor.scalar_type(), /*includeBool=*/false);
}

bool holds(const at::Tensor& tensor, ValueRule rule) {
  if (tensor.is_complex()) {
    return false;
  }
  if (tensor.numel() == 0) {
    return rule != ValueRule::weights;
  }
  const auto [smallest, largest] = at::aminmax(tensor);
  const auto least = smallest.item<double>();
  const auto most = largest.item<double>();
  switch (rule) {
    case ValueRule::none:
      return true;
    case ValueRule::deviation:
      return least >= 0;
    case ValueRule::probability:
      return least >= 0 && most <= 1;
    case ValueRule::weights:
      return tensor.dim() > 0 && least >= 0 && std::isfinite(most) &&
             tensor.sum(-1).gt(0).all().item<bool>();
  }
  return false;
}

/// A tensor's values. A lazy tensor stays lazy: they are made in a copy, so that its size does not
/// matter.
at::Tensor values_of(const at::Tensor& tensor) {
  if (!is_lazy(tensor)) {
    return tensor;
  }
  const auto copy = clone_storage(tensor.storage());
  materialize({copy}, {});
  return Geometry::of(tensor).over(copy);
}

/// The values of the call's tensor parameter that eager looks at, if it has one.
bool parameter_in_range(const Call& call) {
  if (!call.traits.checked) {
    return true;
  }
  const system::PlainDispatch plain;
  const auto& parameter = call.arguments()[*call.traits.checked].toTensor();
  return !parameter.defined() || holds(values_of(parameter), call.traits.values);
}

/// The indices themselves become real: they are small, and many calls look at the same ones.
void materialize_indices(const Call& call) {
  const auto lazy = lazy_checked_tensors(call);
  std::vector<c10::Storage> storages;
  for (const auto& tensor : lazy) {
    storages.push_back(tensor.storage());
  }
  materialize(storages, {});
  for (const auto& tensor : lazy) {
    sync_key(tensor);
  }
}

/// The sizes of what tensors of integers select, the i-th from dimension i; nothing where they
/// can't be broadcast to each other.
std::optional<at::DimVector> selected_sizes(const at::Tensor& self,
                                            const std::vector<std::optional<at::Tensor>>& indices) {
  at::DimVector broadcast;
  std::vector<int64_t> indexed;
  for (size_t i = 0; i < indices.size(); ++i) {
    if (!indices[i] || !indices[i]->defined()) {
      continue;
    }
    const auto sizes = indices[i]->sizes();
    at::DimVector both(std::max(broadcast.size(), sizes.size()), 1);
    for (size_t d = 0; d < both.size(); ++d) {
      const auto from_the_end = [d](at::IntArrayRef a) {
        return d < a.size() ? a[a.size() - 1 - d] : int64_t{1};
      };
      const auto mine = from_the_end(broadcast);
      const auto theirs = from_the_end(sizes);
      if (mine != theirs && mine != 1 && theirs != 1) {
        return std::nullopt;
      }
      both[both.size() - 1 - d] = mine == 1 ? theirs : mine;
    }
    broadcast = both;
    indexed.push_back(static_cast<int64_t>(i));
  }
  if (indexed.empty()) {
    return at::DimVector(self.sizes());
  }
  // Indices side by side leave their place to what they select; others put it first.
  const bool adjacent =
      indexed.back() - indexed.front() + 1 == static_cast<int64_t>(indexed.size());
  const int64_t place = adjacent ? indexed.front() : 0;
  at::DimVector sizes;
  for (int64_t d = 0; d < self.dim(); ++d) {
    if (d == place) {
      sizes.append(broadcast.begin(), broadcast.end());
    }
    if (std::find(indexed.begin(), indexed.end(), d) == indexed.end()) {
      sizes.push_back(self.size(d));
    }
  }
  return sizes;
}

/// Whether what a call like index_put writes fits what its indices select.
bool values_fit(const Call& call) {
  const auto position = call.op.schema().argumentIndexWithName("values");
  if (!position) {
    return true;
  }
  const auto arguments = call.arguments();
  const auto& values = arguments[static_cast<size_t>(*position)];
  const auto sizes = selected_sizes(arguments[0].toTensor(), arguments[1].toOptionalTensorVector());
  return values.isTensor() && sizes && at::is_expandable_to(values.toTensor().sizes(), *sizes);
}

/// Whether every value of the call's index arguments, which are real by now, is in bounds.
bool indices_in_bounds(const Call& call) {
  const auto& schema = call.op.schema();
  const auto arguments = call.arguments();
  const auto& self = arguments[0].toTensor();
  if (call.traits.index == IndexRule::per_element) {
    const auto indices = arguments[1].toOptionalTensorVector();
    for (size_t i = 0; i < indices.size(); ++i) {
      if (!indices[i] || !indices[i]->defined()) {
        continue;
      }
      // A mask, which uint8 is too, spans several dimensions and selects as many elements as its
      // values say. Other integers are refused.
      const auto dtype = indices[i]->scalar_type();
      if ((dtype != c10::ScalarType::Long && dtype != c10::ScalarType::Int) ||
          static_cast<int64_t>(i) >= self.dim()) {
        return false;
      }
      const auto size = self.size(static_cast<int64_t>(i));
      if (!in_range(*indices[i], -size, size)) {
        return false;
      }
    }
    return values_fit(call);
  }
  int64_t dim = 0;
  if (call.traits.index == IndexRule::along_dim) {
    const auto position = schema.argumentIndexWithName("dim");
    if (!position || !arguments[static_cast<size_t>(*position)].isInt()) {
      return false;
    }
    dim = arguments[static_cast<size_t>(*position)].toInt();
  }
  const auto rank = std::max<int64_t>(self.dim(), 1);
  if (dim < -rank || dim >= rank) {
    return false;
  }
  const auto size = self.dim() == 0 ? 1 : self.size(dim < 0 ? dim + rank : dim);
  for (const char* name : {"index", "indices"}) {
    if (const auto position = schema.argumentIndexWithName(name)) {
      const auto& index = arguments[static_cast<size_t>(*position)];
      return index.isTensor() && is_index_type(index.toTensor()) &&
             in_range(index.toTensor(), 0, size);
    }
  }
  return false;
}

}  // namespace

std::vector<at::Tensor> lazy_checked_tensors(const Call& call) {
  const bool index = call.traits.index != IndexRule::none;
  std::vector<at::Tensor> lazy;
  const auto arguments = call.arguments();
  const auto& written = call.traits.written;
  for (size_t i = index ? 1 : 0; i < arguments.size(); ++i) {
    const bool checked = index || call.traits.checked == i;
    if (!checked || std::find(written.begin(), written.end(), i) != written.end()) {
      continue;
    }
    for_each_tensor(arguments[i], [&](const at::Tensor& tensor) {
      if (is_lazy(tensor) && !(index && c10::isFloatingType(tensor.scalar_type()))) {
        lazy.push_back(tensor);
      }
    });
  }
  return lazy;
}

bool values_in_range(const Call& call) {
  if (call.traits.index != IndexRule::none) {
    materialize_indices(call);
    const system::PlainDispatch plain;
    return indices_in_bounds(call);
  }
  return parameter_in_range(call);
}

}  // namespace dormant::record
