// Text from a file in a message: names that may hold anything, and may be 100 MB long.
#pragma once

#include <string>
#include <string_view>

namespace dormant::text {

/// `text` with its middle left out where it is long, and \xNN for bytes that are no UTF-8 and for
/// those of characters that show nothing, or that change how a terminal shows what is around them.
/// Always valid UTF-8, on one line.
std::string printable(std::string_view text);

/// The same between single quotes.
std::string in_quotes(std::string_view text);

/// The place of the first byte of `text` that does not belong to valid UTF-8; npos where there is
/// none.
size_t first_not_utf8(std::string_view text) noexcept;

}  // namespace dormant::text
