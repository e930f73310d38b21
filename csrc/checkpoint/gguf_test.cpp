#include "checkpoint/gguf.h"

#include <c10/util/Exception.h>
#include <gtest/gtest.h>

#include <bit>
#include <cstring>
#include <ostream>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "checkpoint/file.h"
#include "checkpoint/gguf_bytes.h"
#include "checkpoint/scratch_folder.h"

namespace dormant::checkpoint {
namespace {

using namespace gguf_bytes;

class Memory final : public record::Source {
 public:
  explicit Memory(std::string bytes) : bytes_(std::move(bytes)) {}
  void read(uint64_t offset, size_t count, void* out) const override {
    if (offset > bytes_.size() || count > bytes_.size() - offset) {
      throw std::logic_error("a read beyond the end");
    }
    std::memcpy(out, bytes_.data() + offset, count);
  }
  const std::string& name() const override { return name_; }

 private:
  const std::string bytes_;
  const std::string name_ = "m.gguf";
};

Gguf parse(const std::string& bytes) {
  const Memory memory(bytes);
  return parse_gguf(memory, bytes.size());
}

struct Refusal {
  const char* name;
  std::string bytes;
  const char* says;  ///< part of the message, besides the file
};

void PrintTo(const Refusal& refusal, std::ostream* out) { *out << refusal.name; }

std::vector<Refusal> refusals() {
  constexpr uint64_t kMost = UINT64_MAX;
  const auto one = [](const std::string& each, size_t data = 4) { return gguf({}, {each}, data); };
  const auto key = [](const std::string& each) { return gguf({each}, {}, 0); };
  const std::string begin = kMagic + u32(3);
  return {
      {"Empty", "", "the header at byte 0 takes 4 bytes, expected at most 0"},
      {"MagicAlone", "GGUF", "the version at byte 4 takes 4 bytes"},
      {"OtherMagic", "GGML" + std::string(20, '\0'), "does not follow 'GGUF'"},
      {"VersionZero", kMagic + u32(0) + u64(0) + u64(0), "is 0, expected 2 or 3"},
      {"VersionFour", kMagic + u32(4) + u64(0) + u64(0), "is 4, expected 2 or 3"},
      {"NoCounts", begin, "the number of tensors at byte 8 takes 8 bytes"},
      {"NoKeyCount", begin + u64(0), "the number of keys at byte 16 takes 8 bytes"},
      {"ManyTensors", begin + u64(kMost) + u64(0), "the number of tensors at byte 8 is 1844"},
      {"ManyKeys", begin + u64(0) + u64(kMost), "the number of keys at byte 16 is 1844"},
      {"OneTensorTooMany", begin + u64(1) + u64(0), "is 1, expected at most 0"},
      {"KeyBeyondTheEnd", begin + u64(0) + u64(1) + u64(1000) + std::string(40, 'k'),
       "a key at byte 24 has 1000 bytes, expected at most 40"},
      {"KeyOf64Bits", begin + u64(0) + u64(1) + u64(kMost) + std::string(40, 'k'),
       "a key at byte 24 has 18446744073709551615 bytes"},
      {"LongKey", key(pair(std::string(70000, 'k'), 4, u32(0))), "expected at most 65535"},
      {"EmptyKey", key(pair("", 4, u32(0))), "a key at byte 24 is empty"},
      {"KeyNotUtf8", key(pair("a\xff", 4, u32(0))), "which is not UTF-8 at its byte 1"},
      {"KeyTwice", gguf({pair("k", 4, u32(0)), pair("k", 4, u32(0))}, {}, 0),
       "'k' at byte 50 is "
       "given twice"},
      {"UnknownValueType", key(pair("k", 13, u32(0))), "a value of type 13, expected 0 to 12"},
      {"ValueTypeOf32Bits", key(pair("k", UINT32_MAX, u32(0))), "a value of type 4294967295"},
      {"BooleanTwo", key(pair("k", 7, "\2")), "is 2, expected 0 or 1"},
      {"StringBeyondTheEnd", key(pair("k", 8, u64(100) + "abc")),
       "has 100 bytes, expected at most"},
      {"StringOf64Bits", key(pair("k", 8, u64(kMost) + "abc")), "has 18446744073709551615 bytes"},
      {"ArrayOfArrays", key(pair("k", 9, u32(9) + u64(1) + u32(4) + u64(0))), "array of arrays"},
      {"EmptyArrayOfArrays", key(pair("k", 9, u32(9) + u64(0))), "array of arrays"},
      {"ArrayOfUnknown", key(pair("k", 9, u32(77) + u64(1) + u32(4))), "a value of type 77"},
      {"ArrayBeyondTheEnd", key(pair("k", 9, u32(4) + u64(1000) + u32(4))),
       "an array of 1000 elements, expected at most"},
      {"ArrayOf64Bits", key(pair("k", 9, u32(10) + u64(1ULL << 61) + u64(4))),
       "an array of 2305843009213693952 elements"},
      {"StringsBeyondTheEnd", key(pair("k", 9, u32(8) + u64(1) + u64(50) + "abc")),
       "has 50 bytes, expected at most"},
      {"ManyStrings", key(pair("k", 9, u32(8) + u64(1ULL << 60))), "an array of 11529215046068"},
      {"BooleansInArray", key(pair("k", 9, u32(7) + u64(2) + "\1\3")), "is 3, expected 0 or 1"},
      {"AlignmentZero", key(pair("general.alignment", 4, u32(0))), "general.alignment is 0"},
      {"AlignmentOdd", key(pair("general.alignment", 4, u32(48))), "general.alignment is 48"},
      {"AlignmentHuge", key(pair("general.alignment", 10, u64(1ULL << 40))), "is 1099511627776"},
      {"AlignmentText", key(pair("general.alignment", 8, text("32"))), "is not an unsigned number"},
      {"AlignmentNegative", key(pair("general.alignment", 5, u32(32))),
       "is not an unsigned number"},
      {"TensorCutOff", begin + u64(1) + u64(0) + text("a") + u32(1) + u64(4) + u32(0),
       "tensor 'a' at byte 33 takes 8 bytes"},
      {"EmptyName", one(tensor("", {1}, 0, 0)), "the name of a tensor at byte 24 is empty"},
      {"NameNotUtf8", one(tensor("\xc3", {1}, 0, 0)), "which is not UTF-8 at its byte 0"},
      {"NameTwice", gguf({}, {tensor("a", {1}, 0, 0), tensor("a", {1}, 0, 32)}, 64),
       "is given twice"},
      {"ManyDimensions", one(tensor("a", {1, 1, 1, 1, 1}, 0, 0)), "has 5 dimensions"},
      {"DimensionsOf32Bits",
       begin + u64(1) + u64(0) + text("a") + u32(UINT32_MAX) + u64(0) + u64(0),
       "has 4294967295 dimensions"},
      {"SizeAbove63Bits", one(tensor("a", {1ULL << 63}, 0, 0)), "the size 9223372036854775808"},
      {"ShapeOverflows", one(tensor("a", {1ULL << 32, 1ULL << 32}, 0, 0)), "which overflows"},
      {"OverflowBesideZero", one(tensor("a", {0, 1ULL << 40, 1ULL << 40}, 0, 0)), "overflows"},
      {"FloatsOverflow", one(tensor("a", {1ULL << 61}, 8, 0)), "which overflows"},
      {"UnknownType", one(tensor("a", {1}, 99, 0)), "has type 99"},
      {"RemovedType", one(tensor("a", {32}, 4, 0)), "has type 4, expected a type of ggml"},
      {"HalfABlock", one(tensor("a", {48}, 8, 0), 64), "expected rows of whole blocks of Q8_0, 32"},
      {"ScalarOfBlocks", one(tensor("a", {}, 8, 0), 64), "expected rows of whole blocks"},
      {"RowsOfHalfBlocks", one(tensor("a", {16, 2}, 8, 0), 64), "has shape [2, 16], expected rows"},
      {"NotAligned", one(tensor("a", {1}, 0, 4), 8), "start at 4 of the data, expected a multiple"},
      {"OffsetBeyondTheEnd", one(tensor("a", {1}, 0, 32), 4), "4 bytes at 32 of the data"},
      {"OffsetOf64Bits", one(tensor("a", {8}, 0, kMost - 31), 32),
       "32 bytes at 184467440737095515"},
      {"OneByteShort", one(tensor("a", {2}, 0, 0), 7), "expected a range within its 7 bytes"},
      {"DataMissing", one(tensor("a", {1}, 0, 0), 0), "expected a range within its 0 bytes"},
      {"Overlap", gguf({}, {tensor("a", {9}, 0, 0), tensor("b", {1}, 0, 32)}, 64),
       "tensor 'b': its bytes start at 128, expected at least 132, where tensor 'a' ends"},
      {"SameBytes", gguf({}, {tensor("a", {1}, 0, 0), tensor("b", {1}, 0, 0)}, 64), "they overlap"},
  };
}

class RefusedGguf : public testing::TestWithParam<Refusal> {};

TEST_P(RefusedGguf, IsAValueErrorThatSaysWhy) {
  const auto& refusal = GetParam();
  try {
    parse(refusal.bytes);
    FAIL() << "accepted";
  } catch (const c10::ValueError& error) {
    const std::string message = error.what_without_backtrace();
    EXPECT_TRUE(message.starts_with("open_checkpoint: m.gguf: ")) << message;
    EXPECT_NE(message.find(refusal.says), std::string::npos) << message;
  }
}

INSTANTIATE_TEST_SUITE_P(Files, RefusedGguf, testing::ValuesIn(refusals()),
                         [](const auto& info) { return std::string(info.param.name); });

TEST(Gguf, OfABigEndianMachineOrVersionOneIsNotImplemented) {
  EXPECT_THROW(parse(kMagic + std::string("\0\0\0\3", 4) + u64(0) + u64(0)),
               c10::NotImplementedError);
  EXPECT_THROW(parse(kMagic + u32(1) + u32(0) + u32(0)), c10::NotImplementedError);
}

TEST(Gguf, EveryPieceOfAFileIsRefused) {
  const auto whole = gguf({pair("a", 8, text("text")), pair("b", 9, u32(8) + u64(1) + text("x"))},
                          {tensor("w", {32, 2}, 8, 0), tensor("v", {3}, 1, 96)}, 102);
  ASSERT_EQ(parse(whole).tensors.size(), 2u);
  for (size_t size = 0; size < whole.size(); ++size) {
    EXPECT_THROW(parse(whole.substr(0, size)), c10::ValueError) << size;
  }
}

TEST(Gguf, HasTensorsInTheOrderOfTheFileWithTheOutermostDimensionFirst) {
  const auto header = parse(gguf(
      {pair("general.alignment", 4, u32(64))},
      {tensor("w", {64, 3}, 12 - 4, 64), tensor("v", {}, 30, 0), tensor("none", {0, 7}, 0, 64)},
      64 + 204, 64));
  ASSERT_EQ(header.tensors.size(), 3u);
  const auto& w = header.tensors[0];
  EXPECT_EQ(w.entry.name, "w");
  EXPECT_EQ(w.type->name, "Q8_0");
  EXPECT_EQ(w.sizes, (std::vector<int64_t>{3, 64}));
  EXPECT_EQ(w.entry.sizes, (std::vector<int64_t>{3, 68}));
  EXPECT_EQ(w.entry.dtype, c10::ScalarType::Byte);
  EXPECT_EQ(w.entry.nbytes, 204u);
  EXPECT_EQ(w.entry.offset % 64, 0u);
  const auto& v = header.tensors[1];
  EXPECT_EQ(v.entry.dtype, c10::ScalarType::BFloat16);
  EXPECT_EQ(v.entry.nbytes, 2u);
  EXPECT_EQ(v.entry.offset + 64, w.entry.offset);
  EXPECT_EQ(header.tensors[2].entry.nbytes, 0u);
}

TEST(Gguf, HasValuesOfEveryType) {
  const ScratchFolder folder;
  const auto bytes = gguf(
      {pair("u8", 0, "\xff"), pair("i8", 1, "\xff"), pair("u16", 2, "\xff\xff"),
       pair("i16", 3, "\xff\xff"), pair("u32", 4, u32(1)), pair("i32", 5, u32(UINT32_MAX)),
       pair("f32", 6, number(1.5F)), pair("bool", 7, "\1"), pair("text", 8, text("a\xff")),
       pair("u64", 10, u64(UINT64_MAX)), pair("i64", 11, u64(UINT64_MAX)),
       pair("f64", 12, number(0.1)), pair("words", 9, u32(8) + u64(2) + text("a") + text("bc")),
       pair("numbers", 9, u32(3) + u64(2) + number<int16_t>(-1) + number<int16_t>(2))},
      {}, 0);
  const auto file = File::open(folder.write("m.gguf", bytes));
  const auto header = read_gguf(*file);
  const auto value = [&](size_t i) { return header.metadata.at(i).second; };
  EXPECT_EQ(value(0), GgufValue(uint64_t{255}));
  EXPECT_EQ(value(1), GgufValue(int64_t{-1}));
  EXPECT_EQ(value(2), GgufValue(uint64_t{65535}));
  EXPECT_EQ(value(3), GgufValue(int64_t{-1}));
  EXPECT_EQ(value(4), GgufValue(uint64_t{1}));
  EXPECT_EQ(value(5), GgufValue(int64_t{-1}));
  EXPECT_EQ(value(6), GgufValue(1.5));
  EXPECT_EQ(value(7), GgufValue(true));
  EXPECT_EQ(value(8), GgufValue(std::string("a\xff")));
  EXPECT_EQ(value(9), GgufValue(UINT64_MAX));
  EXPECT_EQ(value(10), GgufValue(int64_t{-1}));
  EXPECT_EQ(value(11), GgufValue(0.1));
  EXPECT_EQ(header.metadata.at(12).first, "words");
  EXPECT_EQ(read_gguf_array(*file, std::get<GgufArray>(value(12))),
            (std::vector<GgufValue>{std::string("a"), std::string("bc")}));
  EXPECT_EQ(read_gguf_array(*file, std::get<GgufArray>(value(13))),
            (std::vector<GgufValue>{int64_t{-1}, int64_t{2}}));
}

TEST(Gguf, HeaderMayBeLongerThanAWindow) {
  std::string words = u32(8) + u64(400000);
  for (int i = 0; i < 400000; ++i) {
    words += text(std::to_string(i));
  }
  const auto bytes =
      gguf({pair("words", 9, words), pair("long", 8, text(std::string(3000000, 'x')))},
           {tensor("w", {2}, 0, 0)}, 8);
  const auto header = parse(bytes);
  EXPECT_EQ(header.tensors[0].entry.offset + 8, bytes.size());
  const Memory memory(bytes);
  const auto values = read_gguf_array(memory, std::get<GgufArray>(header.metadata[0].second));
  EXPECT_EQ(values.at(399999), GgufValue(std::string("399999")));
}

}  // namespace
}  // namespace dormant::checkpoint
