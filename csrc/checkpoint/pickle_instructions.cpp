#include "checkpoint/pickle_machine.h"

#include <bit>
#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "checkpoint/pickle_text.h"

namespace dormant::checkpoint {
namespace {

constexpr uint64_t kNewestProtocol = 5;

// Instructions, as pickletools calls them.
enum Code : uint8_t {
  kMark = '(',
  kStop = '.',
  kPop = '0',
  kPopMark = '1',
  kDup = '2',
  kFloat = 'F',
  kInt = 'I',
  kBinInt = 'J',
  kBinInt1 = 'K',
  kLong = 'L',
  kBinInt2 = 'M',
  kNone_ = 'N',
  kPersid = 'P',
  kBinPersid = 'Q',
  kReduce = 'R',
  kString = 'S',
  kBinString = 'T',
  kShortBinString = 'U',
  kUnicode = 'V',
  kBinUnicode = 'X',
  kAppend = 'a',
  kBuild = 'b',
  kGlobal = 'c',
  kDict = 'd',
  kEmptyDict = '}',
  kAppends = 'e',
  kGet = 'g',
  kBinGet = 'h',
  kInst = 'i',
  kLongBinGet = 'j',
  kList = 'l',
  kEmptyList = ']',
  kObj = 'o',
  kPut = 'p',
  kBinPut = 'q',
  kLongBinPut = 'r',
  kSetItem = 's',
  kTuple = 't',
  kEmptyTuple_ = ')',
  kSetItems = 'u',
  kBinFloat = 'G',
  kBinBytes = 'B',
  kShortBinBytes = 'C',
  kProto = 0x80,
  kNewObj = 0x81,
  kTuple1 = 0x85,
  kTuple2 = 0x86,
  kTuple3 = 0x87,
  kNewTrue = 0x88,
  kNewFalse = 0x89,
  kLong1 = 0x8a,
  kLong4 = 0x8b,
  kShortBinUnicode = 0x8c,
  kBinUnicode8 = 0x8d,
  kBinBytes8 = 0x8e,
  kEmptySet = 0x8f,
  kAddItems = 0x90,
  kFrozenSet = 0x91,
  kNewObjEx = 0x92,
  kStackGlobal = 0x93,
  kMemoize = 0x94,
  kFrame = 0x95,
  kByteArray8 = 0x96,
};

}  // namespace

bool PickleMachine::step(uint8_t instruction) {
  if (step_text(instruction) || step_container(instruction) || step_call(instruction)) {
    return true;
  }
  switch (instruction) {
    case kStop:
      return false;
    case kProto:
      protocol();
      return true;
    case kFrame:
      begin_frame(number(8));
      return true;
    case kMark:
      marks_.push_back(stack_.size());
      return true;
    case kPop:
      pop_anything();
      return true;
    case kPopMark:
      static_cast<void>(pop_mark());
      return true;
    case kDup:
      push(top());
      return true;
    case kBinPut:
      put(number(1));
      return true;
    case kLongBinPut:
      put(number(4));
      return true;
    case kMemoize:
      put(memoized_);
      return true;
    case kBinGet:
      get(number(1));
      return true;
    case kLongBinGet:
      get(number(4));
      return true;
    case kPut:
    case kGet: {
      const auto bytes = decimal_bytes(view(line()));
      if (!bytes || bytes->size() > sizeof(int64_t) || from_twos_complement(*bytes) < 0) {
        fail("a line that is not a number of the memo");
      }
      const auto index = static_cast<uint64_t>(from_twos_complement(*bytes));
      instruction == kPut ? put(index) : get(index);
      return true;
    }
    default:
      fail(
          "it is not supported: the pickle refers to something outside the file, or has a newer "
          "protocol");
  }
}

void PickleMachine::protocol() {
  protocol_ = number(1);
  if (protocol_ > kNewestProtocol) {
    fail("protocol " + std::to_string(protocol_) + ", expected at most " +
         std::to_string(kNewestProtocol));
  }
}

/// Numbers, text and bytes.
bool PickleMachine::step_text(uint8_t instruction) {
  switch (instruction) {
    case kNone_:
      push(kNone);
      return true;
    case kNewTrue:
      push(kTrue);
      return true;
    case kNewFalse:
      push(kFalse);
      return true;
    case kBinInt:
      push_integer(static_cast<int32_t>(number(4)));
      return true;
    case kBinInt1:
      push_integer(static_cast<int64_t>(number(1)));
      return true;
    case kBinInt2:
      push_integer(static_cast<int64_t>(number(2)));
      return true;
    case kLong1:
      long_of(number(1));
      return true;
    case kLong4:
      long_of(number(4));
      return true;
    case kInt:
    case kLong:
      integer_line();
      return true;
    case kBinFloat: {
      const auto text = view(take(8));
      uint64_t bits = 0;
      for (const char byte : text) {
        bits = bits << 8 | static_cast<uint8_t>(byte);
      }
      Value value(PickleKind::real);
      value.real = std::bit_cast<double>(bits);
      push(add(value));
      return true;
    }
    case kFloat: {
      const auto number = real_from(view(line()));
      if (!number) {
        fail("a line that is not a number");
      }
      Value value(PickleKind::real);
      value.real = *number;
      push(add(value));
      return true;
    }
    case kUnicode: {
      const auto text = from_raw_unicode_escape(view(line(kLongestPickle)));
      if (!text) {
        fail("text with an invalid escape");
      }
      push_decoded(PickleKind::text, *text);
      return true;
    }
    case kString: {
      const auto bytes = unquoted(view(line(kLongestPickle)));
      if (!bytes) {
        fail("a line that is not text in quotes");
      }
      push_decoded(is_unicode(*bytes) ? PickleKind::text : PickleKind::bytes, *bytes);
      return true;
    }
    case kBinUnicode:
      push_text(PickleKind::text, take(number(4)));
      return true;
    case kShortBinUnicode:
      push_text(PickleKind::text, take(number(1)));
      return true;
    case kBinUnicode8:
      push_text(PickleKind::text, take(number(8)));
      return true;
    case kBinString:
      push_python2_text(take(number(4)));
      return true;
    case kShortBinString:
      push_python2_text(take(number(1)));
      return true;
    case kBinBytes:
      push_text(PickleKind::bytes, take(number(4)));
      return true;
    case kShortBinBytes:
      push_text(PickleKind::bytes, take(number(1)));
      return true;
    case kBinBytes8:
      push_text(PickleKind::bytes, take(number(8)));
      return true;
    case kByteArray8:
      push_text(PickleKind::bytearray, take(number(8)));
      return true;
    default:
      return false;
  }
}

void PickleMachine::long_of(uint64_t size) { push_wide(view(take(size))); }

void PickleMachine::integer_line() {
  auto text = view(line());
  if (code_ == kInt && (text == "00" || text == "01")) {
    push(text == "01" ? kTrue : kFalse);
    return;
  }
  if (code_ == kLong && text.ends_with('L')) {
    text.remove_suffix(1);
  }
  const auto bytes = decimal_bytes(text);
  if (!bytes) {
    fail("a line that is not an integer of at most " + std::to_string(kMostPickleDigits) +
         " digits");
  }
  push_wide(*bytes);
}

bool PickleMachine::step_container(uint8_t instruction) {
  switch (instruction) {
    case kEmptyTuple_:
      push(kEmptyTuple);
      return true;
    case kTuple1:
    case kTuple2:
    case kTuple3:
      push_tuple(pop_count(instruction - kTuple1 + 1U));
      return true;
    case kTuple:
      push_tuple(pop_mark());
      return true;
    case kEmptyList:
      push_container(PickleKind::list, {});
      return true;
    case kList:
      push_container(PickleKind::list, pop_mark());
      return true;
    case kEmptyDict:
      push_container(PickleKind::dict, {});
      return true;
    case kDict: {
      auto entries = pop_mark();
      if (entries.size() % 2 != 0) {
        fail("a key without a value");
      }
      push_container(PickleKind::dict, std::move(entries));
      return true;
    }
    case kEmptySet:
      push_container(PickleKind::set, {});
      return true;
    case kFrozenSet:
      push_container(PickleKind::frozenset, pop_mark());
      return true;
    case kAppend:
      append({pop()});
      return true;
    case kAppends:
      append(pop_mark());
      return true;
    case kSetItem:
      set(pop_count(2));
      return true;
    case kSetItems:
      set(pop_mark());
      return true;
    case kAddItems:
      add_to_set(pop_mark());
      return true;
    default:
      return false;
  }
}

void PickleMachine::append(const std::vector<PickleId>& items) {
  const auto id = top();
  const bool is_list = pickle_.is(id, PickleKind::list);
  if (!is_list && !pickle_.is(id, PickleKind::record)) {
    fail("it appends to a " + pickle_.describe(id) + ", expected a list or an object");
  }
  const auto place = pickle_.values_[id].place;
  auto& all = is_list ? pickle_.containers_[place] : pickle_.records_[place].items;
  all.insert(all.end(), items.begin(), items.end());
}

void PickleMachine::set(const std::vector<PickleId>& entries) {
  const auto id = top();
  const bool is_dict = pickle_.is(id, PickleKind::dict);
  if (!is_dict && !pickle_.is(id, PickleKind::record)) {
    fail("it sets items of a " + pickle_.describe(id) + ", expected a dict or an object");
  }
  if (entries.size() % 2 != 0) {
    fail("a key without a value");
  }
  const auto place = pickle_.values_[id].place;
  auto& all = is_dict ? pickle_.containers_[place] : pickle_.records_[place].entries;
  all.insert(all.end(), entries.begin(), entries.end());
}

void PickleMachine::add_to_set(const std::vector<PickleId>& items) {
  auto& all =
      pickle_.containers_[pickle_.values_[expect(top(), PickleKind::set, "the set that it adds to")]
                              .place];
  all.insert(all.end(), items.begin(), items.end());
}

/// What names classes and functions, and would call them.
bool PickleMachine::step_call(uint8_t instruction) {
  switch (instruction) {
    case kGlobal: {
      const auto module = line();
      const auto name = line();
      push_global(std::string(view(module)), std::string(view(name)));
      return true;
    }
    case kStackGlobal: {
      const auto name = expect(pop(), PickleKind::text, "the name");
      const auto module = expect(pop(), PickleKind::text, "the module");
      push_global(std::string(pickle_.text(module)), std::string(pickle_.text(name)));
      return true;
    }
    case kPersid: {
      const auto name = line();
      push_python2_text(name);
      break;
    }
    case kBinPersid:
      break;
    case kReduce:
    case kNewObj: {
      const auto arguments = expect(pop(), PickleKind::tuple, "the arguments");
      push_record({.callable = pop(), .arguments = arguments, .is_new = instruction == kNewObj});
      return true;
    }
    case kNewObjEx: {
      const auto keywords = expect(pop(), PickleKind::dict, "the arguments by name");
      const auto arguments = expect(pop(), PickleKind::tuple, "the arguments");
      push_record(
          {.callable = pop(), .arguments = arguments, .keywords = keywords, .is_new = true});
      return true;
    }
    case kInst:
    case kObj: {
      std::optional<std::pair<Text, Text>> names;
      if (instruction == kInst) {
        const auto module = line();
        names.emplace(module, line());
      }
      auto items = pop_mark();
      if (names) {
        push_global(std::string(view(names->first)), std::string(view(names->second)));
      } else if (items.empty()) {
        fail("it calls a class that is not there");
      } else {
        push(items.front());
        items.erase(items.begin());
      }
      const auto callable = pop();
      push_tuple(std::move(items));
      const auto arguments = pop();
      push_record({.callable = callable, .arguments = arguments});
      return true;
    }
    case kBuild:
      build();
      return true;
    default:
      return false;
  }
  Value value(PickleKind::persistent);
  value.place = pop();
  push(add(value));
  return true;
}

void PickleMachine::build() {
  const auto state = pop();
  auto& record =
      pickle_.records_
          [pickle_.values_[expect(top(), PickleKind::record, "the object whose state it sets")]
               .place];
  if (record.state) {
    fail("it sets the state of an object twice");
  }
  record.state = state;
}

PickleId PickleMachine::expect(PickleId id, PickleKind kind, const char* role) const {
  if (!pickle_.is(id, kind)) {
    fail(std::string(role) + " is a " + pickle_.describe(id));
  }
  return id;
}

}  // namespace dormant::checkpoint
