// The input is a line for each tensor (name, number of the dtype, sizes, perhaps the name of a type
// of GGUF), a zero byte, a config.json, perhaps another zero byte and a quantize_config.json.
// Whatever they are, they are refused by c10::ValueError or c10::NotImplementedError, or every
// plain tensor that is found decodes: its parts are among the tensors, and what a range of it wants
// of them exists.
#include <ATen/ATen.h>
#include <c10/util/Exception.h>
#include <c10/util/safe_numerics.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <iterator>
#include <map>
#include <optional>
#include <sstream>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "checkpoint/encodings/find.h"

extern "C" {
uint64_t fuzz_accepted = 0;  // with an encoded tensor in it
}

namespace {

namespace checkpoint = dormant::checkpoint;
using dormant::record::Decoder;

constexpr int64_t kMostElements = 1 << 16;

/// Decodes the beginning, the middle and the end of a small tensor.
void decode(const Decoder& decoder) {
  std::vector<at::Tensor> parts;
  for (const auto& geometry : decoder.parts()) {
    if (geometry.numel() > kMostElements) {
      return;
    }
    std::vector<int64_t> sizes(geometry.sizes.begin(), geometry.sizes.end());
    auto part = at::empty(sizes, at::TensorOptions().dtype(geometry.dtype));
    // A list of integers names groups: the first one is there.
    const bool names_groups = geometry.dtype == c10::ScalarType::Int && sizes.size() == 1;
    std::fill_n(static_cast<char*>(part.mutable_data_ptr()), part.nbytes(),
                names_groups ? '\0' : '\x5a');
    parts.push_back(std::move(part));
  }
  const auto output = decoder.output();
  const int64_t numel = output.numel();
  if (numel == 0 || numel > kMostElements) {
    return;
  }
  const int64_t unit = decoder.unit();
  const auto width = static_cast<int64_t>(c10::elementSize(output.dtype));
  for (const int64_t at : {int64_t{0}, numel / 2, numel - 1}) {
    const int64_t begin = at / unit * unit;
    const int64_t end = std::min(numel, begin + 3 * unit);
    std::vector<char> out(static_cast<size_t>((end - begin) * width));
    dormant::record::run_range(decoder, parts, begin, end - begin, out.data());
  }
}

/// Sizes are as a reader of files leaves them: not negative, their product no overflow.
checkpoint::RawTensor tensor_in(const std::string& line) {
  constexpr c10::ScalarType kTypes[] = {
      c10::ScalarType::Byte,     c10::ScalarType::Char,           c10::ScalarType::Float,
      c10::ScalarType::BFloat16, c10::ScalarType::Float8_e4m3fn,  c10::ScalarType::Float8_e5m2,
      c10::ScalarType::Int,      c10::ScalarType::Float8_e8m0fnu, c10::ScalarType::Half,
      c10::ScalarType::Long,     c10::ScalarType::Double};
  std::istringstream words(line);
  checkpoint::RawTensor tensor{{}, c10::ScalarType::Byte, {}, {}};
  size_t type = 0;
  words >> tensor.name >> type;
  tensor.dtype = kTypes[type % std::size(kTypes)];
  int64_t product = 8;
  for (int64_t extent = 0; words >> extent && tensor.sizes.size() < 6;) {
    if (extent < 0 || c10::mul_overflows(product, std::max<int64_t>(extent, 1), &product)) {
      break;
    }
    tensor.sizes.push_back(extent);
  }
  words.clear();
  words >> std::ws;
  std::getline(words, tensor.format);
  return tensor;
}

/// What stands before a zero byte, and after it.
std::pair<std::string_view, std::string_view> split(std::string_view text) {
  const auto end = std::min(text.find('\0'), text.size());
  return {text.substr(0, end), text.substr(std::min(end + 1, text.size()))};
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view input(reinterpret_cast<const char*>(data), size);
  const auto [header, texts] = split(input);
  const auto [config, more] = split(texts);
  checkpoint::ConfigurationText configuration{"config.json", std::string(config)};
  if (!more.empty()) {
    configuration.quantization_files.emplace_back("quantize_config.json", more);
  }
  std::vector<checkpoint::RawTensor> tensors;
  std::map<std::string, size_t> names;
  std::istringstream lines{std::string(header)};
  for (std::string line; std::getline(lines, line) && tensors.size() < 64;) {
    if (auto tensor = tensor_in(line); names.emplace(tensor.name, tensors.size()).second) {
      tensors.push_back(std::move(tensor));
    }
  }
  try {
    const auto all = tensors;
    const auto findings = checkpoint::find_encoded(
        std::move(tensors), configuration, std::nullopt, "input",
        [&, text_of_tensors = config](const checkpoint::RawTensor& tensor) {
          int64_t nbytes = static_cast<int64_t>(c10::elementSize(tensor.dtype));
          for (const auto extent : tensor.sizes) {
            nbytes *= extent;
          }
          // What a text says about a packed tensor may stand after the header, too.
          std::string text(text_of_tensors.substr(0, static_cast<size_t>(nbytes)));
          text.resize(static_cast<size_t>(nbytes), ' ');
          return text;
        });
    for (const auto& encoded : findings.encoded) {
      const auto expected = encoded.decoder->parts();
      for (size_t i = 0; i < encoded.parts.size(); ++i) {
        const auto& raw = all.at(names.at(encoded.parts[i]));
        if (expected.at(i).dtype != raw.dtype ||
            c10::IntArrayRef(expected[i].sizes) != c10::IntArrayRef(raw.sizes)) {
          throw std::logic_error("accepted " + encoded.name);
        }
      }
      decode(*encoded.decoder);
    }
    fuzz_accepted += findings.encoded.empty() ? 0 : 1;
  } catch (const c10::ValueError&) {
  } catch (const c10::NotImplementedError&) {
  }
  return 0;
}
