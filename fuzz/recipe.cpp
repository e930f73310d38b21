// The input is a recipe: a line for each captured tensor, then the document. Whatever it is, it is
// refused by c10::ValueError, or the storage that it makes can be materialized, and written as a
// recipe again, which does not change any more.
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <c10/util/Exception.h>
#include <dormant/dormant.h>

#include <algorithm>
#include <charconv>
#include <cstddef>
#include <cstdint>
#include <nlohmann/json.hpp>
#include <optional>
#include <random>
#include <sstream>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include "recipe/recipe.h"
#include "record/lazy_storage.h"

namespace {

using nlohmann::json;
namespace recipe = dormant::recipe;
namespace record = dormant::record;

/// Documents that ask for more are read, but not materialized.
constexpr int64_t kMostBytes = int64_t{1} << 20;

void require(bool condition, const char* what) {
  if (!condition) {
    throw std::logic_error(what);
  }
}

/// "DTYPE SIZE SIZE ... = HEXADECIMAL", little-endian.
std::optional<at::Tensor> captured_tensor(const std::string& line) {
  std::istringstream words(line);
  int dtype = -1;
  words >> dtype;
  if (dtype < 0 || dtype > static_cast<int>(c10::ScalarType::BFloat16) ||
      c10::isQIntType(static_cast<c10::ScalarType>(dtype))) {
    return std::nullopt;
  }
  std::vector<int64_t> sizes;
  int64_t numel = 1;
  std::string word;
  while (words >> word && word != "=") {
    sizes.push_back(std::clamp(std::atoi(word.c_str()), 0, 64));
    numel *= std::max<int64_t>(sizes.back(), 1);
    if (numel > 4096) {
      return std::nullopt;
    }
  }
  auto tensor = at::empty(sizes, static_cast<c10::ScalarType>(dtype));
  std::string digits;
  words >> digits;
  digits.resize(2 * tensor.nbytes(), '0');
  auto* bytes = static_cast<uint8_t*>(tensor.mutable_data_ptr());
  for (size_t i = 0; i < tensor.nbytes(); ++i) {
    bytes[i] = 0;
    std::from_chars(&digits[2 * i], &digits[2 * i] + 2, bytes[i], 16);
  }
  if (tensor.scalar_type() == c10::ScalarType::Bool) {
    std::transform(bytes, bytes + tensor.nbytes(), bytes, [](uint8_t b) { return b & 1; });
  }
  return tensor;
}

struct Input {
  std::vector<at::Tensor> tensors;
  std::vector<std::string> lines;  ///< of the tensors
  std::string document;
};

Input split(std::string_view text) {
  Input input;
  while (!text.empty() && text.front() != '{' && input.lines.size() < 16) {
    const auto end = std::min(text.find('\n'), text.size());
    input.lines.emplace_back(text.substr(0, end));
    if (auto tensor = captured_tensor(input.lines.back())) {
      input.tensors.push_back(std::move(*tensor));
    }
    text.remove_prefix(std::min(end + 1, text.size()));
  }
  input.document = text;
  return input;
}

/// An operator may refuse values that nobody knows before, such as a singular matrix.
void try_to_materialize(const at::Tensor& tensor) {
  try {
    dormant::materialize(tensor);
  } catch (const c10::Error&) {
  }
}

/// The values in `node` that are no containers, and the arrays.
void collect(json& node, std::vector<json*>& leaves, std::vector<json*>& arrays) {
  if (!node.is_structured()) {
    leaves.push_back(&node);
    return;
  }
  if (node.is_array()) {
    arrays.push_back(&node);
  }
  for (auto& child : node) {
    collect(child, leaves, arrays);
  }
}

json other_value(const json& old, std::mt19937& random, const std::vector<json*>& leaves) {
  static const std::vector<json> kValues = {nullptr,
                                            true,
                                            false,
                                            0,
                                            1,
                                            2,
                                            3,
                                            7,
                                            8,
                                            -1,
                                            -2,
                                            64,
                                            65,
                                            255,
                                            1024,
                                            65536,
                                            INT32_MAX,
                                            int64_t{1} << 32,
                                            int64_t{1} << 40,
                                            INT64_MAX,
                                            INT64_MIN,
                                            UINT64_MAX,
                                            "inf",
                                            "-inf",
                                            "nan",
                                            "0",
                                            "1p+0",
                                            "-1p+0",
                                            "1.8p+1000",
                                            "1p-1074",
                                            "Float",
                                            "Long",
                                            "Bool",
                                            "Byte",
                                            "Double",
                                            "Half",
                                            "BFloat16",
                                            "ComplexFloat",
                                            "sum",
                                            "mean",
                                            "trunc",
                                            "floor",
                                            json::array(),
                                            json::array({1, 1})};
  switch (random() % 4) {
    case 0:
      if (old.is_number_integer()) {
        return static_cast<int64_t>(old.get<uint64_t>() + random() % 5 - 2);
      }
      [[fallthrough]];
    case 1:
      return *leaves[random() % leaves.size()];
    default:
      return kValues[random() % kValues.size()];
  }
}

void mutate(json& document, std::mt19937& random) {
  std::vector<json*> leaves;
  std::vector<json*> arrays;
  collect(document, leaves, arrays);
  if (leaves.empty() || arrays.empty()) {
    return;
  }
  auto& array = *arrays[random() % arrays.size()];
  const auto place = [&](size_t count) {
    return array.begin() + static_cast<std::ptrdiff_t>(random() % count);
  };
  switch (random() % 8) {
    case 0:
      if (!array.empty()) {
        array.erase(place(array.size()));
      }
      return;
    case 1:
      if (!array.empty()) {
        const json copy = *place(array.size());
        array.insert(place(array.size() + 1), copy);
      }
      return;
    case 2:
      if (!array.empty()) {
        std::iter_swap(place(array.size()), place(array.size()));
      }
      return;
    default: {
      auto& leaf = *leaves[random() % leaves.size()];
      leaf = other_value(leaf, random, leaves);
    }
  }
}

}  // namespace

/// Changes values of the document, so that most inputs are still JSON; a few in another way.
extern "C" size_t LLVMFuzzerCustomMutator(uint8_t* data, size_t size, size_t limit,
                                          unsigned int seed) {
  std::mt19937 random(seed);
  auto input = split({reinterpret_cast<const char*>(data), size});
  auto document = json::parse(input.document, nullptr, /*allow_exceptions=*/false);
  if (document.is_discarded()) {
    return size;
  }
  for (auto left = 1 + random() % 3; left > 0; --left) {
    mutate(document, random);
  }
  std::string text;
  for (auto& line : input.lines) {
    if (random() % 8 == 0 && !line.empty()) {
      line[random() % line.size()] = "0123456789abcdf="[random() % 16];
    }
    text += line + '\n';
  }
  text += document.dump();
  text.resize(std::min(text.size(), limit));
  std::copy(text.begin(), text.end(), data);
  return text.size();
}

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  at::set_num_threads(1);
  const auto input = split({reinterpret_cast<const char*>(data), size});
  const auto living = record::live_storages();
  try {
    const auto storage = recipe::read(input.document, input.tensors);
    const auto again = recipe::write(storage);
    const auto copy = recipe::read(again.document, again.tensors);
    require(recipe::write(copy).document == again.document, "a recipe changes when it is copied");
    const auto document = json::parse(again.document);
    int64_t nbytes = 0;
    for (const auto& one : document["storages"]) {
      nbytes += one.get<int64_t>();
    }
    if (nbytes <= kMostBytes) {
      try_to_materialize(record::make_tensor(storage, record::Geometry::bytes(storage.nbytes())));
    }
  } catch (const c10::ValueError&) {
  } catch (const c10::NotImplementedError&) {
  }
  require(record::live_storages() == living, "a lazy storage was left over");
  return 0;
}
