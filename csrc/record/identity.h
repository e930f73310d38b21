// Which tensors are tied: the same elements of one storage, seen in the same way.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/ScalarType.h>
#include <c10/core/StorageImpl.h>
#include <cstdint>
#include <tuple>
#include <vector>

namespace dormant::record {

/// Equal for tied tensors, as long as their storage lives.
using Identity = std::tuple<const c10::StorageImpl*, int64_t, std::vector<int64_t>,
                            std::vector<int64_t>, c10::ScalarType, bool, bool>;

/// That of a strided tensor. Reads no memory.
inline Identity identity_of(const at::Tensor& tensor) {
  return {tensor.storage().unsafeGetStorageImpl(),
          tensor.storage_offset(),
          tensor.sizes().vec(),
          tensor.strides().vec(),
          tensor.scalar_type(),
          tensor.is_conj(),
          tensor.is_neg()};
}

}  // namespace dormant::record
