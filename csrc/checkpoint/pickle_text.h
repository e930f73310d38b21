// What pickles of the first protocol, and of Python 2, write as lines of text.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace dormant::checkpoint {

/// Python's own limit on the digits of an integer (sys.int_info.default_max_str_digits).
inline constexpr size_t kMostPickleDigits = 4300;

/// The two's complement, little endian and as short as can be, of a decimal number with or without
/// a sign; none where it is none or has more than `kMostPickleDigits` digits.
std::optional<std::string> decimal_bytes(std::string_view text);

/// A two's complement of at most 8 bytes, little endian; 0 of none.
int64_t from_twos_complement(std::string_view bytes) noexcept;

/// Without the bytes that say nothing but the sign again.
std::string_view shortest_twos_complement(std::string_view bytes) noexcept;

/// The number that Python's `repr` writes so; none where it is none.
std::optional<double> real_from(std::string_view text);

/// The bytes of a literal of Python 2 ('a\x00b'); none where it is none.
std::optional<std::string> unquoted(std::string_view literal);

/// UTF-8 of what is written with Python's codec raw-unicode-escape; none where that is wrong.
std::optional<std::string> from_raw_unicode_escape(std::string_view text);

/// Whether it is UTF-8, but for surrogates, which Python's pickles may have.
bool is_unicode(std::string_view text) noexcept;

}  // namespace dormant::checkpoint
