// Pickles, which may come from anyone, as trees of inert values: nothing is imported, nothing is
// called, whatever a pickle asks for.
//
// A pickle is a program for a stack machine (CPython's Lib/pickletools.py describes it). Python's
// own machine calls what the program names, so loading a pickle is running it. This one notes down
// that a class or function is named and that it would be called, with what and what would be done
// to the result; who knows a class can see from that what the object holds.
//
// Values are numbers into flat tables. So what refers to itself, shares parts or nests a million
// deep needs no care when it is made, and none when it is freed: the memory that a pickle takes
// grows with its length only.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "system/export.h"

namespace dormant::checkpoint {

class File;
class PickleMachine;

/// Longer ones are refused.
inline constexpr uint64_t kLongestPickle = uint64_t{1} << 30;
inline constexpr uint32_t kMostPickleValues = 100'000'000;
/// Tuples in tuples; other containers nest without limit.
inline constexpr uint32_t kDeepestPickleTuple = 1000;

enum class PickleKind : uint8_t {
  none,
  boolean,
  integer,
  real,
  text,
  bytes,
  bytearray,
  list,
  tuple,
  dict,
  set,
  frozenset,
  global,      ///< a class or function by name
  record,      ///< what a call would return
  persistent,  ///< what the program that wrote the pickle keeps elsewhere, by what it calls it
};

/// Names a value. Two places that have the same one have the same object.
using PickleId = uint32_t;

/// A class or function by name, as Python 3 calls it.
struct PickleGlobal {
  std::string_view module;
  std::string_view name;
  bool operator==(const PickleGlobal&) const = default;
};

/// An object that a call would make: `callable(*arguments, **keywords)`, then the state and what is
/// put into it.
struct PickleRecord {
  PickleId callable = 0;
  PickleId arguments = 0;                 ///< a tuple
  std::optional<PickleId> keywords = {};  ///< a dict
  std::optional<PickleId> state = {};     ///< of `__setstate__`, or the object's attributes
  std::vector<PickleId> items = {};       ///< that would be appended
  std::vector<PickleId> entries = {};     ///< keys and values that would be set, by turns
  bool is_new = false;                    ///< `callable.__new__` would be called
};

class DORMANT_BINDINGS_API Pickle {
 public:
  /// Reads a pickle. `where` names it in messages, printable. c10::ValueError, with the byte of the
  /// instruction, where Python's machine would fail at it as well, and besides: where lengths,
  /// frames or memo numbers lie, where something out of the pickle is asked for (extension codes,
  /// buffers), where there is text that is no Unicode, and above the limits.
  static Pickle parse(std::string data, std::string where);
  /// The same for one that begins at byte `offset` of a file and ends at its own instruction.
  static Pickle read(const File& file, uint64_t offset, std::string where);

  PickleId root() const noexcept { return root_; }
  /// Values are 0 to size() - 1. What a tuple or frozenset has, and what a record calls and with
  /// which arguments, have smaller numbers than it.
  PickleId size() const noexcept { return static_cast<PickleId>(values_.size()); }
  /// Bytes of the pickle.
  uint64_t nbytes() const noexcept { return nbytes_; }
  const std::string& where() const noexcept { return where_; }

  PickleKind kind(PickleId id) const noexcept { return values_[id].kind; }
  /// The instruction that made it, in bytes from the pickle's beginning.
  uint64_t offset(PickleId id) const noexcept { return values_[id].offset; }

  // Each may be called for its own kind only.
  bool boolean(PickleId id) const noexcept { return values_[id].integer != 0; }
  /// None where it takes more than 64 bits.
  std::optional<int64_t> integer(PickleId id) const noexcept;
  /// Of an integer that takes more than 64 bits: its two's complement, little endian.
  std::string_view wide_integer(PickleId id) const noexcept;
  double real(PickleId id) const noexcept { return values_[id].real; }
  /// Of text, which is UTF-8 but may have surrogates, bytes or a bytearray. It lives as long as the
  /// pickle.
  std::string_view text(PickleId id) const noexcept;
  /// Of a list, tuple, set or frozenset; of a dict keys and values, by turns. A key may come twice,
  /// of which Python takes the last value.
  std::span<const PickleId> items(PickleId id) const noexcept;
  PickleGlobal global(PickleId id) const noexcept;
  const PickleRecord& record(PickleId id) const noexcept { return records_[values_[id].place]; }
  /// What names the object.
  PickleId persistent(PickleId id) const noexcept { return values_[id].place; }

  bool is(PickleId id, PickleKind kind) const noexcept { return values_[id].kind == kind; }
  bool is_global(PickleId id, std::string_view module, std::string_view name) const noexcept;
  /// Whether it is a record that would be made by calling this.
  bool is_call(PickleId id, std::string_view module, std::string_view name) const noexcept;
  /// The value of the text `key` in a dict, the last of several.
  std::optional<PickleId> find(PickleId dict, std::string_view key) const noexcept;
  /// Its kind and, where it is short, its value, for messages; printable.
  std::string describe(PickleId id) const;

 private:
  friend class PickleMachine;

  struct Text {
    uint32_t begin;
    uint32_t size;
  };
  struct Value {
    explicit Value(PickleKind what, bool is_elsewhere = false)
        : kind(what), elsewhere(is_elsewhere) {}
    PickleKind kind;
    bool elsewhere;  ///< its text is in decoded_; of an integer: it is wide
    uint32_t offset = 0;
    union {
      int64_t integer = 0;
      double real;
      Text text;
      uint32_t place;  ///< in containers_, globals_, records_; of a persistent value: what names it
    };
  };
  struct Name {
    std::string module;
    std::string name;
  };

  explicit Pickle(std::string where) : where_(std::move(where)) {}

  std::string where_;
  std::string data_;     ///< that texts refer to
  std::string decoded_;  ///< texts that are written otherwise
  uint64_t nbytes_ = 0;
  PickleId root_ = 0;
  std::vector<Value> values_;
  std::deque<std::vector<PickleId>> containers_;
  std::deque<Name> globals_;
  std::deque<PickleRecord> records_;
};

}  // namespace dormant::checkpoint
