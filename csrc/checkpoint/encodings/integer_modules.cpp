#include "checkpoint/encodings/integer_modules.h"

#include <c10/util/Exception.h>

#include <algorithm>
#include <cctype>

#include "text/printable.h"

namespace dormant::checkpoint {
namespace {

using nlohmann::json;

const json* value_in(const json& object, std::initializer_list<const char*> keys) {
  for (const auto* key : keys) {
    const auto found = object.is_object() ? object.find(key) : object.end();
    if (found != object.end() && !found->is_null()) {
      return &*found;
    }
  }
  return nullptr;
}

}  // namespace

std::optional<int64_t> integer_in(const Scan& scan, const json& object,
                                  std::initializer_list<const char*> keys) {
  constexpr int64_t kMost = int64_t{1} << 40;
  const auto* value = value_in(object, keys);
  if (value == nullptr) {
    return std::nullopt;
  }
  const bool fits = value->is_number_integer() && *value >= -kMost && *value <= kMost;
  TORCH_CHECK_VALUE(fits, scan.about(), scan.configured_in(), " states ", *keys.begin(), " as ",
                    text::printable(value->dump()), ", expected an integer. ", kNextRaw);
  return value->get<int64_t>();
}

std::string text_in(const Scan& scan, const json& object, std::initializer_list<const char*> keys) {
  const auto* value = value_in(object, keys);
  if (value == nullptr) {
    return {};
  }
  TORCH_CHECK_VALUE(value->is_string(), scan.about(), scan.configured_in(), " states ",
                    *keys.begin(), " as ", text::printable(value->dump()), ", expected a text. ",
                    kNextRaw);
  auto text = value->get<std::string>();
  std::transform(text.begin(), text.end(), text.begin(),
                 [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
  return text;
}

record::Geometry geometry_of(const RawTensor& tensor) {
  return record::Geometry::contiguous(tensor.sizes, tensor.dtype);
}

std::optional<std::string> before(const std::string& name, std::string_view ending) {
  if (!name.ends_with(ending) || name.size() == ending.size()) {
    return std::nullopt;
  }
  return name.substr(0, name.size() - ending.size());
}

}  // namespace dormant::checkpoint
