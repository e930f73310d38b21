#include "checkpoint/printable.h"

#include <cstdint>

namespace dormant::checkpoint {
namespace {

// Longer than any path or name of a tensor that a person would read.
constexpr size_t kLongest = 400;

/// Bytes of the character at the start of `text`; 0 where it is no UTF-8. (Table 3-7 of the Unicode
/// standard: neither overlong forms, nor surrogates, nor what lies above U+10FFFF.)
size_t character_size(std::string_view text) noexcept {
  const auto byte = [&](size_t i) -> uint8_t {
    return i < text.size() ? static_cast<uint8_t>(text[i]) : 0;
  };
  const auto within = [&](size_t i, uint8_t low, uint8_t high) {
    return byte(i) >= low && byte(i) <= high;
  };
  const auto first = byte(0);
  if (first < 0x80) {
    return 1;
  }
  if (first >= 0xc2 && first <= 0xdf) {
    return within(1, 0x80, 0xbf) ? 2 : 0;
  }
  if (first >= 0xe0 && first <= 0xef) {
    const uint8_t low = first == 0xe0 ? 0xa0 : 0x80;
    const uint8_t high = first == 0xed ? 0x9f : 0xbf;
    return within(1, low, high) && within(2, 0x80, 0xbf) ? 3 : 0;
  }
  if (first >= 0xf0 && first <= 0xf4) {
    const uint8_t low = first == 0xf0 ? 0x90 : 0x80;
    const uint8_t high = first == 0xf4 ? 0x8f : 0xbf;
    return within(1, low, high) && within(2, 0x80, 0xbf) && within(3, 0x80, 0xbf) ? 4 : 0;
  }
  return 0;
}

void append_printable(std::string_view text, std::string& result) {
  constexpr char kDigits[] = "0123456789abcdef";
  while (!text.empty()) {
    const auto size = character_size(text);
    const auto byte = static_cast<uint8_t>(text.front());
    if (size == 0 || byte < 0x20 || byte == 0x7f) {
      result += {'\\', 'x', kDigits[byte >> 4], kDigits[byte & 15]};
      text.remove_prefix(1);
    } else {
      result += text.substr(0, size);
      text.remove_prefix(size);
    }
  }
}

}  // namespace

std::string printable(std::string_view text) {
  std::string result;
  if (text.size() <= kLongest) {
    append_printable(text, result);
    return result;
  }
  append_printable(text.substr(0, kLongest / 2), result);
  result += "... (" + std::to_string(text.size() - kLongest) + " bytes more) ...";
  append_printable(text.substr(text.size() - kLongest / 2), result);
  return result;
}

std::string in_quotes(std::string_view text) {
  std::string result(1, '\'');
  result += printable(text);
  result += '\'';
  return result;
}

size_t first_not_utf8(std::string_view text) noexcept {
  for (size_t place = 0; place < text.size();) {
    const auto size = character_size(text.substr(place));
    if (size == 0) {
      return place;
    }
    place += size;
  }
  return std::string_view::npos;
}

}  // namespace dormant::checkpoint
