#include "checkpoint/pickle_machine.h"

#include <c10/util/Exception.h>

#include <algorithm>
#include <array>
#include <bit>
#include <limits>
#include <utility>

#include "checkpoint/file.h"
#include "checkpoint/pickle_text.h"
#include "text/printable.h"

namespace dormant::checkpoint {
namespace {

constexpr uint64_t kSmallestBlock = 64 << 10;
constexpr uint64_t kLargestBlock = 8 << 20;

// Before it, names are written as Python 2 calls them (Lib/_compat_pickle.py).
constexpr uint64_t kPython3Names = 3;

struct Renamed {
  std::string_view module;
  std::string_view name;  ///< empty: any
  std::string_view new_module;
  std::string_view new_name;
};
constexpr std::array kRenamed = {
    Renamed{"__builtin__", "xrange", "builtins", "range"},
    Renamed{"__builtin__", "unicode", "builtins", "str"},
    Renamed{"__builtin__", "long", "builtins", "int"},
    Renamed{"__builtin__", "", "builtins", ""},
    Renamed{"copy_reg", "", "copyreg", ""},
    Renamed{"exceptions", "", "builtins", ""},
    Renamed{"UserDict", "", "collections", ""},
    Renamed{"UserList", "", "collections", ""},
    Renamed{"UserString", "", "collections", ""},
};

}  // namespace

PickleMachine::PickleMachine(Pickle& pickle, const File* file, uint64_t offset)
    : pickle_(pickle), file_(file), file_begin_(offset), available_(pickle.data_.size()) {
  if (file != nullptr) {
    available_ = file->size() - std::min(file->size(), offset);
  }
  is_cut_ = available_ > kLongestPickle;
  available_ = std::min(available_, kLongestPickle);
  pickle_.values_.reserve(std::min<uint64_t>(available_ / 4, 1 << 16));
  for (const auto kind : {PickleKind::none, PickleKind::boolean, PickleKind::boolean}) {
    static_cast<void>(add(Value(kind)));
  }
  pickle_.values_[kTrue].integer = 1;
  Value empty(PickleKind::tuple);
  empty.integer = 0;
  empty.place = 0;
  pickle_.containers_.emplace_back();
  static_cast<void>(add(empty));
}

void PickleMachine::run() {
  do {
    instruction_ = position_;
    code_ = 0;
    code_ = static_cast<uint8_t>(number(1));
  } while (step(code_));
  pickle_.root_ = pop();
  pickle_.nbytes_ = position_;
  pickle_.data_.resize(position_);
}

void PickleMachine::fail(const std::string& what) const {
  TORCH_CHECK_VALUE(
      false, "open_checkpoint: ", pickle_.where_, " is not a valid pickle: instruction ",
      name_of(code_), " at byte ", instruction_, ": ", what,
      ". Cause: the file is damaged, or is not a checkpoint. Next: download or save it "
      "again.");
}

std::string PickleMachine::name_of(uint8_t instruction) const {
  const char code = static_cast<char>(instruction);
  if (instruction > ' ' && instruction < 0x7f) {
    return text::in_quotes({&code, 1});
  }
  constexpr std::string_view kDigits = "0123456789abcdef";
  return std::string("0x") + kDigits[instruction >> 4] + kDigits[instruction & 0xf];
}

// The bytes.

void PickleMachine::need(uint64_t count) {
  if (frame_end_ && position_ == *frame_end_) {
    frame_end_.reset();
  }
  if (frame_end_ && count > *frame_end_ - position_) {
    fail("it takes " + std::to_string(count) + " bytes from byte " + std::to_string(position_) +
         " on, expected at most " + std::to_string(*frame_end_ - position_) + ", where its frame " +
         "ends");
  }
  if (count > available_ - position_) {
    fail("it takes " + std::to_string(count) + " bytes from byte " + std::to_string(position_) +
         " on, expected at most " + std::to_string(available_ - position_) +
         (is_cut_ ? ", the longest pickle that is read" : ", where the data ends"));
  }
  auto& data = pickle_.data_;
  if (const auto end = position_ + count; file_ != nullptr && end > data.size()) {
    const uint64_t before = data.size();
    const auto block = std::clamp<uint64_t>(before, kSmallestBlock, kLargestBlock);
    const auto size = std::min(std::max(end, before + block), available_);
    data.resize(size);
    file_->read(file_begin_ + before, size - before, data.data() + before);
  }
}

PickleMachine::Text PickleMachine::take(uint64_t count) {
  need(count);
  const Text text{static_cast<uint32_t>(position_), static_cast<uint32_t>(count)};
  position_ += count;
  return text;
}

PickleMachine::Text PickleMachine::line(uint64_t longest) {
  const auto begin = position_;
  while (number(1) != '\n') {
    if (position_ - begin > longest) {
      fail("a line longer than " + std::to_string(longest) + " bytes");
    }
  }
  return {static_cast<uint32_t>(begin), static_cast<uint32_t>(position_ - 1 - begin)};
}

uint64_t PickleMachine::number(size_t bytes) {
  const auto text = view(take(bytes));
  uint64_t value = 0;
  for (size_t i = bytes; i > 0; --i) {
    value = value << 8 | static_cast<uint8_t>(text[i - 1]);
  }
  return value;
}

std::string_view PickleMachine::view(const Text& text) const {
  return std::string_view(pickle_.data_).substr(text.begin, text.size);
}

void PickleMachine::begin_frame(uint64_t size) {
  if (frame_end_ && position_ != *frame_end_) {
    fail("a frame begins within another, which ends at byte " + std::to_string(*frame_end_));
  }
  if (size > available_ - position_) {
    fail("a frame of " + std::to_string(size) + " bytes, expected at most " +
         std::to_string(available_ - position_) + ", where the data ends");
  }
  frame_end_ = position_ + size;
}

// Values.

PickleId PickleMachine::add(Value value) {
  auto& values = pickle_.values_;
  if (values.size() >= kMostPickleValues) {
    fail("more than " + std::to_string(kMostPickleValues) + " values");
  }
  value.offset = static_cast<uint32_t>(instruction_);
  values.push_back(value);
  depths_.push_back(0);
  return static_cast<PickleId>(values.size() - 1);
}

void PickleMachine::push(PickleId id) { stack_.push_back(id); }

void PickleMachine::push_integer(int64_t integer) {
  Value value(PickleKind::integer);
  value.integer = integer;
  push(add(value));
}

void PickleMachine::push_wide(std::string_view twos_complement) {
  const auto bytes = shortest_twos_complement(twos_complement);
  if (bytes.size() <= sizeof(int64_t)) {
    push_integer(from_twos_complement(bytes));
    return;
  }
  Value value(PickleKind::integer, true);
  value.text = decoded(bytes);
  push(add(value));
}

PickleMachine::Text PickleMachine::decoded(std::string_view text) {
  auto& all = pickle_.decoded_;
  if (text.size() > std::numeric_limits<uint32_t>::max() - all.size()) {
    fail("texts of more than 4 GiB");
  }
  const Text place{static_cast<uint32_t>(all.size()), static_cast<uint32_t>(text.size())};
  all.append(text);
  return place;
}

void PickleMachine::push_text(PickleKind kind, const Text& text) {
  if (kind == PickleKind::text && !is_unicode(view(text))) {
    fail("text that is not UTF-8");
  }
  Value value(kind);
  value.text = text;
  push(add(value));
}

void PickleMachine::push_decoded(PickleKind kind, std::string_view text) {
  Value value(kind, true);
  value.text = decoded(text);
  push(add(value));
}

void PickleMachine::push_python2_text(const Text& text) {
  push_text(is_unicode(view(text)) ? PickleKind::text : PickleKind::bytes, text);
}

void PickleMachine::push_container(PickleKind kind, std::vector<PickleId> items) {
  Value value(kind);
  value.place = static_cast<uint32_t>(pickle_.containers_.size());
  pickle_.containers_.push_back(std::move(items));
  push(add(value));
}

void PickleMachine::push_tuple(std::vector<PickleId> items) {
  if (items.empty()) {
    push(kEmptyTuple);
    return;
  }
  uint16_t deepest = 0;
  for (const auto item : items) {
    deepest = std::max(deepest, depths_[item]);
  }
  if (deepest >= kDeepestPickleTuple) {
    fail("tuples nested deeper than " + std::to_string(kDeepestPickleTuple));
  }
  push_container(PickleKind::tuple, std::move(items));
  depths_.back() = deepest + 1;
}

void PickleMachine::push_global(std::string module, std::string name) {
  if (module.empty() || name.empty() || !is_unicode(module) || !is_unicode(name)) {
    fail("a class or function " + text::in_quotes(name) + " of module " + text::in_quotes(module) +
         ", expected names");
  }
  if (protocol_ < kPython3Names) {
    for (const auto& row : kRenamed) {
      if (row.module == module && (row.name.empty() || row.name == name)) {
        module = row.new_module;
        name = row.name.empty() ? name : std::string(row.new_name);
        break;
      }
    }
  }
  Value value(PickleKind::global);
  value.place = static_cast<uint32_t>(pickle_.globals_.size());
  pickle_.globals_.push_back({std::move(module), std::move(name)});
  push(add(value));
}

void PickleMachine::push_record(PickleRecord record) {
  Value value(PickleKind::record);
  value.place = static_cast<uint32_t>(pickle_.records_.size());
  pickle_.records_.push_back(std::move(record));
  push(add(value));
}

// The stack. A mark is the number of values below it.

PickleId PickleMachine::top() const {
  if (stack_.size() <= (marks_.empty() ? 0 : marks_.back())) {
    fail("it needs a value, but the stack is empty");
  }
  return stack_.back();
}

PickleId PickleMachine::pop() {
  const auto id = top();
  stack_.pop_back();
  return id;
}

std::vector<PickleId> PickleMachine::pop_count(size_t count) {
  const auto present = stack_.size() - (marks_.empty() ? 0 : marks_.back());
  if (present < count) {
    fail("it needs " + std::to_string(count) + " values, but the stack has " +
         std::to_string(present));
  }
  std::vector<PickleId> items(stack_.end() - static_cast<std::ptrdiff_t>(count), stack_.end());
  stack_.resize(stack_.size() - count);
  return items;
}

std::vector<PickleId> PickleMachine::pop_mark() {
  if (marks_.empty()) {
    fail("it needs a mark, but the stack has none");
  }
  const auto mark = marks_.back();
  marks_.pop_back();
  std::vector<PickleId> items(stack_.begin() + static_cast<std::ptrdiff_t>(mark), stack_.end());
  stack_.resize(mark);
  return items;
}

void PickleMachine::pop_anything() {
  if (!marks_.empty() && stack_.size() == marks_.back()) {
    marks_.pop_back();
    return;
  }
  static_cast<void>(pop());
}

// The memo.

void PickleMachine::put(uint64_t index) {
  // Numbers count what was put, so they are smaller than the bytes that this took.
  if (index > position_) {
    fail("it puts a value under number " + std::to_string(index) +
         " of the memo, expected at most " + std::to_string(position_));
  }
  if (memo_.size() <= index) {
    memo_.resize(std::max<size_t>(index + 1, std::min<size_t>(2 * memo_.size(), position_)),
                 kNothing);
  }
  memoized_ += memo_[index] == kNothing ? 1 : 0;
  memo_[index] = top();
}

void PickleMachine::get(uint64_t index) {
  if (index >= memo_.size() || memo_[index] == kNothing) {
    fail("it gets number " + std::to_string(index) + " of the memo, which was never put");
  }
  push(memo_[index]);
}

}  // namespace dormant::checkpoint
