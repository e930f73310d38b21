#include "record/numbers.h"

#include <ATen/Dispatch_v2.h>
#include <c10/util/overflows.h>

namespace dormant::record {

bool is_common_floating(c10::ScalarType dtype) {
  return dtype == c10::ScalarType::Float || dtype == c10::ScalarType::Double ||
         dtype == c10::ScalarType::Half || dtype == c10::ScalarType::BFloat16;
}

bool is_common_number(c10::ScalarType dtype) {
  return is_common_floating(dtype) || (c10::isIntegralType(dtype, /*includeBool=*/false) &&
                                       !c10::isBarebonesUnsignedType(dtype));
}

bool is_real_number(const c10::IValue& value) { return value.isInt() || value.isDouble(); }

bool fits(const c10::IValue& number, c10::ScalarType dtype) {
  const bool to_bool = dtype == c10::ScalarType::Bool;
  if (!(number.isBool() || is_real_number(number)) || !(to_bool || is_common_number(dtype))) {
    return false;
  }
  if (number.isBool() || to_bool) {
    return true;
  }
  return AT_DISPATCH_V2(dtype, "fits", AT_WRAP([&] {
                          return number.isInt() ? !c10::overflows<scalar_t>(number.toInt())
                                                : !c10::overflows<scalar_t>(number.toDouble());
                        }),
                        AT_EXPAND(AT_INTEGRAL_TYPES), AT_EXPAND(AT_FLOATING_TYPES), at::kHalf,
                        at::kBFloat16);
}

}  // namespace dormant::record
