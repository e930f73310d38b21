#include "recipe/value.h"

#include <c10/util/Exception.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <string>

namespace dormant::recipe {
namespace {

using nlohmann::json;

c10::IValue round_trip(const c10::IValue& value, const c10::TypePtr& type) {
  return value_from_json(json::parse(to_json(value).dump()), type);
}

void refuse(const char* text, const c10::TypePtr& type) {
  EXPECT_THROW(value_from_json(json::parse(text), type), c10::ValueError) << text;
}

TEST(RecipeValue, NumbersSurviveBitForBit) {
  for (const double value : {0.0, -0.0, 0.1, -1.5, 5e-324, 1.7976931348623157e308,
                             std::numeric_limits<double>::infinity()}) {
    const auto read = round_trip(value, c10::FloatType::get()).toDouble();
    EXPECT_EQ(std::signbit(read), std::signbit(value));
    EXPECT_EQ(read, value);
  }
  EXPECT_TRUE(std::isnan(round_trip(std::nan(""), c10::FloatType::get()).toDouble()));
  EXPECT_EQ(round_trip(INT64_MIN, c10::IntType::get()).toInt(), INT64_MIN);
}

TEST(RecipeValue, APythonNumberKeepsItsKind) {
  const auto number = c10::NumberType::get();
  EXPECT_TRUE(round_trip(true, number).isBool());
  EXPECT_TRUE(round_trip(int64_t{1}, number).isInt());
  EXPECT_TRUE(round_trip(1.0, number).isDouble());
  const c10::complex<double> complex(1.5, -2);
  EXPECT_EQ(round_trip(complex, number).toComplexDouble(), complex);
}

TEST(RecipeValue, ListsAndAbsentValuesSurvive) {
  const auto integers = c10::ListType::ofInts();
  EXPECT_EQ(round_trip(std::vector<int64_t>{3, -1}, integers).toIntVector(),
            (std::vector<int64_t>{3, -1}));
  EXPECT_TRUE(round_trip(c10::IValue(), c10::OptionalType::create(integers)).isNone());
}

TEST(RecipeValue, WhatTheOperatorDoesNotTakeThereIsRefused) {
  refuse("\"1p+0\"", c10::IntType::get());
  refuse("1.5", c10::IntType::get());
  refuse("9223372036854775808", c10::IntType::get());
  refuse("1", c10::FloatType::get());
  refuse("\"1p+\"", c10::FloatType::get());
  refuse("\" 1p+0\"", c10::FloatType::get());
  refuse("\"\"", c10::FloatType::get());
  refuse("0", c10::BoolType::get());
  refuse("null", c10::BoolType::get());
  refuse("[\"0\"]", c10::NumberType::get());
  refuse("1", c10::StringType::get());
  refuse("12", c10::ScalarTypeType::get());  // QInt8
  refuse("255", c10::ScalarTypeType::get());
  refuse("1", c10::LayoutType::get());  // sparse
  refuse("4", c10::MemoryFormatType::get());
  refuse("\"cuda:0\"", c10::DeviceObjType::get());
  refuse("3", c10::ListType::ofInts());
  refuse("[null]", c10::ListType::ofInts());
  refuse("[\"a\"]", c10::ListType::ofStrings());
  EXPECT_THROW(value_from_json(json(std::vector<int64_t>(1000, 1)), c10::ListType::ofInts()),
               c10::ValueError);
}

json tensor(const char* change = "{}") {
  auto encoded =
      json::parse(R"({"sizes": [2, 3], "strides": [3, 1], "offset": 1, "dtype": "Half"})");
  encoded.update(json::parse(change));
  return encoded;
}

TEST(RecipeValue, AGeometrySurvives) {
  const auto geometry = geometry_from_json(tensor(R"({"negative": true})"));
  EXPECT_EQ(geometry.dtype, c10::kHalf);
  EXPECT_EQ(geometry_from_json(to_json(geometry)), geometry);
}

TEST(RecipeValue, GeometriesThatCannotBeAreRefused) {
  for (const auto* change :
       {R"({"sizes": [2]})", R"({"sizes": [-1, 3]})", R"({"strides": [3, -1]})",
        R"({"offset": -1})", R"({"dtype": "QInt8"})", R"({"dtype": "Undefined"})",
        R"({"dtype": 6})", R"({"sizes": [4294967296, 4294967296], "strides": [0, 0]})",
        R"({"sizes": [0, 4611686018427387904]})", R"({"strides": [4611686018427387904, 1]})",
        R"({"offset": 9223372036854775807})", R"({"conjugate": true})", R"({"negative": 1})",
        R"({"dtype": "Bool", "negative": true})", R"({"sizes": "ab"})"}) {
    EXPECT_THROW(geometry_from_json(tensor(change)), c10::ValueError) << change;
  }
  auto many = tensor();
  many["sizes"] = many["strides"] = std::vector<int64_t>(65, 1);
  EXPECT_THROW(geometry_from_json(many), c10::ValueError);
}

}  // namespace
}  // namespace dormant::recipe
