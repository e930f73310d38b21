#include "recipe/recipe.h"

#include <ATen/ATen.h>
#include <dormant/dormant.h>
#include <gtest/gtest.h>

#include <functional>
#include <nlohmann/json.hpp>
#include <string>

#include "record/lazy_storage.h"

namespace dormant::recipe {
namespace {

using nlohmann::json;

at::Tensor example() {
  at::manual_seed(3);
  auto base = at::empty({40, 8}).normal_();
  auto table = at::arange(8, at::kFloat).mul_(0.25);
  base.select(0, 2).copy_(table);
  base.index_fill_(0, at::arange(5, 8, 2), 2.5);
  return at::cat({base, base.sin()}, 1);
}

at::Tensor lazy_example() {
  const LazyInit guard;
  return example();
}

TEST(Recipe, RoundTripGivesTheSameBits) {
  const auto recipe = write(lazy_example().storage());
  const auto again = record::make_tensor(read(recipe.document, recipe.tensors),
                                         record::Geometry::of(lazy_example()));
  EXPECT_TRUE(record::is_lazy(again));
  dormant::materialize(again);
  EXPECT_TRUE(again.equal(example()));
}

TEST(Recipe, WhatWasReadIsWrittenAsTheSameDocument) {
  const auto recipe = write(lazy_example().storage());
  EXPECT_EQ(write(read(recipe.document, recipe.tensors)).document, recipe.document);
}

TEST(Recipe, OfAStorageThatNothingWasWrittenTo) {
  const LazyInit guard;
  const auto recipe = write(at::empty({3}).storage());
  EXPECT_EQ(read(recipe.document, recipe.tensors).nbytes(), 12U);
}

TEST(Recipe, OfARealStorageIsRefused) {
  EXPECT_THROW(write(at::ones({2}).storage()), c10::ValueError);
}

TEST(Recipe, OperatorsThatAreNotOnTheListAreNotWritten) {
  const LazyInit guard;
  const auto tensor = at::mvlgamma(at::full({3}, 4.0), 1);
  ASSERT_TRUE(record::is_lazy(tensor));
  EXPECT_THROW(write(tensor.storage()), c10::NotImplementedError);
}

TEST(Recipe, ReadingLeavesTheGeneratorAndOtherStoragesAsTheyWere) {
  const auto recipe = write(lazy_example().storage());
  const auto state = at::detail::getDefaultCPUGenerator().get_state();
  const auto living = record::live_storages();
  const auto storage = read(recipe.document, recipe.tensors);
  EXPECT_EQ(record::live_storages(), living + 1);
  EXPECT_TRUE(at::detail::getDefaultCPUGenerator().get_state().equal(state));
}

TEST(Recipe, PositionsStayShortWhenARecipeIsCopied) {
  const auto tensor = [] {
    const LazyInit guard;
    at::manual_seed(5);
    at::empty({100'000'000}).normal_();
    return at::empty({4}).normal_();
  }();
  const auto recipe = write(tensor.storage());
  EXPECT_LT(recipe.document.size(), 500U);
  EXPECT_EQ(write(read(recipe.document, {})).document, recipe.document);
}

TEST(Recipe, MalformedDocumentsAreRefused) {
  const auto recipe = write(lazy_example().storage());
  const auto living = record::live_storages();
  const auto refused = [&](const std::function<void(json&)>& change) {
    auto document = json::parse(recipe.document);
    change(document);
    EXPECT_THROW(read(document.dump(), recipe.tensors), c10::ValueError)
        << document.dump().substr(0, 200);
  };
  refused([](json& d) { d["version"] = 1; });
  refused([](json& d) { d["version"] = "2"; });
  refused([](json& d) { d["schema"] = "other"; });
  refused([](json& d) { d["more"] = 0; });
  refused([](json& d) { d.erase("steps"); });
  refused([](json& d) { d["steps"] = json::object(); });
  refused([](json& d) { d["target"] = 1000; });
  refused([](json& d) { d["target"] = -1; });
  refused([](json& d) { d["storages"][0] = -5; });
  refused([](json& d) { d["storages"][0] = UINT64_MAX; });
  refused([](json& d) { d["storages"][0] = INT64_MAX; });
  refused([](json& d) { d["steps"][0]["operator"] = "aten::from_file"; });
  refused([](json& d) { d["steps"][0]["operator"] = "aten::set_"; });
  refused([](json& d) { d["steps"][0]["operator"] = "prim::nothing"; });
  refused([](json& d) { d["steps"][0]["operator"] = 3; });
  refused([](json& d) { d["steps"][0]["kind"] = "quantize"; });
  refused([](json& d) { d["steps"][0]["threads"] = 0; });
  refused([](json& d) { d["steps"][0]["arguments"].erase(0); });
  refused([](json& d) { d["steps"][0]["arguments"][0]["sizes"][0] = int64_t{1} << 40; });
  refused([](json& d) { d["steps"][0]["arguments"][0]["strides"][0] = -1; });
  refused([](json& d) { d["steps"][0]["arguments"][0]["dtype"] = "QInt8"; });
  refused([](json& d) { d["steps"][0]["arguments"][0]["storage"] = 99; });
  refused([](json& d) { d["steps"][0]["arguments"][0]["before"] = 3; });
  refused([](json& d) { d["steps"][0]["arguments"][3] = nullptr; });
  refused([](json& d) { d["steps"][0]["arguments"][3] = "zz"; });
  EXPECT_THROW(read("not json", {}), c10::ValueError);
  EXPECT_THROW(read("[1, 2]", {}), c10::ValueError);
  EXPECT_THROW(read(recipe.document, {}), c10::ValueError);
  EXPECT_EQ(record::live_storages(), living);
}

}  // namespace
}  // namespace dormant::recipe
