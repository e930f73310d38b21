#include "text/json_reader.h"

#include <c10/util/Exception.h>

#include <iterator>
#include <nlohmann/json.hpp>
#include <unordered_set>
#include <vector>

#include "text/printable.h"

namespace dormant::text {
namespace {

using nlohmann::json;

/// Characters of the document; the latest that the parser has taken is remembered, since its events
/// do not say where they are.
class Cursor {
 public:
  using iterator_category = std::forward_iterator_tag;
  using value_type = char;
  using difference_type = std::ptrdiff_t;
  using pointer = const char*;
  using reference = const char&;

  Cursor() = default;
  Cursor(const char* at, const char** taken) : at_(at), taken_(taken) {}
  reference operator*() const { return *at_; }
  Cursor& operator++() {
    *taken_ = ++at_;
    return *this;
  }
  Cursor operator++(int) {
    const auto before = *this;
    ++*this;
    return before;
  }
  bool operator==(const Cursor& other) const { return at_ == other.at_; }

 private:
  const char* at_ = nullptr;
  const char** taken_ = nullptr;
};

}  // namespace

/// The parser's events (nlohmann::json_sax) with the checks that it leaves out.
class JsonEvents {
 public:
  using number_integer_t = json::number_integer_t;
  using number_unsigned_t = json::number_unsigned_t;
  using number_float_t = json::number_float_t;
  using string_t = json::string_t;
  using binary_t = json::binary_t;

  JsonEvents(const JsonText& document, size_t deepest, JsonHandler& handler)
      : document_(document), deepest_(deepest), handler_(handler) {}

  void read() {
    const auto& text = document_.text;
    // A byte order mark would be skipped, and a zero byte would count as the end of the document.
    TORCH_CHECK_VALUE(!text.empty() && text.front() == '{', about(), " starts with ",
                      text.empty() ? "nothing" : in_quotes(text.substr(0, 1)), " at byte ",
                      document_.offset, ", expected '{'. ", kNext);
    const auto wrong = first_not_utf8(text);
    TORCH_CHECK_VALUE(wrong == std::string_view::npos, about(), " is not UTF-8 at byte ",
                      document_.offset + wrong, ". ", kNext);
    const auto zero = text.find('\0');
    TORCH_CHECK_VALUE(zero == std::string_view::npos, about(), " has a null character at byte ",
                      document_.offset + zero, ", expected JSON. ", kNext);
    json::sax_parse(Cursor(text.data(), &taken_), Cursor(text.data() + text.size(), &taken_), this,
                    json::input_format_t::json, /*strict=*/true);
  }

  bool null() { return literal("null"); }
  bool boolean(bool value) { return literal(value ? "true" : "false"); }

  bool number_unsigned(uint64_t value) {
    handle().integer(value);
    return true;
  }

  bool number_integer(int64_t value) {
    handle().number(value == 0 ? "-0" : std::to_string(value));
    return true;
  }

  bool number_float(double, const std::string& written) {
    handle().number(printable(written));
    return true;
  }

  bool string(std::string& value) {
    handle().string(value);
    return true;
  }

  bool binary(binary_t&) { return true; }  // JSON has none

  bool start_object(size_t) {
    enter();
    handle().begin_object();
    return true;
  }

  bool key(std::string& name) {
    const auto added = keys_.back().insert(name).second;
    TORCH_CHECK_VALUE(added, about(), " names ", in_quotes(name),
                      " twice in one object, the second time before byte ", position(), ". ",
                      kNext);
    handle().key(name);
    return true;
  }

  bool end_object() {
    keys_.pop_back();
    handle().end_object();
    return true;
  }

  bool start_array(size_t) {
    enter();
    handle().begin_array();
    return true;
  }

  bool end_array() {
    keys_.pop_back();
    handle().end_array();
    return true;
  }

  bool parse_error(size_t, const std::string& token, const nlohmann::detail::exception&) {
    TORCH_CHECK_VALUE(false, about(), " is not JSON at byte ", position(), " of the file (",
                      document_.text.size(), " bytes from byte ", document_.offset, "), near ",
                      in_quotes(token), ". ", kNext);
  }

 private:
  static constexpr const char* kNext =
      "Cause: the file is damaged or incomplete, or has another format. Next: download or save it "
      "again.";

  std::string about() const {
    return "open_checkpoint: " + document_.file + ": " + std::string(document_.what);
  }

  uint64_t position() const {
    const auto* begin = document_.text.data();
    return document_.offset + (taken_ == nullptr ? 0 : static_cast<uint64_t>(taken_ - begin));
  }

  JsonHandler& handle() {
    handler_.position_ = position();
    return handler_;
  }

  bool literal(const char* text) {
    handle().literal(text);
    return true;
  }

  void enter() {
    TORCH_CHECK_VALUE(keys_.size() < deepest_, about(), " is nested deeper than ", deepest_,
                      " levels before byte ", position(), ". ", kNext);
    keys_.emplace_back();
  }

  const JsonText& document_;
  const size_t deepest_;
  JsonHandler& handler_;
  const char* taken_ = nullptr;
  std::vector<std::unordered_set<std::string>> keys_;  ///< of each open object; none in an array
};

void read_json_object(const JsonText& document, size_t deepest, JsonHandler& handler) {
  JsonEvents(document, deepest, handler).read();
}

}  // namespace dormant::text
