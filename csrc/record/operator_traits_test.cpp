#include "record/operator_traits.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <future>
#include <string>
#include <utility>
#include <vector>

#include "record/node.h"

namespace dormant::record {
namespace {

using Indices = std::vector<size_t>;

const OperatorTraits& traits(const std::string& name, const std::string& overload = "") {
  return traits_of(
      c10::Dispatcher::singleton().findSchemaOrThrow(("aten::" + name).c_str(), overload.c_str()));
}

Route route(const std::string& name, const std::string& overload = "") {
  return traits(name, overload).route;
}

std::vector<c10::OperatorHandle> all_operators() {
  std::vector<c10::OperatorHandle> all;
  for (const auto& name : c10::Dispatcher::singleton().getAllOpNames()) {
    if (auto op = c10::Dispatcher::singleton().findSchema(name)) {
      all.push_back(*op);
    }
  }
  return all;
}

TEST(OperatorTraits, WhatReadsOnlyGeometryIsMetadataOrAView) {
  EXPECT_EQ(route("size", "int"), Route::metadata);
  EXPECT_EQ(route("is_floating_point"), Route::metadata);
  EXPECT_EQ(route("transpose_"), Route::metadata);
  EXPECT_EQ(route("transpose", "int"), Route::view);
  EXPECT_EQ(route("select", "int"), Route::view);
  EXPECT_EQ(route("split", "Tensor"), Route::view);
  EXPECT_EQ(route("detach"), Route::view);
}

TEST(OperatorTraits, StoragesAreMadeExchangedAndResizedByRoutesOfTheirOwn) {
  EXPECT_EQ(route("empty", "memory_format"), Route::make_empty);
  EXPECT_EQ(route("empty_strided"), Route::make_empty);
  EXPECT_EQ(route("set_", "source_Storage_storage_offset"), Route::set_storage);
  EXPECT_EQ(route("set_", "source_Tensor"), Route::set_storage);
  EXPECT_EQ(route("resize_"), Route::resize);
}

TEST(OperatorTraits, FactoriesCompositesAndListsAreDecomposed) {
  for (const auto& [name, overload] :
       std::vector<std::pair<const char*, const char*>>{{"zeros", ""},
                                                        {"randn", ""},
                                                        {"full_like", ""},
                                                        {"_to_copy", ""},
                                                        {"clone", ""},
                                                        {"_foreach_add_", "Scalar"}}) {
    EXPECT_EQ(route(name, overload), Route::decompose) << name;
    EXPECT_TRUE(traits(name, overload).below_autograd) << name;
    EXPECT_EQ(traits(name, overload).composite_key, c10::DispatchKey::CompositeExplicitAutograd)
        << name;
  }
  for (const char* name : {"linear", "matmul", "pad"}) {
    EXPECT_EQ(route(name), Route::decompose) << name;
    EXPECT_FALSE(traits(name).below_autograd) << name;
    EXPECT_EQ(traits(name).composite_key, c10::DispatchKey::CompositeImplicitAutograd) << name;
  }
}

TEST(OperatorTraits, WritesAndNewTensorsAreRecorded) {
  EXPECT_EQ(route("add_", "Tensor"), Route::in_place);
  EXPECT_EQ(route("add", "out"), Route::in_place);
  EXPECT_EQ(route("normal_"), Route::in_place);
  EXPECT_EQ(route("add", "Tensor"), Route::functional);
  EXPECT_EQ(route("cat"), Route::functional);
  EXPECT_EQ(route("sort"), Route::functional);
  EXPECT_EQ(route("split_copy", "Tensor"), Route::functional);
}

TEST(OperatorTraits, WhatNeedsValuesOrHidesAWriteIsReal) {
  EXPECT_EQ(route("nonzero"), Route::real);
  EXPECT_EQ(route("masked_select"), Route::real);
  EXPECT_EQ(route("_local_scalar_dense"), Route::real);
  EXPECT_EQ(route("equal"), Route::real);
  EXPECT_EQ(route("native_batch_norm"), Route::real);
  EXPECT_EQ(route("nonzero", "out"), Route::real);
}

TEST(OperatorTraits, AnIndexOfNumbersTellsTheShapeThatAMaskDoesNot) {
  EXPECT_EQ(route("index", "Tensor"), Route::functional);
  EXPECT_EQ(traits("index", "Tensor").index, IndexRule::per_element);
  EXPECT_EQ(route("repeat_interleave", "Tensor"), Route::real);
  EXPECT_EQ(route("repeat_interleave", "self_Tensor"), Route::real);
  EXPECT_NE(route("repeat_interleave", "self_int"), Route::real);
}

TEST(OperatorTraits, WrittenArgumentsAndWhichOfThemAreReturned) {
  EXPECT_EQ(traits("add_", "Tensor").written, Indices{0});
  EXPECT_EQ(traits("add_", "Tensor").return_alias, Indices{0});
  EXPECT_EQ(traits("add", "out").written, Indices{3});
  EXPECT_EQ(traits("add", "out").return_alias, Indices{3});
  EXPECT_EQ(traits("aminmax", "out").written, (Indices{3, 4}));
  EXPECT_EQ(traits("aminmax", "out").return_alias, (Indices{3, 4}));
  EXPECT_EQ(traits("_foreach_add_", "Scalar").written, Indices{0});
  EXPECT_TRUE(traits("add", "Tensor").written.empty());
}

TEST(OperatorTraits, OverwritesAndOutArgumentsAreNotRead) {
  EXPECT_TRUE(traits("fill_", "Scalar").write_only);
  EXPECT_TRUE(traits("copy_").write_only);
  EXPECT_TRUE(traits("normal_").write_only);
  EXPECT_TRUE(traits("add", "out").write_only);
  EXPECT_FALSE(traits("add_", "Tensor").write_only);
  EXPECT_FALSE(traits("masked_fill_", "Scalar").write_only);
  EXPECT_FALSE(traits("index_put_").write_only);
}

TEST(OperatorTraits, MovementStaysLazyOutsideTheContextAndArithmeticDoesNot) {
  for (const char* name : {"zeros", "clone", "cat", "copy_", "repeat"}) {
    EXPECT_TRUE(traits(name).movement) << name;
  }
  EXPECT_FALSE(traits("add", "Tensor").movement);
  EXPECT_FALSE(traits("mm").movement);
  EXPECT_TRUE(traits("zeros").factory);
  EXPECT_FALSE(traits("clone").factory);
}

TEST(OperatorTraits, RandomOperatorsHaveTheirGeneratorAndTheirLaw) {
  EXPECT_TRUE(traits("normal_").random);
  EXPECT_EQ(traits("normal_").generator, 3U);
  EXPECT_NE(traits("normal_").law, nullptr);
  EXPECT_EQ(traits("bernoulli", "out").generator, 1U);
  EXPECT_TRUE(traits("native_dropout").random);
  EXPECT_FALSE(traits("native_dropout").generator);
  EXPECT_FALSE(traits("fill_", "Scalar").random);
  EXPECT_FALSE(traits("fill_", "Scalar").generator);
}

TEST(OperatorTraits, TheParameterWhoseValuesAreCheckedIsATensor) {
  EXPECT_EQ(traits("normal", "Tensor_Tensor").checked, 1U);
  EXPECT_EQ(traits("normal", "float_Tensor").checked, 1U);
  EXPECT_FALSE(traits("normal", "Tensor_float").checked);
  EXPECT_EQ(traits("bernoulli_", "Tensor").checked, 1U);
  EXPECT_FALSE(traits("bernoulli_", "float").checked);
  EXPECT_EQ(traits("bernoulli").checked, 0U);
  EXPECT_EQ(traits("multinomial").checked, 0U);
  EXPECT_FALSE(traits("add", "Tensor").checked);
}

TEST(OperatorTraits, AutocastIsKnownToChangeSome) {
  EXPECT_TRUE(traits("mm").autocast);
  EXPECT_FALSE(traits("add", "Tensor").autocast);
}

TEST(OperatorTraits, OtherNamespacesAreReal) {
  for (const auto& op : all_operators()) {
    if (!op.operator_name().name.starts_with("aten::")) {
      EXPECT_EQ(traits_of(op).route, Route::real) << full_name(op);
    }
  }
}

TEST(OperatorTraits, ARouteFitsTheSchemaOfEveryOperator) {
  size_t recorded = 0;
  for (const auto& op : all_operators()) {
    SCOPED_TRACE(full_name(op));
    const auto& found = traits_of(op);
    const auto& schema = op.schema();
    const auto is_write = [&](size_t i) {
      const auto* alias = schema.arguments()[i].alias_info();
      return alias != nullptr && alias->isWrite();
    };
    switch (found.route) {
      case Route::in_place:
        EXPECT_FALSE(found.written.empty());
        EXPECT_EQ(found.return_alias.size(), schema.returns().size());
        for (const auto i : found.return_alias) {
          EXPECT_EQ(std::count(found.written.begin(), found.written.end(), i), 1);
        }
        [[fallthrough]];
      case Route::decompose:
        for (const auto i : found.written) {
          EXPECT_TRUE(is_write(i));
        }
        ++recorded;
        break;
      case Route::functional:
        EXPECT_FALSE(schema.is_mutable());
        EXPECT_FALSE(schema.returns().empty());
        for (const auto& result : schema.returns()) {
          EXPECT_EQ(result.alias_info(), nullptr);
        }
        ++recorded;
        break;
      case Route::view:
        EXPECT_FALSE(schema.is_mutable());
        break;
      default:
        break;
    }
    if (found.route == Route::decompose) {
      EXPECT_TRUE(op.hasKernelForDispatchKey(found.composite_key));
    }
    if (found.generator) {
      EXPECT_TRUE(found.random);
      EXPECT_LT(*found.generator, schema.arguments().size());
    }
  }
  EXPECT_GT(recorded, 1000U);
}

TEST(OperatorTraits, StayWhereTheyAreWhileOthersAreLookedUp) {
  std::async(std::launch::async,
             [] {  // a thread that knows none yet
               const auto* first = &traits("add", "Tensor");
               for (const auto& op : all_operators()) {
                 static_cast<void>(traits_of(op));
               }
               EXPECT_EQ(&traits("add", "Tensor"), first);
               EXPECT_EQ(first->route, Route::functional);
             })
      .get();
}

}  // namespace
}  // namespace dormant::record
