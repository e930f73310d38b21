#include "checkpoint/encodings/configuration.h"

#include <c10/util/Exception.h>

#include <algorithm>
#include <filesystem>
#include <system_error>
#include <utility>

#include "checkpoint/encodings/find.h"
#include "checkpoint/file.h"
#include "checkpoint/paths.h"
#include "text/printable.h"

namespace dormant::checkpoint {
namespace {

using nlohmann::json;

constexpr int kDeepest = 100;

/// `text` with null for the numbers that JSON lacks and Python writes.
std::string without_infinity(std::string_view text) {
  std::string result;
  result.reserve(text.size());
  bool quoted = false;
  for (size_t i = 0; i < text.size();) {
    if (quoted && text[i] == '\\' && i + 1 < text.size()) {
      result += text.substr(i, 2);
      i += 2;
      continue;
    }
    if (text[i] == '"') {
      quoted = !quoted;
    }
    size_t taken = 0;
    for (const std::string_view word : {"-Infinity", "Infinity", "NaN"}) {
      if (!quoted && taken == 0 && text.substr(i, word.size()) == word) {
        taken = word.size();
      }
    }
    if (taken != 0) {
      result += "null";
      i += taken;
    } else {
      result += text[i++];
    }
  }
  return result;
}

std::optional<c10::ScalarType> dtype_in(const json& config) {
  // Versions of transformers before 5 write "torch_dtype".
  for (const auto* key : {"dtype", "torch_dtype"}) {
    const auto found = config.find(key);
    if (found == config.end() || !found->is_string()) {
      continue;
    }
    auto name = found->get<std::string>();
    if (name.starts_with("torch.")) {
      name.erase(0, 6);
    }
    if (name == "float32" || name == "float") {
      return c10::ScalarType::Float;
    }
    if (name == "bfloat16") {
      return c10::ScalarType::BFloat16;
    }
    if (name == "float16" || name == "half") {
      return c10::ScalarType::Half;
    }
    if (name == "float64" || name == "double") {
      return c10::ScalarType::Double;
    }
  }
  return std::nullopt;
}

/// Of a model made of several, the language model's is the one that is quantized.
constexpr const char* kText = "text_config";

std::string method_in(const json& quantization) {
  const auto method = quantization.find("quant_method");
  return method != quantization.end() && method->is_string() ? method->get<std::string>()
                                                             : std::string();
}

/// What a file holds; std::nullopt where there is none, or it is longer than a configuration.
std::optional<std::string> text_of(const std::string& path) {
  std::error_code error;
  const auto size = std::filesystem::file_size(path, error);
  if (error || size > kLongestConfiguration) {
    return std::nullopt;
  }
  // One that is there and can't be read is an error: without it, weights may look like plain ones.
  const auto file = File::open(path);
  std::string text(std::min(file->size(), kLongestConfiguration), '\0');
  file->read(0, text.size(), text.data());
  return text;
}

const json* quantization_in(const json& config) {
  // compressed-tensors wrote "compression_config" once.
  for (const auto* key : {"quantization_config", "compression_config"}) {
    const auto found = config.find(key);
    if (found != config.end() && !found->is_null()) {
      return &*found;
    }
  }
  return nullptr;
}

}  // namespace

json parse_json(std::string_view text, const std::string& about) {
  // What is deeper is left out, and refused when the parser, which does not recurse, is done: it
  // must not be left by an exception while it may hold what is half made.
  bool too_deep = false;
  auto value = json::parse(
      text,
      [&](int depth, json::parse_event_t, json&) {
        too_deep = too_deep || depth > kDeepest;
        return depth <= kDeepest;
      },
      /*allow_exceptions=*/false);
  TORCH_CHECK_VALUE(!too_deep || !value.is_object(), about, " is nested deeper than ", kDeepest,
                    ", which no library writes. Next: correct the file, or pass decode=False.");
  return value;
}

Configuration parse_configuration(std::string_view text, const std::string& file) {
  const auto config = parse_json(without_infinity(text), "open_checkpoint: " + file);
  if (!config.is_object()) {
    return {};
  }
  Configuration result;
  result.file = file;
  result.dtype = dtype_in(config);
  const auto* quantization = quantization_in(config);
  const auto part = config.find(kText);
  if (part != config.end() && part->is_object()) {
    quantization = quantization == nullptr ? quantization_in(*part) : quantization;
    result.dtype = result.dtype ? result.dtype : dtype_in(*part);
  }
  if (quantization == nullptr) {
    return result;
  }
  TORCH_CHECK_VALUE(quantization->is_object(), "open_checkpoint: ", file,
                    ": quantization_config is ", quantization->type_name(),
                    ", expected an object. Next: correct the file, or pass decode=False.");
  result.quantization = *quantization;
  result.method = method_in(*quantization);
  return result;
}

void add_quantization(Configuration& configuration, std::string_view text,
                      const std::string& file) {
  if (!configuration.quantization.is_null()) {
    return;
  }
  auto quantization = parse_json(without_infinity(text), "open_checkpoint: " + file);
  if (!quantization.is_object()) {
    return;
  }
  auto method = method_in(quantization);
  if (method.empty()) {
    // The names under which these libraries state it.
    method = quantization.contains("w_bit") ? "awq" : quantization.contains("bits") ? "gptq" : "";
  }
  if (!method.empty()) {
    configuration.file = file;
    configuration.method = std::move(method);
    configuration.quantization = std::move(quantization);
  }
}

ConfigurationText read_configuration(const std::string& folder) {
  ConfigurationText result;
  auto path = in_folder(folder, "config.json");
  if (auto text = text_of(path)) {
    result.path = std::move(path);
    result.text = std::move(*text);
  }
  for (const auto* name : kQuantizationFiles) {
    auto other = in_folder(folder, name);
    if (auto text = text_of(other)) {
      result.quantization_files.emplace_back(std::move(other), std::move(*text));
    }
  }
  return result;
}

}  // namespace dormant::checkpoint
