// Regular expressions from untrusted files, in Python's syntax.
//
// std::regex recurses for each character and takes exponential time for some patterns, so a file
// could exhaust the stack or keep a process busy for good. Here time and memory are bounded by the
// product of the lengths of pattern and text.
#pragma once

#include <bitset>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace dormant::text {

/// Immutable. Knows what lists of modules use: characters and classes, groups, alternatives,
/// repetition, ^, $, and lookahead. Characters are bytes.
class Pattern {
 public:
  /// A longer text is not looked at.
  static constexpr size_t kLongestText = 4096;

  /// c10::ValueError where `pattern` is no such expression, or a very large one.
  explicit Pattern(std::string_view pattern);

  /// The ends of all beginnings of `text` that match, in ascending order: re.match finds one of
  /// them. None where the text is longer than kLongestText.
  std::vector<size_t> ends(std::string_view text) const;

 private:
  friend class PatternParser;

  enum class Kind : uint8_t { set, split, begin, end, look, done };
  /// One step of the expression; `first` and `second` are the steps that follow.
  struct Step {
    Kind kind;
    size_t first = 0;
    size_t second = 0;     ///< of `split`; of `look` where what is looked for begins
    bool negated = false;  ///< of `look`
    std::bitset<256> set = {};
  };

  std::vector<size_t> ends_from(size_t start, std::string_view text, size_t at) const;

  std::vector<Step> steps_;
  size_t start_ = 0;
};

}  // namespace dormant::text
