// The rules of load as one table of cases, which tests/load/test_cases.py runs, too.
#include <ATen/ATen.h>
#include <c10/util/Exception.h>
#include <dormant/checkpoint.h>
#include <dormant/save.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cctype>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "checkpoint/scratch_folder.h"

namespace dormant {
namespace {

using checkpoint::contains;
using checkpoint::ScratchFolder;
using nlohmann::json;

std::vector<json> cases() {
  std::ifstream file(DORMANT_SOURCE_DIR "/tests/load/cases/names.json");
  return json::parse(file).at("cases").get<std::vector<json>>();
}

at::ScalarType dtype_of(const json& described) {
  static const std::map<std::string, at::ScalarType> kDtypes = {
      {"float32", at::kFloat},     {"float64", at::kDouble}, {"float16", at::kHalf},
      {"bfloat16", at::kBFloat16}, {"int64", at::kLong},     {"int32", at::kInt}};
  return kDtypes.at(described.value("dtype", "float32"));
}

std::vector<int64_t> sizes_of(const json& described) {
  return described.at("sizes").get<std::vector<int64_t>>();
}

std::map<std::string, at::Tensor> saved(const json& each) {
  std::map<std::string, double> firsts;
  std::map<std::string, at::Tensor> tensors;
  for (const auto& described : each.at("checkpoint")) {
    const auto name = described.at("name").get<std::string>();
    firsts[name] = described.contains("first") ? firsts.at(described.at("first").get<std::string>())
                                               : 100.0 * static_cast<double>(tensors.size() + 1);
    const auto sizes = sizes_of(described);
    tensors[name] = (at::arange(c10::multiply_integers(sizes), at::kDouble) * 1.25 + firsts[name])
                        .to(dtype_of(described))
                        .reshape(sizes);
  }
  return tensors;
}

NamedTensors build(const json& each) {
  NamedTensors tensors;
  const auto earlier = [&](const json& name) {
    return std::find_if(tensors.begin(), tensors.end(),
                        [&](const auto& entry) { return entry.first == name; })
        ->second;
  };
  for (const auto& described : each.at("model")) {
    const auto tensor =
        described.contains("tied") ? earlier(described.at("tied")).detach()
        : described.contains("view")
            ? earlier(described.at("view")).view(sizes_of(described))
            : at::full(sizes_of(described), -static_cast<int64_t>(tensors.size()) - 1,
                       dtype_of(described));
    tensors.emplace_back(described.at("name").get<std::string>(), tensor);
  }
  return tensors;
}

LoadOptions options_of(const json& each) {
  LoadOptions options;
  options.missing = each.value("missing", "init") == "error" ? Missing::error : Missing::initialize;
  options.unexpected =
      each.value("unexpected", "error") == "error" ? Unexpected::error : Unexpected::ignore;
  options.mismatched =
      each.value("mismatched", "error") == "error" ? Mismatched::error : Mismatched::initialize;
  if (each.contains("rename")) {
    options.rename =
        [names = each.at("rename")](const std::string& name) -> std::optional<std::string> {
      if (!names.contains(name)) {
        return name;
      }
      return names.at(name).is_null() ? std::nullopt
                                      : std::optional(names.at(name).get<std::string>());
    };
  }
  return options;
}

class LoadCase : public testing::TestWithParam<std::tuple<json, bool>> {};

TEST_P(LoadCase, IsAsTheTableSays) {
  const auto& [each, lazy] = GetParam();
  const ScratchFolder folder;
  const auto path = folder.path("model.safetensors");
  const auto tensors = saved(each);
  save(NamedTensors(tensors.begin(), tensors.end()), path);
  const auto before = build(each);
  NamedTensors model;
  if (lazy) {
    const LazyInit guard;
    model = build(each);
  } else {
    model = build(each);
  }
  if (each.contains("error")) {
    std::string kind;
    std::string text;
    try {
      load(model, path, options_of(each));
    } catch (const c10::IndexError& error) {
      kind = "KeyError";
      text = error.what_without_backtrace();
    } catch (const c10::ValueError& error) {
      kind = "ValueError";
      text = error.what_without_backtrace();
    }
    EXPECT_EQ(kind, each.at("error").get<std::string>()) << text;
    for (const auto& name : each.at("names")) {
      EXPECT_TRUE(contains(text, "'" + name.get<std::string>() + "'")) << name << " in " << text;
    }
    for (const auto& [name, tensor] : model) {
      EXPECT_EQ(is_lazy(tensor), lazy) << name;
    }
    for (size_t i = 0; i < model.size(); ++i) {
      EXPECT_TRUE(model[i].second.equal(before[i].second)) << model[i].first;
    }
    return;
  }
  const auto report = load(model, path, options_of(each));
  const auto loaded = each.value("loaded", json::object());
  const auto left = each.value("left", std::set<std::string>());
  EXPECT_EQ(model.size(), loaded.size() + left.size());
  for (size_t i = 0; i < model.size(); ++i) {
    const auto& [name, tensor] = model[i];
    EXPECT_FALSE(is_lazy(tensor)) << name;
    const auto expected = left.contains(name) ? before[i].second
                                              : tensors.at(loaded.at(name).get<std::string>())
                                                    .to(tensor.scalar_type())
                                                    .reshape(tensor.sizes());
    EXPECT_TRUE(tensor.equal(expected)) << name;
  }
  EXPECT_EQ(report.ignored, each.value("ignored", std::vector<std::string>()));
}

INSTANTIATE_TEST_SUITE_P(Names, LoadCase,
                         testing::Combine(testing::ValuesIn(cases()), testing::Bool()),
                         [](const auto& info) {
                           auto name =
                               std::get<0>(info.param).at("case").template get<std::string>();
                           std::replace_if(
                               name.begin(), name.end(),
                               [](unsigned char c) { return std::isalnum(c) == 0; }, '_');
                           return name + (std::get<1>(info.param) ? "_lazy" : "_real");
                         });

}  // namespace
}  // namespace dormant
