// JSON from untrusted files: read in one pass without recursion, stricter than the standard where
// two readers might disagree.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace dormant::text {

/// What a document is about, for messages: "open_checkpoint: PATH: WHAT ...".
struct JsonText {
  std::string_view text;
  const std::string& file;  ///< printable
  std::string_view what;    ///< such as "the header"
  uint64_t offset;          ///< of the text in the file
};

/// Receives a document in order. Objects have distinct keys and text is valid UTF-8 by the time it
/// arrives here; numbers that are no unsigned 64-bit integers arrive as `number`.
class JsonHandler {
 public:
  JsonHandler() = default;
  virtual ~JsonHandler() = default;
  JsonHandler(const JsonHandler&) = delete;
  JsonHandler& operator=(const JsonHandler&) = delete;

  virtual void begin_object() = 0;
  virtual void end_object() = 0;
  virtual void begin_array() = 0;
  virtual void end_array() = 0;
  virtual void key(std::string& name) = 0;
  virtual void string(std::string& value) = 0;
  virtual void integer(uint64_t value) = 0;
  /// Negative, fractional, or too large. `text` is how it is written.
  virtual void number(const std::string& text) = 0;
  /// true, false or null.
  virtual void literal(const char* text) = 0;

  /// Where reading stands, in bytes from the start of the file: just behind what is being handled.
  uint64_t position() const noexcept { return position_; }

 private:
  friend class JsonEvents;
  uint64_t position_ = 0;
};

/// Reads an object. c10::ValueError, with file, byte and cause, where the text is anything else,
/// deeper than `deepest`, or names a key twice; and whatever the handler throws.
void read_json_object(const JsonText& document, size_t deepest, JsonHandler& handler);

}  // namespace dormant::text
