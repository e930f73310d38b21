#include "record/operator_table.h"

#include <gtest/gtest.h>

#include <set>
#include <sstream>
#include <string>

#include "record/operator_traits.h"

namespace dormant::record {
namespace {

const OperatorTraits& traits(const char* name, const char* overload) {
  const auto op = c10::Dispatcher::singleton().findSchemaOrThrow(
      (std::string("aten::") + name).c_str(), overload);
  return traits_of(op);
}

TEST(OperatorTable, NamesAnOperatorOnce) {
  std::set<std::string> seen;
  for (const auto& row : operator_table()) {
    std::istringstream names(row.names);
    for (std::string name; names >> name;) {
      EXPECT_TRUE(seen.insert(name).second) << name;
    }
  }
  EXPECT_GT(seen.size(), 200U);
}

TEST(OperatorTable, HasTheOperatorInPlaceInTheSameRowUnlessItHasItsOwn) {
  EXPECT_EQ(facts_of("mul_").tile, TileRule::compute);
  EXPECT_EQ(facts_of("mul_").write, facts_of("mul").write);
  EXPECT_EQ(facts_of("index_add_").index, IndexRule::along_dim);
  EXPECT_EQ(facts_of("normal").kind, Kind::factory);
  EXPECT_EQ(facts_of("normal_").kind, Kind::overwrite);
  EXPECT_EQ(facts_of("squeeze").kind, Kind::by_schema);
  EXPECT_EQ(facts_of("squeeze_").kind, Kind::metadata);
  EXPECT_EQ(facts_of("fill").kind, Kind::by_schema);
  EXPECT_EQ(facts_of("").kind, Kind::by_schema);
}

TEST(OperatorTraits, RoutesFollowTheRowThenTheSchema) {
  EXPECT_EQ(traits("is_same_size", "").route, Route::metadata);
  EXPECT_EQ(traits("native_batch_norm", "").route, Route::real);
  EXPECT_EQ(traits("randn", "").route, Route::decompose);
  EXPECT_EQ(traits("clone", "").route, Route::decompose);
  EXPECT_EQ(traits("_foreach_add_", "Scalar").route, Route::decompose);
  EXPECT_EQ(traits("select", "int").route, Route::view);
  EXPECT_EQ(traits("mul", "Tensor").route, Route::functional);
  EXPECT_EQ(traits("mul", "out").route, Route::in_place);
  EXPECT_EQ(traits("cat", "").route, Route::functional);
  EXPECT_EQ(traits("nonzero", "").route, Route::real);
  EXPECT_EQ(traits("repeat_interleave", "Tensor").route, Route::real);
  EXPECT_EQ(traits("empty", "memory_format").route, Route::make_empty);
}

TEST(OperatorTraits, OfWritesSayWhatIsReadAndWritten) {
  const auto& in_place = traits("mul_", "Tensor");
  EXPECT_EQ(in_place.written, std::vector<size_t>{0});
  EXPECT_FALSE(in_place.write_only);
  EXPECT_FALSE(in_place.movement);
  const auto& out = traits("mul", "out");
  EXPECT_EQ(out.written, std::vector<size_t>{2});
  EXPECT_TRUE(out.write_only);
  EXPECT_TRUE(traits("copy_", "").write_only);
  EXPECT_TRUE(traits("copy_", "").movement);
}

TEST(OperatorTraits, OfRandomOperatorsKnowGeneratorLawAndParameter) {
  const auto& normal = traits("normal_", "");
  EXPECT_TRUE(normal.random);
  EXPECT_EQ(normal.generator, 3U);
  EXPECT_NE(normal.law, nullptr);
  EXPECT_FALSE(normal.checked.has_value());  // its std is a number
  EXPECT_EQ(traits("normal", "Tensor_Tensor").checked, 1U);
  EXPECT_EQ(traits("bernoulli", "").checked, 0U);
  EXPECT_EQ(traits("bernoulli_", "Tensor").checked, 1U);
  EXPECT_FALSE(traits("bernoulli_", "float").checked.has_value());
  EXPECT_EQ(traits("multinomial", "").checked, 0U);
  EXPECT_FALSE(traits("mul", "Tensor").random);
  EXPECT_EQ(traits("mul", "Tensor").law, nullptr);
}

}  // namespace
}  // namespace dormant::record
