#include "record/recipe.h"

#include <ATen/ATen.h>
#include <dormant/dormant.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <string>

#include "record/lazy_storage.h"

namespace dormant::record {
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
  const auto recipe = dump_recipe(lazy_example().storage());
  const auto again =
      make_tensor(load_recipe(recipe.document, recipe.tensors), Geometry::of(lazy_example()));
  dormant::materialize(again);
  EXPECT_TRUE(again.equal(example()));
}

TEST(Recipe, OfARealStorageIsRefused) {
  EXPECT_THROW(dump_recipe(at::ones({2}).storage()), c10::ValueError);
}

TEST(Recipe, MalformedDocumentsAreRefused) {
  const auto recipe = dump_recipe(lazy_example().storage());
  const auto refused = [&](const std::function<void(json&)>& change) {
    auto document = json::parse(recipe.document);
    change(document);
    EXPECT_THROW(load_recipe(document.dump(), recipe.tensors), c10::ValueError)
        << document.dump().substr(0, 200);
  };
  refused([](json& d) { d["version"] = 99; });
  refused([](json& d) { d["schema"] = "other"; });
  refused([](json& d) { d.erase("nodes"); });
  refused([](json& d) { d["target"] = 1000; });
  refused([](json& d) { d["target"] = -1; });
  refused([](json& d) { d["buffers"][0] = -5; });
  refused([](json& d) { d["nodes"][0]["op"] = "aten::from_file"; });
  refused([](json& d) { d["nodes"][0]["op"] = "aten::set_"; });
  refused([](json& d) { d["nodes"][0]["op"] = "prim::nothing"; });
  refused([](json& d) { d["nodes"][0]["kind"] = "quantize"; });
  refused([](json& d) { d["nodes"][0]["arguments"].erase(0); });
  refused([](json& d) { d["nodes"][0]["operands"][0]["geometry"]["sizes"][0] = int64_t{1} << 40; });
  refused([](json& d) { d["nodes"][0]["operands"][0]["geometry"]["strides"][0] = -1; });
  refused([](json& d) { d["nodes"][0]["operands"][0]["geometry"]["dtype"] = 1234; });
  refused([](json& d) { d["nodes"][0]["operands"][0]["before"] = 3; });
  refused([](json& d) { d["nodes"][0]["operands"][0]["written"] = false; });
  refused([](json& d) { d["nodes"][0].erase("position"); });
  refused([](json& d) { d["nodes"][0]["position"] = "zz"; });
  EXPECT_THROW(load_recipe("not json", {}), c10::ValueError);
  EXPECT_THROW(load_recipe("[1, 2]", {}), c10::ValueError);
  EXPECT_THROW(load_recipe(recipe.document, {}), c10::ValueError);
}

}  // namespace
}  // namespace dormant::record
