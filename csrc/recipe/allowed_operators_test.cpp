#include "recipe/allowed_operators.h"

#include <ATen/core/dispatch/Dispatcher.h>
#include <gtest/gtest.h>

#include <string>

namespace dormant::recipe {
namespace {

bool allowed(const char* name, const char* overload = "") {
  return is_allowed(c10::Dispatcher::singleton().findSchemaOrThrow(name, overload));
}

TEST(AllowedOperators, WhatModelsRecordIs) {
  EXPECT_TRUE(allowed("aten::normal_"));
  EXPECT_TRUE(allowed("aten::copy_"));
  EXPECT_TRUE(allowed("aten::cat"));
  EXPECT_TRUE(allowed("aten::add_", "Tensor"));
  EXPECT_TRUE(allowed("aten::arange", "start_out"));
  EXPECT_TRUE(allowed("aten::linalg_qr"));
  EXPECT_TRUE(allowed("aten::__lshift__", "Scalar"));
}

TEST(AllowedOperators, WhatTrustsItsArgumentsOrLeavesTheTensorsIsNot) {
  for (const auto* name :
       {"aten::segment_reduce", "aten::from_file", "aten::_index_put_impl_",
        "aten::as_strided_copy", "aten::fractional_max_pool2d", "aten::upsample_bilinear2d",
        "aten::mvlgamma", "aten::special_hermite_polynomial_h", "aten::_weight_norm_interface",
        "aten::linalg_ldl_solve", "aten::embedding_dense_backward", "aten::gelu_backward",
        "aten::_print", "aten::set_", "aten::resize_", "aten::quantize_per_tensor"}) {
    EXPECT_FALSE(allowed(name)) << name;
  }
}

TEST(AllowedOperators, WhatIsDecomposedIsNot) {
  EXPECT_FALSE(allowed("aten::randn"));
  EXPECT_FALSE(allowed("aten::full"));
}

TEST(AllowedOperators, NoneReturnsAList) {
  EXPECT_FALSE(allowed("aten::unbind_copy", "int"));
  EXPECT_FALSE(allowed("aten::split_with_sizes_copy"));
}

}  // namespace
}  // namespace dormant::recipe
