#include "checkpoint/safetensors.h"

#include <c10/util/Exception.h>
#include <gtest/gtest.h>

#include <ostream>
#include <string>
#include <vector>

#include "checkpoint/file.h"
#include "checkpoint/scratch_folder.h"

namespace dormant::checkpoint {
namespace {

constexpr const char* kFile = "m.safetensors";

Safetensors parse(std::string_view header, uint64_t data_size) {
  return parse_safetensors_header(header, 8 + header.size() + data_size, kFile);
}

std::string one_tensor(const std::string& dtype, const std::string& shape,
                       const std::string& offsets) {
  return R"({"a":{"dtype":")" + dtype + R"(","shape":)" + shape + R"(,"data_offsets":)" + offsets +
         "}}";
}

struct Refusal {
  const char* name;
  std::string header;
  uint64_t data_size;
  const char* says;  ///< part of the message, besides the file
};

void PrintTo(const Refusal& refusal, std::ostream* out) { *out << refusal.name; }

std::vector<Refusal> refusals() {
  const std::string good = R"("a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]})";
  return {
      {"Empty", "", 0, "starts with nothing at byte 8, expected '{'"},
      {"WhiteSpaceFirst", " {}", 0, "starts with ' ' at byte 8, expected '{'"},
      {"ArrayAtTop", "[]", 0, "starts with '['"},
      {"Unfinished", "{", 0, "is not JSON at byte"},
      {"TextBehindIt", "{}x", 0, "is not JSON at byte"},
      {"ZeroBehindIt", std::string("{}\0", 3), 0, "has a null character at byte 10"},
      {"Comment", "{/**/}", 0, "is not JSON"},
      {"TrailingComma", "{" + good + ",}", 4, "is not JSON"},
      {"NotUtf8", "{\"\xff\":{}}", 0, "is not UTF-8 at byte 10"},
      {"LoneSurrogate", R"({"\ud800":{}})", 0, "is not JSON"},
      {"NaN", one_tensor("F32", "[NaN]", "[0,4]"), 4, "is not JSON"},
      {"DuplicateName", "{" + good + "," + good + "}", 4, "names 'a' twice in one object"},
      {"DuplicateNameByEscape", "{" + good + R"(,"\u0061":{}})", 4, "names 'a' twice"},
      {"DuplicateField", R"({"a":{"dtype":"F32","dtype":"F16"}})", 0, "names 'dtype' twice"},
      {"DuplicateMetadata", R"({"__metadata__":{"k":"a","k":"b"}})", 0, "names 'k' twice"},
      {"MetadataTwice", R"({"__metadata__":{},"__metadata__":{}})", 0,
       "names '__metadata__' twice"},
      {"MetadataNumber", R"({"__metadata__":{"k":1}})", 0, "'k' is 1 before byte"},
      {"MetadataNull", R"({"__metadata__":null})", 0, "null before byte 28, expected an object"},
      {"MetadataNested", R"({"__metadata__":{"k":{}}})", 0, "'k' is an object"},
      {"MetadataArray", R"({"__metadata__":{"k":["a"]}})", 0, "'k' is an array"},
      {"EmptyName", R"({"":{"dtype":"F32","shape":[],"data_offsets":[0,4]}})", 4,
       "a tensor without a name"},
      {"TensorIsANumber", R"({"a":1})", 0, "tensor 'a': 1 before byte 15, expected an object"},
      {"TensorIsAnArray", R"({"a":["F32",[1],[0,4]]})", 4, "an array before byte"},
      {"Deep", R"({"a":{"shape":[[]]}})", 0, "nested deeper than 3 levels"},
      {"VeryDeep", std::string(100000, '['), 0, "starts with '['"},
      {"VeryDeepInside", R"({"a":)" + std::string(100000, '['), 0, "expected an object"},
      {"UnknownField", R"({"a":{"dtype":"F32","shape":[],"data_offsets":[0,4],"x":1}})", 4,
       "unknown field 'x'"},
      {"NoDtype", R"({"a":{"shape":[1],"data_offsets":[0,4]}})", 4, "without the field 'dtype'"},
      {"NoShape", R"({"a":{"dtype":"F32","data_offsets":[0,4]}})", 4, "without the field 'shape'"},
      {"NoOffsets", R"({"a":{"dtype":"F32","shape":[1]}})", 4, "the field 'data_offsets'"},
      {"DtypeIsANumber", R"({"a":{"dtype":7}})", 0, "'dtype' has 7"},
      {"DtypeIsAnArray", R"({"a":{"dtype":["F32"]}})", 0, "'dtype' has an array"},
      {"ShapeIsANumber", R"({"a":{"shape":7}})", 0, "'shape' has 7"},
      {"ShapeIsNull", R"({"a":{"shape":null}})", 0, "'shape' has null"},
      {"ShapeIsAnObject", R"({"a":{"shape":{}}})", 0, "'shape' has an object"},
      {"OffsetsAreAString", R"({"a":{"data_offsets":"0,4"}})", 0, "'data_offsets' has the string"},
      {"UnknownDtype", one_tensor("Q3", "[1]", "[0,4]"), 4, "dtype 'Q3' before byte"},
      {"LowerCaseDtype", one_tensor("f32", "[1]", "[0,4]"), 4, "dtype 'f32'"},
      {"PackedDtype", one_tensor("F6_E3M2", "[4]", "[0,3]"), 3, "its elements share bytes"},
      {"HalfAByte", one_tensor("F4", "[2,3]", "[0,3]"), 3, "a multiple of 2"},
      {"FourBitScalar", one_tensor("F4", "[]", "[0,1]"), 1, "a multiple of 2"},
      {"NegativeSize", one_tensor("F32", "[-1]", "[0,4]"), 4, "'shape' has -1 before byte"},
      {"MinusZero", one_tensor("F32", "[-0]", "[0,0]"), 0, "'shape' has -0"},
      {"FractionalSize", one_tensor("F32", "[1.0]", "[0,4]"), 4, "'shape' has 1.0"},
      {"SizeWithExponent", one_tensor("F32", "[1e0]", "[0,4]"), 4, "'shape' has 1e0"},
      {"StringSize", one_tensor("F32", R"(["1"])", "[0,4]"), 4, "'shape' has the string '1'"},
      {"SizeAbove64Bits", one_tensor("F32", "[18446744073709551616]", "[0,4]"), 4,
       "'shape' has 18446744073709551616"},
      {"SizeAbove63Bits", one_tensor("F32", "[9223372036854775808]", "[0,4]"), 4,
       "the size 9223372036854775808"},
      {"ShapeOverflows", one_tensor("U8", "[4294967296,4294967296]", "[0,4]"), 4, "overflows"},
      {"BytesOverflow", one_tensor("F64", "[1152921504606846976,2]", "[0,4]"), 4, "overflows"},
      {"OverflowBesideZero", one_tensor("U8", "[0,4294967296,4294967296]", "[0,0]"), 0,
       "overflows"},
      {"ManyDimensions",
       one_tensor(
           "U8",
           "[" + std::string(2 * 5000, ' ') + "1" +
               [] {
                 std::string more;
                 for (int i = 0; i < 5000; ++i) {
                   more += ",1";
                 }
                 return more;
               }() +
               "]",
           "[0,1]"),
       1, "more than 64 dimensions"},
      {"OffsetsBackwards", one_tensor("F32", "[1]", "[4,0]"), 4, "data_offsets 4 to 0"},
      {"OffsetsBeyondTheEnd", one_tensor("F32", "[2]", "[0,8]"), 4,
       "data_offsets 0 to 8 before byte 61, expected a range within the 4 bytes"},
      {"OffsetsOverflow", one_tensor("F32", "[1]", "[18446744073709551612,18446744073709551615]"),
       4, "expected a range within"},
      {"OneOffset", one_tensor("F32", "[1]", "[0]"), 4, "data_offsets has 1 numbers"},
      {"ThreeOffsets", one_tensor("F32", "[1]", "[0,4,4]"), 4, "data_offsets has a third number"},
      {"DtypeSizeMismatch", one_tensor("F32", "[2]", "[0,4]"), 4,
       "are 4 bytes, expected 8 for shape [2] of Float"},
      {"Overlap",
       R"({"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},"b":{"dtype":"U8","shape":[3],"data_offsets":[2,5]}})",
       5,
       "tensor 'b': its bytes start at 115, expected 117, where tensor 'a' ends, so they overlap"},
      {"Hole",
       R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"b":{"dtype":"U8","shape":[1],"data_offsets":[3,4]}})",
       4, "where tensor 'a' ends: a hole of 2 bytes"},
      {"HoleAtTheStart", one_tensor("U8", "[1]", "[1,2]"), 2, "where the header ends: a hole of 1"},
      {"TrailingBytes", one_tensor("U8", "[1]", "[0,1]"), 3, "2 bytes belong to no tensor"},
      {"BytesWithoutTensors", "{}", 3, "3 bytes belong to no tensor"},
      {"EmptyTensorWithinAnother",
       R"({"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},"b":{"dtype":"U8","shape":[0],"data_offsets":[2,2]}})",
       4, "they overlap"},
  };
}

class RefusedHeader : public testing::TestWithParam<Refusal> {};

TEST_P(RefusedHeader, IsAValueErrorThatSaysWhy) {
  const auto& refusal = GetParam();
  const auto text = message_of<c10::ValueError>([&] { parse(refusal.header, refusal.data_size); });
  EXPECT_TRUE(contains(text, std::string("open_checkpoint: ") + kFile)) << text;
  EXPECT_TRUE(contains(text, refusal.says)) << text;
  EXPECT_LT(text.size(), 4000u);
}

INSTANTIATE_TEST_SUITE_P(Safetensors, RefusedHeader, testing::ValuesIn(refusals()),
                         [](const auto& info) { return info.param.name; });

TEST(Safetensors, EntriesComeInTheOrderOfTheirBytes) {
  const auto header = parse(
      R"({"b":{"data_offsets":[4,10],"shape":[3],"dtype":"BF16"},"__metadata__":{"format":"pt"},)"
      R"("a":{"dtype":"F32","shape":[],"data_offsets":[0,4]},)"
      R"("none":{"dtype":"F64","shape":[0,7],"data_offsets":[10,10]}}  )",
      10);
  ASSERT_EQ(header.entries.size(), 3u);
  const auto& a = header.entries[0];
  EXPECT_EQ(a.name, "a");
  EXPECT_EQ(a.dtype, c10::ScalarType::Float);
  EXPECT_TRUE(a.sizes.empty());
  EXPECT_EQ(a.nbytes, 4u);
  const auto& b = header.entries[1];
  EXPECT_EQ(b.name, "b");
  EXPECT_EQ(b.sizes, (std::vector<int64_t>{3}));
  EXPECT_EQ(b.offset, a.offset + 4);
  EXPECT_EQ(header.entries[2].nbytes, 0u);
  EXPECT_EQ(header.metadata, (std::map<std::string, std::string>{{"format", "pt"}}));
}

TEST(Safetensors, SixtyFourDimensionsAreAccepted) {
  std::string shape = "[1";
  for (int i = 1; i < 64; ++i) {
    shape += ",1";
  }
  EXPECT_EQ(parse(one_tensor("U8", shape + "]", "[0,1]"), 1).entries[0].sizes.size(), 64u);
}

TEST(Safetensors, LengthOfTheHeaderIsCheckedBeforeItIsRead) {
  const std::string length = safetensors_file(std::string(100, ' '), "").substr(0, 8);
  EXPECT_EQ(safetensors_header_size(length, 108, kFile), 100u);
  EXPECT_TRUE(contains(
      message_of<c10::ValueError>([&] { safetensors_header_size(length, 107, kFile); }),
      "the header has 100 bytes by the number at byte 0, expected at most 99 in a file of 107"));
  EXPECT_THROW(safetensors_header_size("1234567", 7, kFile), c10::ValueError);
  EXPECT_THROW(safetensors_header_size(std::string(8, '\xff'), 1000, kFile), c10::ValueError);
  const std::string above("\x01\xe1\xf5\x05\0\0\0\0", 8);  // 100'000'001
  EXPECT_TRUE(
      contains(message_of<c10::ValueError>([&] { safetensors_header_size(above, 1 << 30, kFile); }),
               "expected at most 100000000, the format's limit"));
}

TEST(Safetensors, HeaderOfAFileIsRead) {
  const ScratchFolder folder;
  const auto path =
      folder.write("m", safetensors_file(one_tensor("I16", "[1,2]", "[0,4]"), "abcd"));
  const auto file = File::open(path);
  const auto header = read_safetensors_header(*file);
  ASSERT_EQ(header.entries.size(), 1u);
  EXPECT_EQ(header.entries[0].offset + 4, file->size());
  EXPECT_TRUE(contains(message_of<c10::ValueError>([&] {
                         read_safetensors_header(*File::open(folder.write("short", "123")));
                       }),
                       "the file has 3 bytes, expected at least 8"));
}

}  // namespace
}  // namespace dormant::checkpoint
