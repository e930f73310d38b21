#include "checkpoint/pickle_text.h"

#include <algorithm>
#include <charconv>
#include <system_error>
#include <vector>

#include "text/printable.h"

namespace dormant::checkpoint {
namespace {

bool is_digit(char c) { return c >= '0' && c <= '9'; }

/// Value of `count` hexadecimal digits at the beginning; none where there are fewer.
std::optional<uint32_t> hexadecimal(std::string_view text, size_t count) {
  if (text.size() < count) {
    return std::nullopt;
  }
  uint32_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + count, value, 16);
  if (error != std::errc() || end != text.data() + count) {
    return std::nullopt;
  }
  return value;
}

void append_utf8(uint32_t code, std::string& out) {
  const auto put = [&](uint32_t byte) { out.push_back(static_cast<char>(byte)); };
  if (code < 0x80) {
    put(code);
  } else if (code < 0x800) {
    put(0xc0 | code >> 6);
    put(0x80 | (code & 0x3f));
  } else if (code < 0x10000) {
    put(0xe0 | code >> 12);
    put(0x80 | (code >> 6 & 0x3f));
    put(0x80 | (code & 0x3f));
  } else {
    put(0xf0 | code >> 18);
    put(0x80 | (code >> 12 & 0x3f));
    put(0x80 | (code >> 6 & 0x3f));
    put(0x80 | (code & 0x3f));
  }
}

}  // namespace

std::optional<std::string> decimal_bytes(std::string_view text) {
  const bool negative = text.starts_with('-');
  if (negative || text.starts_with('+')) {
    text.remove_prefix(1);
  }
  if (text.empty() || text.size() > kMostPickleDigits ||
      !std::all_of(text.begin(), text.end(), is_digit)) {
    return std::nullopt;
  }
  std::string bytes;  // little endian
  for (const char digit : text) {
    uint32_t carry = static_cast<uint32_t>(digit - '0');
    for (auto& byte : bytes) {
      const auto value = static_cast<uint32_t>(static_cast<uint8_t>(byte)) * 10 + carry;
      byte = static_cast<char>(value & 0xff);
      carry = value >> 8;
    }
    if (carry != 0) {
      bytes.push_back(static_cast<char>(carry));
    }
  }
  bytes.push_back(0);
  if (negative) {
    uint32_t carry = 1;
    for (auto& byte : bytes) {
      const auto value = static_cast<uint32_t>(static_cast<uint8_t>(~byte)) + carry;
      byte = static_cast<char>(value & 0xff);
      carry = value >> 8;
    }
  }
  return std::string(shortest_twos_complement(bytes));
}

int64_t from_twos_complement(std::string_view bytes) noexcept {
  const bool negative = !bytes.empty() && (static_cast<uint8_t>(bytes.back()) & 0x80) != 0;
  uint64_t value = negative ? ~uint64_t{0} : 0;
  for (size_t i = bytes.size(); i > 0; --i) {
    value = value << 8 | static_cast<uint8_t>(bytes[i - 1]);
  }
  return static_cast<int64_t>(value);
}

std::string_view shortest_twos_complement(std::string_view bytes) noexcept {
  const auto sign = [](char byte) { return (static_cast<uint8_t>(byte) & 0x80) != 0; };
  while (bytes.size() > 1) {
    const char needless = sign(bytes[bytes.size() - 2]) ? '\xff' : '\0';
    if (bytes.back() != needless) {
      break;
    }
    bytes.remove_suffix(1);
  }
  return bytes == std::string_view("\0", 1) ? std::string_view() : bytes;
}

std::optional<double> real_from(std::string_view text) {
  if (text.starts_with('+')) {
    text.remove_prefix(1);
  }
  double value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error == std::errc() && end == text.data() + text.size()) {
    return value;
  }
  return std::nullopt;
}

std::optional<std::string> unquoted(std::string_view literal) {
  const char quote = literal.empty() ? '\0' : literal.front();
  if (literal.size() < 2 || (quote != '\'' && quote != '"') || literal.back() != quote) {
    return std::nullopt;
  }
  literal = literal.substr(1, literal.size() - 2);
  std::string out;
  for (size_t i = 0; i < literal.size(); ++i) {
    if (literal[i] != '\\') {
      out.push_back(literal[i]);
      continue;
    }
    if (++i == literal.size()) {
      return std::nullopt;
    }
    static constexpr std::string_view kLetters = "\\'\"abfnrtv";
    static constexpr std::string_view kMeanings = "\\'\"\a\b\f\n\r\t\v";
    if (const auto found = kLetters.find(literal[i]); found != std::string_view::npos) {
      out.push_back(kMeanings[found]);
    } else if (literal[i] == 'x') {
      const auto code = hexadecimal(literal.substr(i + 1), 2);
      if (!code) {
        return std::nullopt;
      }
      out.push_back(static_cast<char>(*code));
      i += 2;
    } else if (literal[i] >= '0' && literal[i] <= '7') {
      uint32_t code = 0;
      size_t count = 0;
      while (count < 3 && i + count < literal.size() && literal[i + count] >= '0' &&
             literal[i + count] <= '7') {
        code = code * 8 + static_cast<uint32_t>(literal[i + count++] - '0');
      }
      out.push_back(static_cast<char>(code & 0xff));
      i += count - 1;
    } else {  // a backslash that means itself
      out.push_back('\\');
      out.push_back(literal[i]);
    }
  }
  return out;
}

std::optional<std::string> from_raw_unicode_escape(std::string_view text) {
  std::string out;
  for (size_t i = 0; i < text.size(); ++i) {
    const char next = i + 1 < text.size() ? text[i + 1] : '\0';
    if (text[i] != '\\' || (next != 'u' && next != 'U')) {
      append_utf8(static_cast<uint8_t>(text[i]), out);
      continue;
    }
    // Of an even number of backslashes each means itself.
    size_t before = 0;
    while (before < i && text[i - 1 - before] == '\\') {
      ++before;
    }
    if (before % 2 != 0) {
      append_utf8(static_cast<uint8_t>(text[i]), out);
      continue;
    }
    const size_t digits = next == 'u' ? 4 : 8;
    const auto code = hexadecimal(text.substr(i + 2), digits);
    if (!code || *code > 0x10ffff) {
      return std::nullopt;
    }
    append_utf8(*code, out);
    i += 1 + digits;
  }
  return out;
}

bool is_unicode(std::string_view text) noexcept {
  while (true) {
    const auto wrong = text::first_not_utf8(text);
    if (wrong == std::string_view::npos) {
      return true;
    }
    const auto at = text.substr(wrong);
    const bool surrogate = at.size() >= 3 && at[0] == '\xed' &&
                           (static_cast<uint8_t>(at[1]) & 0xe0) == 0xa0 &&
                           (static_cast<uint8_t>(at[2]) & 0xc0) == 0x80;
    if (!surrogate) {
      return false;
    }
    text = at.substr(3);
  }
}

}  // namespace dormant::checkpoint
