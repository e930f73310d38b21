#include "checkpoint/pickle.h"

#include <c10/util/Exception.h>
#include <gtest/gtest.h>

#include <cmath>
#include <fstream>
#include <limits>
#include <ostream>
#include <string>
#include <string_view>
#include <vector>

#include "checkpoint/file.h"
#include "checkpoint/scratch_folder.h"

namespace dormant::checkpoint {
namespace {

using Kind = PickleKind;
using std::string_literals::operator""s;

Pickle parse(std::string data) { return Pickle::parse(std::move(data), "a test"); }

/// How Python's repr would show it, records and the like in a way of their own.
std::string shown(const Pickle& pickle, PickleId id) {
  const auto list = [&](std::span<const PickleId> items, const char* open, const char* close) {
    std::string text = open;
    for (const auto item : items) {
      text += text.size() > 1 ? "," : "";
      text += shown(pickle, item);
    }
    return text + close;
  };
  switch (pickle.kind(id)) {
    case Kind::none:
      return "None";
    case Kind::boolean:
      return pickle.boolean(id) ? "True" : "False";
    case Kind::integer:
      return pickle.integer(id) ? std::to_string(*pickle.integer(id))
                                : "wide" + std::to_string(pickle.wide_integer(id).size());
    case Kind::real:
      return std::to_string(pickle.real(id));
    case Kind::text:
      return "'" + std::string(pickle.text(id)) + "'";
    case Kind::bytes:
      return "b'" + std::string(pickle.text(id)) + "'";
    case Kind::bytearray:
      return "a'" + std::string(pickle.text(id)) + "'";
    case Kind::list:
      return list(pickle.items(id), "[", "]");
    case Kind::tuple:
      return list(pickle.items(id), "(", ")");
    case Kind::dict:
    case Kind::set:
      return list(pickle.items(id), "{", "}");
    case Kind::frozenset:
      return list(pickle.items(id), "<", ">");
    case Kind::global:
      return std::string(pickle.global(id).module) + "." + std::string(pickle.global(id).name);
    case Kind::record: {
      const auto& record = pickle.record(id);
      return shown(pickle, record.callable) + shown(pickle, record.arguments) +
             (record.keywords ? "**" + shown(pickle, *record.keywords) : "") +
             (record.state ? "=" + shown(pickle, *record.state) : "") +
             (record.items.empty() ? "" : "+" + list(record.items, "[", "]")) +
             (record.entries.empty() ? "" : "+" + list(record.entries, "{", "}"));
    }
    case Kind::persistent:
      return "@" + shown(pickle, pickle.persistent(id));
  }
  return "?";
}

struct Reading {
  const char* name;
  std::string data;
  const char* value;
};

void PrintTo(const Reading& reading, std::ostream* out) { *out << reading.name; }

class PickleReading : public testing::TestWithParam<Reading> {};

TEST_P(PickleReading, GivesTheValue) {
  const auto& [name, data, value] = GetParam();
  const auto pickle = parse(data + "bytes behind it");
  EXPECT_EQ(shown(pickle, pickle.root()), value);
  EXPECT_EQ(pickle.nbytes(), data.size());
}

INSTANTIATE_TEST_SUITE_P(
    All, PickleReading,
    testing::Values(
        Reading{"None", "N.", "None"}, Reading{"Protocol5", "\x80\x05N.", "None"},
        Reading{"True", "\x80\x02\x88.", "True"}, Reading{"TrueAsLine", "I01\n.", "True"},
        Reading{"FalseAsLine", "I00\n.", "False"}, Reading{"IntLine", "I-12\n.", "-12"},
        Reading{"LongLine", "L255L\n.", "255"},
        Reading{"WideLongLine", "L-18446744073709551616L\n.", "wide9"},
        Reading{"Int1", "K\xff.", "255"}, Reading{"Int2", "M\xff\xff.", "65535"},
        Reading{"Int4", "J\xff\xff\xff\xff.", "-1"}, Reading{"Long0", "\x8a\0."s, "0"},
        Reading{"Long1", "\x8a\x02\0\xff."s, "-256"},
        Reading{"LongOf9ButSmall", "\x8a\x09\x05\0\0\0\0\0\0\0\0."s, "5"},
        Reading{"Long4", "\x8b\x01\0\0\0\x07."s, "7"},
        Reading{"Float", "G\x3f\xf8\0\0\0\0\0\0."s, "1.500000"},
        Reading{"FloatLine", "F-2.5e1\n.", "-25.000000"}, Reading{"FloatLineInf", "Finf\n.", "inf"},
        Reading{"StringLine", "S'a\\x41\\n\\101\\''\n.", "'aA\nA''"},
        Reading{"StringThatIsNotText", "U\x02\xff\xfe.", "b'\xff\xfe'"},
        Reading{"BinString", "T\x01\0\0\0z."s, "'z'"},
        Reading{"UnicodeLine", "Va\\u00e9\\U0001f600\xe9\n.", "'aé😀é'"},
        Reading{"UnicodeLineBackslashes", "Va\\\\u0041\n.", "'a\\\\u0041'"},
        Reading{"Unicode", "X\x02\0\0\0\xc3\xa9."s, "'é'"},
        Reading{"UnicodeSurrogate", "\x8c\x03\xed\xa0\x80.", "'\xed\xa0\x80'"},
        Reading{"Unicode8", "\x8d\x01\0\0\0\0\0\0\0y."s, "'y'"},
        Reading{"Bytes", "C\x01\xff.", "b'\xff'"}, Reading{"Bytes4", "B\x01\0\0\0q."s, "b'q'"},
        Reading{"Bytes8", "\x8e\x01\0\0\0\0\0\0\0q."s, "b'q'"},
        Reading{"ByteArray", "\x96\x01\0\0\0\0\0\0\0q."s, "a'q'"},
        Reading{"Tuples", "))\x85K\x01K\x02\x86NNN\x87\x87.", "((()),(1,2),(None,None,None))"},
        Reading{"TupleOfMark", "(K\x01K\x02t.", "(1,2)"}, Reading{"ListOfMark", "(K\x01l.", "[1]"},
        Reading{"Lists",
                "](K\x01K\x02"
                "eK\x03"
                "a.",
                "[1,2,3]"},
        Reading{"DictOfMark", "(K\x01Nd.", "{1,None}"},
        Reading{"Dicts", "}K\x01Ns(K\x02K\x03u.", "{1,None,2,3}"},
        Reading{"Sets", "\x8f(K\x01K\x02\x90.", "{1,2}"},
        Reading{"FrozenSet", "(K\x01\x91.", "<1>"},
        Reading{"Memo",
                "]q\x02K\x01"
                "ah\x02r\x06\0\0\0j\x06\0\0\0"
                "0\x86."s,
                "([1],[1])"},
        Reading{"MemoLines", "(lp0\ng0\n\x86.", "([],[])"},
        Reading{"Memoize", "]\x94K\x01\x94h\x01\x86\x86.", "([],(1,1))"},
        Reading{"PopAndDup",
                "K\x01K\x02"
                "02\x86.",
                "(1,1)"},
        Reading{"PopMark", "K\x01(NN1.", "1"}, Reading{"PopsTheMark", "K\x01(0.", "1"},
        Reading{"Global", "cos\nsystem\n.", "os.system"},
        Reading{"GlobalOfPython2", "c__builtin__\nxrange\n.", "builtins.range"},
        Reading{"GlobalOfProtocol3",
                "\x80\x03"
                "c__builtin__\nset\n.",
                "__builtin__.set"},
        Reading{"StackGlobal", "\x8c\x02os\x8c\x06system\x93.", "os.system"},
        Reading{"Reduce", "cos\nsystem\n\x8c\x02ls\x85R.", "os.system('ls')"},
        Reading{"ReduceChain", "ca\nb\n)R)R)R.", "a.b()()()"},
        Reading{"NewObj", "ca\nB\n)\x81.", "a.B()"},
        Reading{"NewObjEx", "ca\nB\n)}\x8c\x01kNs\x92.", "a.B()**{'k',None}"},
        Reading{"Inst", "(K\x01ia\nB\n.", "a.B(1)"}, Reading{"Obj", "(ca\nB\nK\x01o.", "a.B(1)"},
        Reading{"State", "ca\nB\n)\x81}K\x01K\x02sb.", "a.B()={1,2}"},
        Reading{"ItemsAndEntries",
                "ca\nB\n)RK\x01"
                "a(K\x02"
                "eK\x03K\x04s.",
                "a.B()+[1,2]+{3,4}"},
        Reading{"PersistentId", "\x8c\x01xQ.", "@'x'"},
        Reading{"PersistentLine", "Pab\n.", "@'ab'"},
        Reading{"Frames", "\x80\x04\x95\x02\0\0\0\0\0\0\0]\x94\x95\x01\0\0\0\0\0\0\0."s, "[]"}),
    [](const auto& info) { return std::string(info.param.name); });

struct Refusal {
  const char* name;
  std::string data;
  const char* says;
};

void PrintTo(const Refusal& refusal, std::ostream* out) { *out << refusal.name; }

class PickleRefusal : public testing::TestWithParam<Refusal> {};

TEST_P(PickleRefusal, SaysWhereAndWhy) {
  try {
    parse(GetParam().data);
    FAIL() << "it was accepted";
  } catch (const c10::ValueError& error) {
    const std::string message = error.what_without_backtrace();
    EXPECT_NE(message.find("a test"), std::string::npos) << message;
    EXPECT_NE(message.find(GetParam().says), std::string::npos) << message;
  }
}

std::string nested_tuples(size_t depth) {
  std::string data = ")";
  for (size_t i = 0; i < depth; ++i) {
    data += '\x85';
  }
  return data + ".";
}

INSTANTIATE_TEST_SUITE_P(
    All, PickleRefusal,
    testing::Values(
        Refusal{"Empty", "", "takes 1 bytes from byte 0 on, expected at most 0"},
        Refusal{"NothingOnTheStack", ".", "the stack is empty"},
        Refusal{"NoEnd", "N", "byte 1: it takes 1 bytes"},
        Refusal{"NewerProtocol", "\x80\x06N.", "protocol 6, expected at most 5"},
        Refusal{"Unknown", "\xffN.", "instruction 0xff at byte 0"},
        Refusal{"Extension", "\x82\x01.", "instruction 0x82"},
        Refusal{"Buffer", "\x97.", "instruction 0x97"},
        Refusal{"TextPastTheEnd",
                "X\xff\xff\xff\xff"
                "a.",
                "takes 4294967295 bytes"},
        Refusal{"Text8PastTheEnd",
                "\x8d\xff\xff\xff\xff\xff\xff\xff\xff"
                "a.",
                "takes 18446744073709551615 bytes"},
        Refusal{"LongOf2GiB",
                "\x8b\xff\xff\xff\x7f"
                "a.",
                "takes 2147483647 bytes"},
        Refusal{"NegativeLong",
                "\x8b\xff\xff\xff\xff"
                "a.",
                "takes 4294967295 bytes"},
        Refusal{"NotUnicode", "\x8c\x02\xff\xfe.", "text that is not UTF-8"},
        Refusal{"GetOfNothing", "h\x00."s, "gets number 0 of the memo"},
        Refusal{"GetBetween", "]q\x02h\x01.", "gets number 1 of the memo"},
        Refusal{"MemoBomb", "]r\xff\xff\xff\xff.", "number 4294967295 of the memo"},
        Refusal{"MemoLine", "]p-1\n.", "not a number of the memo"},
        Refusal{"MemoHugeLine", "]p99999999999999999999\n.", "not a number of the memo"},
        Refusal{"PutOfNothing", "q\x00."s, "the stack is empty"},
        Refusal{"TupleOfNothing", "\x85.", "it needs 1 values, but the stack has 0"},
        Refusal{"TupleAcrossMark", "N(\x85.", "it needs 1 values, but the stack has 0"},
        Refusal{"NoMark", "NNt.", "it needs a mark"}, Refusal{"SetItemsNoMark", "}u.", "a mark"},
        Refusal{"KeyWithoutValue", "}(Nu.", "a key without a value"},
        Refusal{"DictKeyWithoutValue", "(Nd.", "a key without a value"},
        Refusal{"AppendToText", "\x8c\x01xNa.", "appends to a str 'x'"},
        Refusal{"AppendToDict", "}Na.", "appends to a dict"},
        Refusal{"SetInList", "]NNs.", "sets items of a list"},
        Refusal{"AddToList", "](N\x90.", "the set that it adds to is a list"},
        Refusal{"StateOfText", "\x8c\x01xNb.", "the object whose state it sets is a str 'x'"},
        Refusal{"TwoStates", "ca\nB\n)\x81NbNb.", "the state of an object twice"},
        Refusal{"ArgumentsOfNoTuple", "ca\nB\n]R.", "the arguments is a list"},
        Refusal{"KeywordsOfNoDict", "ca\nB\n))\x92.", "the arguments by name is a tuple"},
        Refusal{"ReduceOfOne", ")R.", "the stack is empty"},
        Refusal{"ObjOfNothing", "(o.", "it calls a class that is not there"},
        Refusal{"GlobalCut", "cos", "takes 1 bytes"},
        Refusal{"GlobalOfNothing", "c\n\n.", "expected names"},
        Refusal{"StackGlobalOfNumber", "K\x01\x8c\x01x\x93.", "the module is a int 1"},
        Refusal{"LongLine", "c" + std::string(100'000, 'a') + "\nb\n.", "a line longer than 65536"},
        Refusal{"ManyDigits", "L" + std::string(5000, '9') + "L\n.", "at most 4300 digits"},
        Refusal{"NotAnInteger", "I1x\n.", "not an integer"},
        Refusal{"NotAFloat", "F1.5x\n.", "not a number"},
        Refusal{"NotQuoted", "Sabc\n.", "not text in quotes"},
        Refusal{"WrongEscape", "V\\u12\n.", "an invalid escape"},
        Refusal{"FrameTooLong", "\x95\xff\xff\xff\xff\xff\xff\xff\xffN.",
                "a frame of 18446744073709551615 bytes"},
        Refusal{"FrameEndsWithinAnInstruction", "\x95\x02\0\0\0\0\0\0\0M\x01\x02."s,
                "where its frame ends"},
        Refusal{"FrameInAFrame", "\x95\x0b\0\0\0\0\0\0\0\x95\x01\0\0\0\0\0\0\0N."s,
                "a frame begins within another"},
        Refusal{"DeepTuples", nested_tuples(3000), "nested deeper than 1000"}),
    [](const auto& info) { return std::string(info.param.name); });

TEST(Pickle, KeepsWhatIsSharedAndWhatContainsItself) {
  const auto pickle = parse("]q\0h\0ah\0\x86."s);
  const auto items = pickle.items(pickle.root());
  EXPECT_EQ(items[0], items[1]);
  ASSERT_EQ(pickle.items(items[0]).size(), 1U);
  EXPECT_EQ(pickle.items(items[0])[0], items[0]);
}

TEST(Pickle, IsFreedHoweverDeepItNests) {
  constexpr size_t kDepth = 1'000'000;
  std::string data(kDepth, ']');
  data += std::string(kDepth - 1, 'a') + ".";
  EXPECT_EQ(parse(data).size(), kDepth + 4);
  std::string calls = "ca\nb\n";
  for (size_t i = 0; i < kDepth; ++i) {
    calls += ")R";
  }
  EXPECT_EQ(parse(calls + ".").size(), kDepth + 5);
}

TEST(Pickle, NumbersWhatIsContainedForeverBelowItsContainer) {
  const auto pickle = parse("\x8c\x01x\x85)\x86K\x01\x86.");
  for (PickleId id = 0; id < pickle.size(); ++id) {
    if (pickle.is(id, Kind::tuple)) {
      for (const auto item : pickle.items(id)) {
        EXPECT_LT(item, id);
      }
    }
  }
}

TEST(Pickle, FindsTheLastValueOfAKey) {
  const auto pickle = parse("}(\x8c\x01kK\x01\x8c\x01jK\x02\x8c\x01kK\x03u.");
  EXPECT_EQ(pickle.integer(*pickle.find(pickle.root(), "k")), 3);
  EXPECT_FALSE(pickle.find(pickle.root(), "x"));
}

TEST(Pickle, SaysWhereAValueWasMade) {
  const auto pickle = parse("\x80\x02K\x01K\x02\x86.");
  EXPECT_EQ(pickle.offset(pickle.root()), 6U);
  EXPECT_EQ(pickle.offset(pickle.items(pickle.root())[1]), 4U);
}

TEST(Pickle, ReadsNoMoreOfAFileThanItMust) {
  const ScratchFolder folder;
  const auto path = folder.path("pickles");
  const std::string text(200'000, 't');
  std::string second = "X" + "\x40\x0d\x03\0"s + text + ".";
  std::ofstream(path, std::ios::binary) << "N." << second << "rest";
  const auto file = File::open(path);
  const auto first = Pickle::read(*file, 0, "first");
  EXPECT_EQ(first.nbytes(), 2U);
  const auto pickle = Pickle::read(*file, first.nbytes(), "second");
  EXPECT_EQ(pickle.text(pickle.root()), text);
  EXPECT_EQ(pickle.nbytes(), second.size());
  EXPECT_THROW(Pickle::read(*file, 2 + second.size(), "rest"), c10::ValueError);
  EXPECT_THROW(Pickle::read(*file, uint64_t{1} << 60, "beyond"), c10::ValueError);
}

}  // namespace
}  // namespace dormant::checkpoint
