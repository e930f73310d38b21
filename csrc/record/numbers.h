// Numbers as the cheap rules see them: dtypes that all common operators have kernels for, and
// Python scalars that such a dtype can hold.
#pragma once

#include <ATen/core/ivalue.h>
#include <c10/core/ScalarType.h>

namespace dormant::record {

/// Floating dtypes of 16 bits and more.
bool is_common_floating(c10::ScalarType dtype);

/// Those and the integers that are not barebones; neither bool nor complex.
bool is_common_number(c10::ScalarType dtype);

/// An int or a float, not a bool.
bool is_real_number(const c10::IValue& value);

/// Whether c10::Scalar::to converts a real number or a bool to a common number or bool, as kernels
/// do with their scalar arguments: it refuses what overflows. False for any other value or dtype.
bool fits(const c10::IValue& number, c10::ScalarType dtype);

}  // namespace dormant::record
