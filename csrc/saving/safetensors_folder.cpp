#include "saving/safetensors_folder.h"

#include <algorithm>
#include <array>
#include <cstdio>
#include <nlohmann/json.hpp>
#include <string_view>
#include <utility>

#include "publication/staging.h"
#include "system/folder.h"

namespace dormant::saving {
namespace {

using publication::Replacement;

constexpr const char* kWhole = "model.safetensors";
constexpr const char* kIndex = "model.safetensors.index.json";
constexpr std::string_view kStem = "model-";
constexpr std::string_view kSuffix = ".safetensors";

std::string shard_name(size_t number, size_t count) {
  std::array<char, 96> text{};
  std::snprintf(text.data(), text.size(), "model-%05zu-of-%05zu.safetensors", number, count);
  return text.data();
}

/// Takes `count` characters of `kind` from the front; whether they were there.
template <typename Kind>
bool take(std::string_view& text, size_t count, Kind kind) {
  if (text.size() < count || !std::all_of(text.begin(), text.begin() + count, kind)) {
    return false;
  }
  text.remove_prefix(count);
  return true;
}

bool take(std::string_view& text, std::string_view expected) {
  const bool found = text.starts_with(expected);
  text.remove_prefix(found ? expected.size() : 0);
  return found;
}

bool is_digit(char c) { return c >= '0' && c <= '9'; }
bool is_hexadecimal(char c) { return is_digit(c) || (c >= 'a' && c <= 'f'); }

/// Of a model in shards, also one of a save that was killed while it gave shards the names of
/// earlier ones: model-00001-of-00002.0a1b2c3d.safetensors.
bool is_shard(std::string_view name) {
  if (!take(name, kStem) || !take(name, 5, is_digit) || !take(name, "-of-") ||
      !take(name, 5, is_digit)) {
    return false;
  }
  if (name != kSuffix && (!take(name, ".") || !take(name, 8, is_hexadecimal))) {
    return false;
  }
  return name == kSuffix;
}

}  // namespace

SafetensorsFolder::SafetensorsFolder(std::vector<std::string> names, c10::ArrayRef<uint64_t> sizes,
                                     uint64_t limit)
    : names_(std::move(names)) {
  std::vector<size_t> current;
  uint64_t filled = 0;
  for (size_t i = 0; i < sizes.size(); ++i) {
    total_ += sizes[i];
    if (sizes[i] > limit) {
      files_.push_back({{}, {i}});
      continue;
    }
    if (sizes[i] > limit - filled) {
      files_.push_back({{}, std::exchange(current, {})});
      filled = 0;
    }
    current.push_back(i);
    filled += sizes[i];
  }
  if (!current.empty() || files_.empty()) {
    files_.push_back({{}, std::move(current)});
  }
  for (size_t i = 0; i < files_.size(); ++i) {
    files_[i].name = files_.size() == 1 ? kWhole : shard_name(i + 1, files_.size());
  }
}

std::string SafetensorsFolder::index(const std::map<std::string, std::string>& others) const {
  nlohmann::json index;
  index["metadata"]["total_size"] = total_;
  auto& map = index["weight_map"] = nlohmann::json::object();
  for (const auto& file : files_) {
    const auto other = others.find(file.name);
    for (const auto i : file.tensors) {
      map[names_[i]] = other == others.end() ? file.name : other->second;
    }
  }
  return index.dump(2, ' ', /*ensure_ascii=*/true) + "\n";
}

void SafetensorsFolder::replace_earlier(Replacement& replacement, const WriteBytes& write) const {
  const auto names = system::names_in(replacement.folder(), "save");
  const std::set<std::string> present(names.begin(), names.end());
  std::set<std::string> stale;
  for (const auto& name : present) {
    if (is_shard(name)) {
      stale.insert(name);
    }
  }
  for (const auto& file : files_) {
    stale.erase(file.name);
  }
  if (files_.size() == 1) {
    replacement.place(kWhole);
    replacement.sync();
    replacement.remove(kIndex);
  } else {
    stale.merge(place_shards(replacement, present, write));
  }
  for (const auto& name : stale) {
    replacement.remove(name);
  }
}

std::set<std::string> SafetensorsFolder::place_shards(Replacement& replacement,
                                                      const std::set<std::string>& present,
                                                      const WriteBytes& write) const {
  std::set<std::string> taken;
  for (const auto& file : files_) {
    if (present.contains(file.name)) {
      taken.insert(file.name);
    }
  }
  const auto place_all = [&] {
    for (const auto& file : files_) {
      replacement.place(file.name);
    }
    replacement.sync();
  };
  if (taken.empty()) {
    place_all();
    switch_to(replacement, index(), write);
    return {};
  }
  // An index may lead to such names of a process that was killed.
  const auto token = publication::random_digits(8);
  std::map<std::string, std::string> others;
  bool linked = true;
  for (const auto& file : files_) {
    auto other = file.name;
    other.insert(other.size() - kSuffix.size(), "." + token);
    linked = replacement.place_also(file.name, other) && linked;
    others.emplace(file.name, std::move(other));
  }
  if (!linked) {
    // They stay under their other names, which the index leads to as well.
    for (const auto& [name, other] : others) {
      replacement.rename(name, other);
    }
    for (const auto& [name, other] : others) {
      replacement.place(other);
    }
  }
  replacement.sync();
  switch_to(replacement, index(others), write);
  if (!linked) {
    return taken;
  }
  place_all();
  switch_to(replacement, index(), write);
  std::set<std::string> spent;
  for (const auto& [name, other] : others) {
    spent.insert(other);
  }
  return spent;
}

void SafetensorsFolder::switch_to(Replacement& replacement, const std::string& index,
                                  const WriteBytes& write) const {
  replacement.create(kIndex, [&](int descriptor) { write(index, descriptor); });
  replacement.place(kIndex);
  replacement.sync();
  replacement.remove(kWhole);
  replacement.sync();
}

}  // namespace dormant::saving
