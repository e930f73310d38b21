#include "text/pattern.h"

#include <c10/util/Exception.h>

#include <limits>
#include <optional>
#include <utility>

#include "text/printable.h"

namespace dormant::text {
namespace {

constexpr size_t kLongestPattern = 4096;
constexpr size_t kMostSteps = 4096;
constexpr size_t kDeepest = 32;
constexpr size_t kUnbounded = std::numeric_limits<size_t>::max();

std::bitset<256> class_of(char letter) {
  std::bitset<256> set;
  const auto add = [&](int first, int last) {
    for (int each = first; each <= last; ++each) {
      set.set(static_cast<size_t>(each));
    }
  };
  switch (letter) {
    case 'd':
    case 'D':
      add('0', '9');
      break;
    case 'w':
    case 'W':
      add('0', '9');
      add('a', 'z');
      add('A', 'Z');
      add('_', '_');
      add(128, 255);  // letters of other scripts
      break;
    default:
      add('\t', '\r');
      add(' ', ' ');
  }
  return letter >= 'A' && letter <= 'Z' ? ~set : set;
}

bool is_class(char letter) { return std::string_view("dDwWsS").find(letter) != std::string::npos; }

}  // namespace

/// Builds the steps of an expression from its end: each part is given the step that follows it.
/// The syntax is read once into a tree, for a repeated part is built several times.
class PatternParser {
 public:
  PatternParser(Pattern& pattern, std::string_view text) : pattern_(pattern), text_(text) {}

  void parse() {
    check(text_.size() <= kLongestPattern, "it is too long");
    const auto tree = alternatives(0);
    check(at_ == text_.size(), "it closes a parenthesis that is not open");
    pattern_.start_ = build(tree, add({.kind = Kind::done}));
  }

 private:
  using Kind = Pattern::Kind;
  struct Tree {
    enum class Type : uint8_t { set, sequence, alternatives, repeat, begin, end, look } type;
    std::bitset<256> set = {};
    std::vector<Tree> parts = {};
    size_t least = 0;
    size_t most = 0;
    bool negated = false;
  };
  using Type = Tree::Type;

  void check(bool condition, const char* cause) const {
    TORCH_CHECK_VALUE(condition, in_quotes(text_),
                      " is not a supported regular expression: ", cause, ", at character ", at_);
  }

  bool more() const { return at_ < text_.size(); }
  bool next_is(char c) const { return more() && text_[at_] == c; }
  bool take(std::string_view what) {
    if (text_.substr(at_, what.size()) != what) {
      return false;
    }
    at_ += what.size();
    return true;
  }
  char take_any() {
    check(more(), "it ends too early");
    return text_[at_++];
  }

  Tree alternatives(size_t depth) {
    check(depth < kDeepest, "it is nested too deeply");
    Tree tree{.type = Type::alternatives};
    do {
      Tree sequence{.type = Type::sequence};
      while (more() && !next_is('|') && !next_is(')')) {
        sequence.parts.push_back(repeated(atom(depth)));
      }
      tree.parts.push_back(std::move(sequence));
    } while (take("|"));
    return tree;
  }

  Tree atom(size_t depth) {
    if (take("(")) {
      Tree tree{.type = Type::look};
      if (take("?=") || take("?!")) {
        tree.negated = text_[at_ - 1] == '!';
        tree.parts.push_back(alternatives(depth + 1));
      } else {
        if (take("?P<")) {
          while (take_any() != '>') {
          }
        } else if (!take("?:")) {
          check(!next_is('?'), "it has a group of an unknown kind");
        }
        tree = alternatives(depth + 1);
      }
      check(take(")"), "a parenthesis is not closed");
      return tree;
    }
    if (take("^")) {
      return {.type = Type::begin};
    }
    if (take("$")) {
      return {.type = Type::end};
    }
    Tree tree{.type = Type::set};
    if (take("[")) {
      tree.set = bracket();
    } else if (take(".")) {
      tree.set.set();
      tree.set.reset('\n');
    } else if (take("\\")) {
      tree.set = escaped();
    } else {
      check(!next_is('*') && !next_is('+') && !next_is('?'), "it repeats nothing");
      tree.set.set(static_cast<uint8_t>(take_any()));
    }
    return tree;
  }

  std::bitset<256> escaped() {
    const char letter = take_any();
    if (is_class(letter)) {
      return class_of(letter);
    }
    const bool is_letter = class_of('w').test(static_cast<uint8_t>(letter)) && letter != '_';
    check(!is_letter, "it has an unknown escape");
    std::bitset<256> set;
    set.set(static_cast<uint8_t>(letter));
    return set;
  }

  std::bitset<256> bracket() {
    const bool negated = take("^");
    std::bitset<256> set;
    for (bool first = true; first || !next_is(']'); first = false) {
      const char from = take_any();
      if (from == '\\') {
        set |= escaped();
      } else if (next_is('-') && at_ + 1 < text_.size() && text_[at_ + 1] != ']') {
        ++at_;
        const char to = take_any();
        check(to != '\\' && static_cast<uint8_t>(from) <= static_cast<uint8_t>(to),
              "it has an invalid range");
        for (size_t each = static_cast<uint8_t>(from); each <= static_cast<uint8_t>(to); ++each) {
          set.set(each);
        }
      } else {
        set.set(static_cast<uint8_t>(from));
      }
    }
    ++at_;
    return negated ? ~set : set;
  }

  std::optional<size_t> number() {
    std::optional<size_t> value;
    while (more() && text_[at_] >= '0' && text_[at_] <= '9') {
      value = value.value_or(0) * 10 + static_cast<size_t>(take_any() - '0');
      check(*value <= kMostSteps, "it repeats too often");
    }
    return value;
  }

  Tree repeated(Tree tree) {
    size_t least = 0;
    size_t most = kUnbounded;
    const size_t before = at_;
    if (take("+")) {
      least = 1;
    } else if (take("?")) {
      most = 1;
    } else if (take("{")) {
      const auto from = number();
      const bool range = take(",");
      const auto to = range ? number() : from;
      if (!take("}") || (!from && !to)) {
        at_ = before;  // a brace that stands for itself
        return tree;
      }
      least = from.value_or(0);
      most = to.value_or(kUnbounded);
      check(least <= most, "it has an invalid range");
    } else if (!take("*")) {
      return tree;
    }
    // Whether the longest or the shortest is found first is all the same.
    static_cast<void>(take("?") || take("+"));
    check(!next_is('*') && !next_is('+') && !next_is('?'), "it repeats a repetition");
    Tree result{.type = Type::repeat, .least = least, .most = most};
    result.parts.push_back(std::move(tree));
    return result;
  }

  size_t add(Pattern::Step step) {
    check(pattern_.steps_.size() < kMostSteps, "it is too large");
    pattern_.steps_.push_back(std::move(step));
    return pattern_.steps_.size() - 1;
  }

  /// The step with which `tree`, and then `next`, begins.
  size_t build(const Tree& tree, size_t next) {
    switch (tree.type) {
      case Type::set:
        return add({.kind = Kind::set, .first = next, .set = tree.set});
      case Type::begin:
        return add({.kind = Kind::begin, .first = next});
      case Type::end:
        return add({.kind = Kind::end, .first = next});
      case Type::look: {
        const size_t inner = build(tree.parts[0], add({.kind = Kind::done}));
        return add({.kind = Kind::look, .first = next, .second = inner, .negated = tree.negated});
      }
      case Type::sequence: {
        for (size_t i = tree.parts.size(); i-- > 0;) {
          next = build(tree.parts[i], next);
        }
        return next;
      }
      case Type::alternatives: {
        size_t start = build(tree.parts.back(), next);
        for (size_t i = tree.parts.size() - 1; i-- > 0;) {
          start = add({.kind = Kind::split, .first = build(tree.parts[i], next), .second = start});
        }
        return start;
      }
      case Type::repeat:
        return build_repeat(tree, next);
    }
    return next;
  }

  size_t build_repeat(const Tree& tree, size_t next) {
    const Tree& part = tree.parts[0];
    if (tree.most == kUnbounded) {
      const size_t loop = add({.kind = Kind::split, .second = next});
      pattern_.steps_[loop].first = build(part, loop);
      next = loop;
    } else {
      const size_t end = next;
      for (size_t i = tree.least; i < tree.most; ++i) {
        const size_t inner = build(part, next);
        next = add({.kind = Kind::split, .first = inner, .second = end});
      }
    }
    for (size_t i = 0; i < tree.least; ++i) {
      next = build(part, next);
    }
    return next;
  }

  Pattern& pattern_;
  const std::string_view text_;
  size_t at_ = 0;
};

Pattern::Pattern(std::string_view pattern) { PatternParser(*this, pattern).parse(); }

std::vector<size_t> Pattern::ends(std::string_view text) const {
  return text.size() > kLongestText ? std::vector<size_t>() : ends_from(start_, text, 0);
}

/// All steps at once, a character at a time.
std::vector<size_t> Pattern::ends_from(size_t start, std::string_view text, size_t at) const {
  std::vector<size_t> found;
  std::vector<size_t> current = {start};
  std::vector<size_t> waiting;
  std::vector<bool> seen;
  for (;; ++at) {
    std::vector<size_t> following;
    seen.assign(steps_.size(), false);
    bool done = false;
    waiting = std::move(current);
    while (!waiting.empty()) {
      const size_t index = waiting.back();
      waiting.pop_back();
      if (seen[index]) {
        continue;
      }
      seen[index] = true;
      const Step& step = steps_[index];
      switch (step.kind) {
        case Kind::set:
          if (at < text.size() && step.set.test(static_cast<uint8_t>(text[at]))) {
            following.push_back(step.first);
          }
          break;
        case Kind::split:
          waiting.push_back(step.first);
          waiting.push_back(step.second);
          break;
        case Kind::begin:
          if (at == 0) {
            waiting.push_back(step.first);
          }
          break;
        case Kind::end:
          if (at == text.size()) {
            waiting.push_back(step.first);
          }
          break;
        case Kind::look:
          if (ends_from(step.second, text, at).empty() == step.negated) {
            waiting.push_back(step.first);
          }
          break;
        case Kind::done:
          done = true;
          break;
      }
    }
    if (done) {
      found.push_back(at);
    }
    if (following.empty()) {
      return found;
    }
    current = std::move(following);
  }
}

}  // namespace dormant::text
