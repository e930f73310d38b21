#include "text/printable.h"

#include <algorithm>
#include <array>
#include <cstdint>

namespace dormant::text {
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

struct Characters {
  uint32_t first;
  uint32_t last;
};

// Controls, and of the Unicode standard's formats and separators (its categories Cf, Zl and Zp)
// those that terminals obey, or that turn or hide the text around them.
constexpr std::array kUnprintable = {
    Characters{0x00, 0x1f},     Characters{0x7f, 0x9f},       Characters{0xad, 0xad},
    Characters{0x61c, 0x61c},   Characters{0x180e, 0x180e},   Characters{0x200b, 0x200f},
    Characters{0x2028, 0x202e}, Characters{0x2060, 0x206f},   Characters{0xfeff, 0xfeff},
    Characters{0xfff9, 0xfffb}, Characters{0xe0000, 0xe007f},
};

/// The number of a character that is valid UTF-8.
uint32_t code_of(std::string_view character) noexcept {
  const auto first = static_cast<uint8_t>(character.front());
  if (character.size() == 1) {
    return first;
  }
  uint32_t code = first & (0x7fU >> character.size());
  for (const auto byte : character.substr(1)) {
    code = code << 6 | (static_cast<uint8_t>(byte) & 0x3fU);
  }
  return code;
}

bool can_be_printed(std::string_view character) noexcept {
  const auto code = code_of(character);
  return std::none_of(kUnprintable.begin(), kUnprintable.end(), [&](const Characters& range) {
    return code >= range.first && code <= range.last;
  });
}

void append_printable(std::string_view text, std::string& result) {
  constexpr char kDigits[] = "0123456789abcdef";
  while (!text.empty()) {
    const auto size = character_size(text);
    const auto character = text.substr(0, std::max<size_t>(size, 1));
    if (size != 0 && can_be_printed(character)) {
      result += character;
    } else {
      for (const auto byte : character) {
        const auto bits = static_cast<uint8_t>(byte);
        result += {'\\', 'x', kDigits[bits >> 4], kDigits[bits & 15]};
      }
    }
    text.remove_prefix(character.size());
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

}  // namespace dormant::text
