#include "checkpoint/torch_state.h"

#include <c10/util/Exception.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "checkpoint/scratch_folder.h"
#include "checkpoint/torch_bytes.h"

namespace dormant::checkpoint {
namespace {

using Names = std::vector<std::string>;

const std::string kTensor = PickledTensor{}.bytes();

Names names_of(const std::string& value, const std::optional<std::string>& key = {},
               const Fits& fits = {}) {
  const auto pickle = Pickle::parse(whole_pickle(value), "a test");
  const TorchObjects objects(pickle);
  Names names;
  for (const auto& named : find_state(objects, key, fits, "a test").tensors) {
    names.push_back(named.name);
  }
  return names;
}

template <typename Error = c10::ValueError>
std::string refusal(const std::string& value, const std::optional<std::string>& key = {}) {
  return message_of<Error>([&] { names_of(value, key); });
}

TEST(TorchState, IsTheFilesOwnMappingOrTheOnlyOneInIt) {
  const auto inner = pickled_dict({{"a", kTensor}, {"n", "K\x01"}, {"b", kTensor}});
  EXPECT_EQ(names_of(inner), (Names{"a", "b"}));
  EXPECT_EQ(names_of(pickled_dict({{"step", "K\x01"}, {"model", inner}})), (Names{"a", "b"}));
  EXPECT_EQ(names_of("}"), Names{});
}

TEST(TorchState, TakesTheLastValueOfANameInItsFirstPlace) {
  EXPECT_EQ(names_of(pickled_dict({{"a", "N"}, {"b", kTensor}, {"a", kTensor}})),
            (Names{"a", "b"}));
}

TEST(TorchState, PrefersSeveralTensorsToOne) {
  const auto two = pickled_dict({{"a", kTensor}, {"b", kTensor}});
  EXPECT_EQ(names_of(pickled_dict({{"loss", kTensor}, {"model", two}})), (Names{"a", "b"}));
}

TEST(TorchState, IsWhatFitsBestOrWhatIsAskedFor) {
  const auto file = pickled_dict(
      {{"model", pickled_dict({{"a", kTensor}})}, {"ema", pickled_dict({{"b", kTensor}})}});
  EXPECT_TRUE(contains(refusal(file), "got 2: ['model', 'ema']. Choose one"));
  EXPECT_EQ(names_of(file, "ema"), Names{"b"});
  const Fits fits = [](const Names& names) { return names == Names{"b"} ? 1U : 0U; };
  EXPECT_EQ(names_of(file, std::nullopt, fits), Names{"b"});
  EXPECT_TRUE(contains(refusal<c10::IndexError>(file, "other"), "no mapping 'other'"));
}

TEST(TorchState, OfAModuleIsItsStateDict) {
  const auto leaf = pickled_module({{"weight", kTensor}, {"bias", "N"}});
  const auto module = pickled_module(
      {{"p", kTensor}}, {{"b", kTensor}, {"s", kTensor}}, {{"x", leaf}, {"none", "N"}, {"y", leaf}},
      {{"_non_persistent_buffers_set", "cbuiltins\nset\n](" + pickled_text("s") + "e\x85R"}});
  const Names expected{"p", "b", "x.weight", "y.weight"};
  EXPECT_EQ(names_of(module), expected);
  EXPECT_EQ(names_of(pickled_dict({{"epoch", "K\x01"}, {"model", module}})), expected);
}

TEST(TorchState, OfNestedContainersHasTheWayToEachTensor) {
  const auto list = "](" + pickled_dict({{"w", kTensor}}) + kTensor + "e";
  const auto file = pickled_dict({{"n", "K\x01"}, {"m", pickled_dict({{"layers", list}})}});
  EXPECT_EQ(names_of(file), (Names{"layers.0.w", "layers.1"}));
  EXPECT_EQ(names_of(file, ""), (Names{"m.layers.0.w", "m.layers.1"}));
}

TEST(TorchState, IsNeverWithoutNames) {
  EXPECT_TRUE(contains(refusal(kTensor), "contains a Tensor"));
  EXPECT_TRUE(contains(refusal("]"), "contains a list"));
  EXPECT_TRUE(contains(refusal(pickled_dict({{"", kTensor}})), "a tensor under str ''"));
  EXPECT_TRUE(
      contains(refusal(pickled_dict({{"n", "N"}})), "contains ['n'], expected tensors by name"));
}

TEST(TorchState, EndsWhereModulesDoNot) {
  const auto loop = "cm\nM\n)\x81q\x02" +
                    pickled_dict({{"_parameters", "}"},
                                  {"_buffers", "}"},
                                  {"_modules", pickled_dict({{"me", "h\x02"}})}}) +
                    "b";
  EXPECT_TRUE(contains(refusal(loop), "nest deeper than 200"));
}

}  // namespace
}  // namespace dormant::checkpoint
