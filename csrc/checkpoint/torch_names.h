// What torch calls dtypes in pickles.
#pragma once

#include <c10/core/ScalarType.h>

#include <optional>
#include <string_view>

namespace dormant::checkpoint {

/// The dtype that is called `torch.NAME`, as "bfloat16"; none where there is no such dtype.
std::optional<c10::ScalarType> dtype_of(std::string_view name);

/// The dtype of the elements of the storage class `torch.NAME`, as "BFloat16Storage".
std::optional<c10::ScalarType> storage_dtype_of(std::string_view name);

}  // namespace dormant::checkpoint
