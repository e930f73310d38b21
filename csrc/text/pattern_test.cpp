#include "text/pattern.h"

#include <c10/util/Exception.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <string>

namespace dormant::text {
namespace {

bool matches(const std::string& pattern, const std::string& text) {
  return !Pattern(pattern).ends(text).empty();
}

bool matches_all(const std::string& pattern, const std::string& text) {
  const auto ends = Pattern(pattern).ends(text);
  return std::find(ends.begin(), ends.end(), text.size()) != ends.end();
}

TEST(Pattern, MatchesAsPythonDoes) {
  EXPECT_TRUE(matches("model", "model.layers"));
  EXPECT_FALSE(matches("layers", "model.layers"));
  EXPECT_TRUE(matches(".*lm_head", "model.lm_head.weight"));
  EXPECT_TRUE(matches_all(R"(model\.layers\.\d+\.mlp)", "model.layers.12.mlp"));
  EXPECT_FALSE(matches(R"(model\.layers\.\d+\.mlp)", "model.layers.x.mlp"));
  EXPECT_TRUE(matches_all(".*self_attn\\.(q|k|v)_proj$", "a.self_attn.k_proj"));
  EXPECT_FALSE(matches(".*self_attn\\.(q|k|v)_proj$", "a.self_attn.k_proj.x"));
  EXPECT_TRUE(matches_all("a{2,3}b?", "aaab"));
  EXPECT_FALSE(matches_all("a{2,3}b?", "ab"));
  EXPECT_TRUE(matches_all("a{x", "a{x"));
  EXPECT_TRUE(matches_all("[a-c_]+[^x]", "ab_cy"));
  EXPECT_FALSE(matches_all("[a-c_]+[^x]", "ab_cx"));
  EXPECT_TRUE(matches("(?!.*gate)model", "model.up"));
  EXPECT_FALSE(matches("(?!.*gate)model", "model.gate"));
  EXPECT_TRUE(matches_all("(?:a|b|)c", "c"));
  EXPECT_TRUE(matches_all("(?P<name>x)y*?", "xyy"));
}

TEST(Pattern, RefusesWhatItDoesNotKnow) {
  for (const auto* pattern : {"(", ")", "a**", "*", "(?<=x)", "[a", "\\b", "a{4097}", "[b-a]",
                              "((((a{99}){99}){99}){99})", "\\"}) {
    EXPECT_THROW(Pattern{pattern}, c10::ValueError) << pattern;
  }
  EXPECT_THROW(Pattern(std::string(5000, 'a')), c10::ValueError);
  EXPECT_THROW(Pattern(std::string(1000, '(')), c10::ValueError);
}

TEST(Pattern, TakesNoLongerForWhatMakesOthersBacktrack) {
  EXPECT_FALSE(matches_all("(a*)*b", std::string(4000, 'a')));
  EXPECT_FALSE(matches_all("(.*)*(.*)*x", std::string(4000, 'a')));
  EXPECT_TRUE(Pattern(".*").ends(std::string(5000, 'a')).empty());
}

}  // namespace
}  // namespace dormant::text
