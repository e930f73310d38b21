// The stack machine that fills a `Pickle`.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "checkpoint/pickle.h"

namespace dormant::checkpoint {

class PickleMachine {
 public:
  /// Of `pickle.data_`, or where there is a file, of its bytes from `offset` on.
  PickleMachine(Pickle& pickle, const File* file, uint64_t offset);
  void run();

 private:
  // Values that every pickle has from the beginning.
  static constexpr PickleId kNone = 0;
  static constexpr PickleId kTrue = 1;
  static constexpr PickleId kFalse = 2;
  static constexpr PickleId kEmptyTuple = 3;
  static constexpr PickleId kNothing = ~PickleId{0};
  static constexpr uint64_t kLongestLine = 1 << 16;

  using Value = Pickle::Value;
  using Text = Pickle::Text;

  // The bytes.
  void need(uint64_t count);
  Text take(uint64_t count);
  /// The rest of a line without its end. Those of names and numbers have a limit.
  Text line(uint64_t longest = kLongestLine);
  uint64_t number(size_t bytes);
  std::string_view view(const Text& text) const;
  void begin_frame(uint64_t size);

  // Values.
  PickleId add(Value value);
  void push(PickleId id);
  void push_integer(int64_t integer);
  void push_wide(std::string_view twos_complement);
  void push_text(PickleKind kind, const Text& text);
  void push_decoded(PickleKind kind, std::string_view text);
  void push_python2_text(const Text& text);
  void push_container(PickleKind kind, std::vector<PickleId> items);
  void push_tuple(std::vector<PickleId> items);
  void push_global(std::string module, std::string name);
  void push_record(PickleRecord record);
  Text decoded(std::string_view text);

  // The stack.
  PickleId pop();
  PickleId top() const;
  std::vector<PickleId> pop_count(size_t count);
  std::vector<PickleId> pop_mark();
  void pop_anything();

  // The memo.
  void put(uint64_t index);
  void get(uint64_t index);

  // Instructions.
  /// False at the end.
  bool step(uint8_t instruction);
  bool step_text(uint8_t instruction);
  bool step_container(uint8_t instruction);
  bool step_call(uint8_t instruction);
  void protocol();
  void long_of(uint64_t size);
  void integer_line();
  void append(const std::vector<PickleId>& items);
  void set(const std::vector<PickleId>& entries);
  void add_to_set(const std::vector<PickleId>& items);
  void build();
  PickleId expect(PickleId id, PickleKind kind, const char* role) const;
  std::string name_of(uint8_t instruction) const;
  [[noreturn]] void fail(const std::string& what) const;

  Pickle& pickle_;
  const File* file_;
  const uint64_t file_begin_;
  uint64_t available_;   ///< bytes up to the end of the data or file, at most kLongestPickle
  bool is_cut_ = false;  ///< whether there would be more
  uint64_t position_ = 0;
  uint64_t instruction_ = 0;  ///< where the one begins that is at work
  uint8_t code_ = 0;
  std::optional<uint64_t> frame_end_;
  uint64_t protocol_ = 0;
  std::vector<PickleId> stack_;
  std::vector<size_t> marks_;
  std::vector<PickleId> memo_;  ///< kNothing where nothing was put
  uint64_t memoized_ = 0;
  std::vector<uint16_t> depths_;  ///< of tuples, 0 of everything else
};

}  // namespace dormant::checkpoint
