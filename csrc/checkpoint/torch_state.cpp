#include "checkpoint/torch_state.h"

#include <c10/util/Exception.h>

#include <algorithm>
#include <array>
#include <set>
#include <unordered_map>
#include <utility>

#include "text/printable.h"

namespace dormant::checkpoint {
namespace {

using text::in_quotes;

// Far beyond real models: what shares and nests without end must not take for ever, or the stack.
constexpr size_t kDeepest = 200;
constexpr size_t kMostVisits = 4'000'000;
constexpr size_t kLongestNames = size_t{1} << 28;
constexpr size_t kListed = 20;  // keys in a message

// torch.nn.modules.module._EXTRA_STATE_KEY_SUFFIX: what lies there is part of a state dict.
constexpr std::string_view kExtraState = "_extra_state";

/// Names in the order in which they came, each with its latest value, as in a dict.
class Names {
 public:
  void set(std::string name, PickleId value) {
    const auto [found, added] = places_.try_emplace(name, all_.size());
    if (added) {
      all_.push_back({std::move(name), value});
    } else {
      all_[found->second].value = value;
    }
  }
  std::vector<TorchState::Named> take() { return std::move(all_); }

 private:
  std::vector<TorchState::Named> all_;
  std::unordered_map<std::string, size_t> places_;
};

/// Goes through modules and containers, and stops where that has no end.
class Walk {
 public:
  Walk(const TorchObjects& objects, const std::string& file)
      : objects_(objects), pickle_(objects.pickle()), file_(file) {}

  /// What `state_dict()` of the module would have (torch/nn/modules/module.py,
  /// _save_to_state_dict).
  void module(PickleId id, const std::string& prefix, size_t depth = 0) {
    visit(prefix, depth);
    const auto attributes = *objects_.attributes(id);
    const auto name = prefix.empty() ? prefix : prefix.substr(0, prefix.size() - 1);
    modules.push_back({name, objects_.class_of(id)});
    each(attribute(attributes, "_parameters"),
         [&](std::string_view key, PickleId value) { add(prefix, key, value); });
    std::set<std::string_view> left_out;
    if (const auto found = attribute(attributes, "_non_persistent_buffers_set")) {
      for (const auto item : objects_.elements(*found)) {
        if (pickle_.is(item, PickleKind::text)) {
          left_out.insert(pickle_.text(item));
        }
      }
    }
    each(attribute(attributes, "_buffers"), [&](std::string_view key, PickleId value) {
      if (!left_out.contains(key)) {
        add(prefix, key, value);
      }
    });
    each(attribute(attributes, "_modules"), [&](std::string_view key, PickleId value) {
      if (is_module(value)) {
        module(value, prefix + std::string(key) + ".", depth + 1);
      }
    });
  }

  /// Tensors in containers, objects and modules, by the way to them. False where there are none.
  bool nested(PickleId id, const std::string& prefix, size_t depth = 0) {
    if (objects_.is_tensor(id)) {
      visit(prefix, depth);
      names.set(prefix.substr(0, prefix.size() - 1), id);
      return true;
    }
    if (is_module(id)) {
      module(id, prefix, depth);
      return true;
    }
    if (without_tensors_.contains(id) || !open_.insert(id).second) {
      return false;  // the latter contains itself
    }
    visit(prefix, depth);
    bool found = false;
    if (const auto entries = objects_.entries(id)) {
      found = pairs(*entries, prefix, depth);
    }
    if (const auto attributes = objects_.attributes(id)) {
      found = pairs(*attributes, prefix, depth) || found;
    }
    size_t position = 0;
    for (const auto item : objects_.elements(id)) {
      found = nested(item, prefix + std::to_string(position++) + ".", depth + 1) || found;
    }
    open_.erase(id);
    if (!found) {
      without_tensors_.insert(id);
    }
    return found;
  }

  bool is_module(PickleId id) const {
    const auto attributes = objects_.attributes(id);
    if (!attributes) {
      return false;
    }
    return std::all_of(kOfModules.begin(), kOfModules.end(), [&](std::string_view name) {
      const auto found = attribute(*attributes, name);
      return found && objects_.entries(*found);
    });
  }

  Names names;
  std::vector<TorchState::Module> modules;

 private:
  static constexpr std::array<std::string_view, 3> kOfModules = {"_parameters", "_buffers",
                                                                 "_modules"};

  std::optional<PickleId> attribute(std::span<const PickleId> attributes,
                                    std::string_view name) const {
    for (size_t i = attributes.size(); i > 0; i -= 2) {
      if (pickle_.is(attributes[i - 2], PickleKind::text) &&
          pickle_.text(attributes[i - 2]) == name) {
        return attributes[i - 1];
      }
    }
    return std::nullopt;
  }

  template <typename Function>
  void each(std::optional<PickleId> mapping, const Function& function) {
    const auto entries = objects_.entries(*mapping);
    for (size_t i = 0; i < entries->size(); i += 2) {
      const auto key = (*entries)[i];
      if (pickle_.is(key, PickleKind::text)) {
        function(pickle_.text(key), (*entries)[i + 1]);
      }
    }
  }

  bool pairs(std::span<const PickleId> entries, const std::string& prefix, size_t depth) {
    bool found = false;
    for (size_t i = 0; i < entries.size(); i += 2) {
      const auto key = entries[i];
      std::string name = prefix;
      if (pickle_.is(key, PickleKind::text)) {
        name += pickle_.text(key);
      } else if (pickle_.is(key, PickleKind::integer) && pickle_.integer(key)) {
        name += std::to_string(*pickle_.integer(key));
      } else {
        continue;
      }
      found = nested(entries[i + 1], name + ".", depth + 1) || found;
    }
    return found;
  }

  /// A parameter or buffer, unless it is None.
  void add(const std::string& prefix, std::string_view key, PickleId value) {
    if (objects_.is_tensor(value)) {
      auto name = prefix + std::string(key);
      visit(name, 0);
      names.set(std::move(name), value);
    }
  }

  void visit(const std::string& name, size_t depth) {
    TORCH_CHECK_VALUE(depth <= kDeepest, "open_checkpoint: ", file_,
                      ": modules or containers nest deeper than ", kDeepest, " at ",
                      in_quotes(name), ". Cause: the file is damaged or malicious.");
    length_ += name.size();
    TORCH_CHECK_VALUE(++visits_ <= kMostVisits && length_ <= kLongestNames,
                      "open_checkpoint: ", file_, " has more than ", kMostVisits,
                      " modules and tensors, or names that are too long, at ", in_quotes(name),
                      ". Cause: the file is damaged or malicious.");
  }

  const TorchObjects& objects_;
  const Pickle& pickle_;
  const std::string& file_;
  std::set<PickleId> open_;             ///< containers of where the walk is
  std::set<PickleId> without_tensors_;  ///< which need not be gone through again
  size_t visits_ = 0;
  size_t length_ = 0;
};

/// A mapping in the file that can be the state dict.
struct Candidate {
  std::string key;  ///< "" for the file's own
  PickleId value;
  std::vector<std::string> names;
};

class Choice {
 public:
  Choice(const TorchObjects& objects, const Fits& fits, const std::string& file)
      : objects_(objects), pickle_(objects.pickle()), fits_(fits), file_(file) {}

  TorchState find(const std::optional<std::string>& key) {
    const auto root = pickle_.root();
    const Walk walk(objects_, file_);
    const bool is_module = walk.is_module(root);
    auto outer = objects_.entries(root);
    if (!outer && !is_module) {
      if (const auto attributes = objects_.attributes(root)) {
        outer.emplace(attributes->begin(), attributes->end());
      }
    }
    if (!outer && !is_module && key.value_or("").empty() && !objects_.elements(root).empty()) {
      if (const auto found = nested_under("")) {
        return *found;  // a list or tuple
      }
    }
    TORCH_CHECK_VALUE((outer || is_module) && !objects_.is_tensor(root), "open_checkpoint: ", file_,
                      " contains a ", objects_.is_tensor(root) ? "Tensor" : pickle_.describe(root),
                      ", expected a mapping of names to tensors. Next: load it with torch.load.");
    if (outer) {
      outer_ = unique(*outer);
    }
    // TorchScript keeps parameters, buffers and children as attributes, and calls classes so.
    const bool is_script = pickle_.is(root, PickleKind::record) &&
                           objects_.name_of(objects_.class_of(root)).starts_with("__torch__.");
    if (is_script && key.value_or("").empty()) {
      if (const auto found = nested_under("")) {
        return *found;
      }
    }
    find_candidates(is_module);
    if (!key) {
      return choose();
    }
    for (const auto& candidate : candidates_) {
      if (candidate.key == *key) {
        return state_of(candidate);
      }
    }
    if (const auto found = nested_under(*key)) {
      return *found;
    }
    TORCH_CHECK_INDEX(false, "open_checkpoint: ", file_, " has no mapping ", in_quotes(*key),
                      " of names to tensors; it has ", keys_of_candidates(), ".");
  }

 private:
  /// Keys in the order in which they came, of each the last value.
  std::vector<PickleId> unique(const std::vector<PickleId>& entries) const {
    std::unordered_map<std::string_view, size_t> places;
    std::vector<PickleId> result;
    for (size_t i = 0; i < entries.size(); i += 2) {
      if (pickle_.is(entries[i], PickleKind::text)) {
        const auto [found, added] = places.try_emplace(pickle_.text(entries[i]), result.size());
        if (!added) {
          result[found->second + 1] = entries[i + 1];
          continue;
        }
      }
      result.push_back(entries[i]);
      result.push_back(entries[i + 1]);
    }
    return result;
  }

  void find_candidates(bool is_module) {
    consider("", pickle_.root(), is_module);
    Walk walk(objects_, file_);
    for (size_t i = 0; i < outer_.size(); i += 2) {
      if (!pickle_.is(outer_[i], PickleKind::text)) {
        continue;
      }
      const auto key = pickle_.text(outer_[i]);
      if (!key.empty() && !key.ends_with(kExtraState)) {
        consider(std::string(key), outer_[i + 1], walk.is_module(outer_[i + 1]));
      }
    }
  }

  void consider(std::string key, PickleId value, bool is_module) {
    std::vector<std::string> names;
    bool holds_tensors = false;
    if (is_module) {
      Walk walk(objects_, file_);
      walk.module(value, "");
      for (auto& named : walk.names.take()) {
        names.push_back(std::move(named.name));
      }
    } else if (const auto entries = key.empty() ? std::optional(outer_) : objects_.entries(value)) {
      for (size_t i = 0; i < entries->size(); i += 2) {
        if (objects_.is_tensor((*entries)[i + 1])) {
          holds_tensors = true;
          if (pickle_.is((*entries)[i], PickleKind::text)) {
            names.emplace_back(pickle_.text((*entries)[i]));
          }
        }
      }
    }
    if (!names.empty() || holds_tensors) {
      candidates_.push_back({std::move(key), value, std::move(names)});
    }
  }

  /// Training loops put a single tensor beside the state dict (an accuracy, a loss, the state of a
  /// generator): a mapping of one tensor is the state dict only where no other can be.
  TorchState choose() {
    if (fits_ && candidates_.size() > 1) {
      std::vector<size_t> counts;
      for (const auto& candidate : candidates_) {
        counts.push_back(fits_(candidate.names));
      }
      const auto best = std::max_element(counts.begin(), counts.end());
      if (*best > 0 && std::count(counts.begin(), counts.end(), *best) == 1) {
        return state_of(candidates_[static_cast<size_t>(best - counts.begin())]);
      }
    }
    const auto has_several = [](const Candidate& one) { return one.names.size() > 1; };
    if (std::count_if(candidates_.begin(), candidates_.end(), has_several) == 1) {
      return state_of(*std::find_if(candidates_.begin(), candidates_.end(), has_several));
    }
    if (candidates_.size() == 1) {
      return state_of(candidates_[0]);
    }
    if (outer_.empty()) {
      return state_of({"", pickle_.root(), {}});
    }
    if (candidates_.empty()) {
      if (const auto found = only_nested()) {
        return *found;
      }
    }
    std::string held;
    for (size_t i = 0; i < std::min(outer_.size(), 2 * kListed); i += 2) {
      held += (held.empty() ? "" : ", ") + quoted(outer_[i]);
    }
    const bool own = !candidates_.empty() && candidates_[0].key.empty();
    const auto example = candidates_.empty() ? "" : candidates_[own && candidates_.size() > 1].key;
    TORCH_CHECK_VALUE(
        false, "open_checkpoint: ", file_, " contains [", held,
        "], expected tensors by name, or one mapping of names to tensors; got ", candidates_.size(),
        ": ", keys_of_candidates(), own ? " (\"\" is the file itself)" : "", ". ",
        candidates_.empty()
            ? "Next: load it with torch.load."
            : "Choose one: dormant.open_checkpoint(path, key=" + in_quotes(example) + ").");
  }

  /// The value whose nested containers have tensors, where there is only one; else the file itself.
  std::optional<TorchState> only_nested() {
    std::vector<std::string> found;
    for (size_t i = 0; i < outer_.size(); i += 2) {
      Walk walk(objects_, file_);
      walk.nested(outer_[i + 1], ".");
      if (!walk.names.take().empty()) {
        found.push_back(pickle_.is(outer_[i], PickleKind::text)
                            ? std::string(pickle_.text(outer_[i]))
                            : std::string());
      }
    }
    if (found.empty()) {
      return std::nullopt;
    }
    return nested_under(found.size() == 1 ? found[0] : "");
  }

  std::optional<TorchState> nested_under(const std::string& key) {
    TorchState state;
    std::optional<PickleId> value;
    for (size_t i = 0; i < outer_.size(); i += 2) {
      if (pickle_.is(outer_[i], PickleKind::text) && pickle_.text(outer_[i]) == key) {
        value = outer_[i + 1];
      }
      state.beside.push_back({outer_[i], outer_[i + 1]});
    }
    if (!key.empty() && !value) {
      return std::nullopt;
    }
    Walk walk(objects_, file_);
    walk.nested(key.empty() ? pickle_.root() : *value, "");
    state.tensors = walk.names.take();
    state.modules = std::move(walk.modules);
    // An empty mapping is one of names to tensors.
    if (state.tensors.empty() &&
        !(value && objects_.entries(*value) && objects_.entries(*value)->empty())) {
      return std::nullopt;
    }
    return state;
  }

  TorchState state_of(const Candidate& candidate) {
    TorchState state;
    const bool own = candidate.key.empty();
    Walk walk(objects_, file_);
    const bool is_module = walk.is_module(candidate.value);
    for (size_t i = 0; i < outer_.size() && !own; i += 2) {
      const bool chosen =
          pickle_.is(outer_[i], PickleKind::text) && pickle_.text(outer_[i]) == candidate.key;
      if (!chosen || is_module) {  // a module is more than its tensors
        state.beside.push_back({outer_[i], outer_[i + 1]});
      }
    }
    if (is_module) {
      walk.module(candidate.value, "");
      state.tensors = walk.names.take();
      state.modules = std::move(walk.modules);
      if (own) {
        state.beside.push_back({std::nullopt, candidate.value});
      }
      return state;
    }
    const auto entries = own ? outer_ : unique(*objects_.entries(candidate.value));
    for (size_t i = 0; i < entries.size(); i += 2) {
      const auto key = entries[i];
      if (!objects_.is_tensor(entries[i + 1])) {
        state.beside.push_back({key, entries[i + 1]});
        continue;
      }
      const bool named = pickle_.is(key, PickleKind::text) && !pickle_.text(key).empty() &&
                         text::first_not_utf8(pickle_.text(key)) == std::string_view::npos;
      TORCH_CHECK_VALUE(named, "open_checkpoint: ", file_, " contains a tensor under ",
                        pickle_.describe(key), ", expected a name. Next: load it with torch.load.");
      state.tensors.push_back({std::string(pickle_.text(key)), entries[i + 1]});
    }
    if (pickle_.is(candidate.value, PickleKind::record) && pickle_.record(candidate.value).state) {
      state.mapping = candidate.value;
    }
    return state;
  }

  std::string quoted(PickleId key) const {
    return pickle_.is(key, PickleKind::text) ? in_quotes(pickle_.text(key)) : pickle_.describe(key);
  }

  std::string keys_of_candidates() const {
    std::string text;
    for (size_t i = 0; i < std::min(candidates_.size(), kListed); ++i) {
      text += (i == 0 ? "" : ", ") + in_quotes(candidates_[i].key);
    }
    return "[" + text + "]";
  }

  const TorchObjects& objects_;
  const Pickle& pickle_;
  const Fits& fits_;
  const std::string& file_;
  std::vector<PickleId> outer_;
  std::vector<Candidate> candidates_;
};

}  // namespace

TorchState find_state(const TorchObjects& objects, const std::optional<std::string>& key,
                      const Fits& fits, const std::string& file) {
  return Choice(objects, fits, file).find(key);
}

}  // namespace dormant::checkpoint
