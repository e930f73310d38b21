#include "checkpoint/safetensors_layout.h"

#include <c10/util/Exception.h>
#include <gtest/gtest.h>

#include <limits>
#include <string>

#include "checkpoint/safetensors.h"
#include "checkpoint/scratch_folder.h"

namespace dormant::checkpoint {
namespace {

using c10::ScalarType;

const std::vector<std::pair<std::string, std::string>> kPyTorch = {{"format", "pt"}};

TEST(SafetensorsLayout, WideElementsComeFirstThenNames) {
  const std::vector<TensorToWrite> tensors = {{"b", ScalarType::Byte, {3}},
                                              {"z", ScalarType::Float, {2, 1}},
                                              {"a", ScalarType::Float, {}},
                                              {"w", ScalarType::Long, {0}}};
  const auto layout = lay_out_safetensors(tensors, kPyTorch);
  const std::string header =
      R"({"__metadata__":{"format":"pt"},"w":{"dtype":"I64","shape":[0],"data_offsets":[0,0]},)"
      R"("a":{"dtype":"F32","shape":[],"data_offsets":[0,4]},)"
      R"("z":{"dtype":"F32","shape":[2,1],"data_offsets":[4,12]},)"
      R"("b":{"dtype":"U8","shape":[3],"data_offsets":[12,15]}})";
  EXPECT_EQ(layout.prefix.substr(8, header.size()), header);
  EXPECT_EQ(layout.prefix.find_first_not_of(' ', 8 + header.size()), std::string::npos);
  EXPECT_EQ(layout.prefix.size() % 8, 0u);
  const auto begin = layout.prefix.size();
  EXPECT_EQ(layout.offsets, (std::vector<uint64_t>{begin + 12, begin + 4, begin, begin}));
  EXPECT_EQ(layout.nbytes, begin + 15);
}

TEST(SafetensorsLayout, TheReaderFindsWhatWasLaidOut) {
  const std::vector<TensorToWrite> tensors = {{"\"\\\n\t\x01/\x7f", ScalarType::Half, {7}},
                                              {"\xc3\xa9\xf0\x9f\x98\x80", ScalarType::Bool, {2}},
                                              {"packed", ScalarType::Float4_e2m1fn_x2, {3, 2}}};
  const auto layout = lay_out_safetensors(tensors, {});
  const auto header = parse_safetensors_header(std::string_view(layout.prefix).substr(8),
                                               layout.nbytes, "the file");
  ASSERT_EQ(header.entries.size(), tensors.size());
  for (const auto& entry : header.entries) {
    size_t i = 0;
    while (tensors[i].name != entry.name) {
      ASSERT_LT(++i, tensors.size()) << entry.name;
    }
    EXPECT_EQ(entry.dtype, tensors[i].dtype);
    EXPECT_EQ(entry.sizes, tensors[i].sizes);
    EXPECT_EQ(entry.offset, layout.offsets[i]);
  }
}

void expect_refused(const std::vector<TensorToWrite>& tensors, const char* cause) {
  const auto text = message_of<c10::ValueError>([&] { lay_out_safetensors(tensors, kPyTorch); });
  EXPECT_TRUE(contains(text, cause)) << text;
}

TEST(SafetensorsLayout, WhatTheFormatCannotSayIsRefused) {
  constexpr auto kMost = std::numeric_limits<int64_t>::max();
  expect_refused({{"\xff", ScalarType::Float, {}}}, "is not UTF-8");
  expect_refused({{"a", ScalarType::Float, {}}, {"a", ScalarType::Byte, {}}}, "given twice");
  expect_refused({{"__metadata__", ScalarType::Float, {}}}, "is reserved");
  expect_refused({{"a", ScalarType::ComplexDouble, {}}}, "safetensors has no ComplexDouble");
  expect_refused({{"a", ScalarType::Float4_e2m1fn_x2, {}}}, "safetensors has no scalars of");
  expect_refused({{"a", ScalarType::Float, {kMost, 2}}}, "expected at most");
  expect_refused({{"a", ScalarType::Float4_e2m1fn_x2, {kMost}}}, "too many elements");
  expect_refused({{"a", ScalarType::Byte, {kMost}}, {"b", ScalarType::Byte, {1}}}, "more than");
  expect_refused({{"a", ScalarType::Byte, {kMost}}}, "more than");  // with the header
  expect_refused({{std::string(kLongestHeader, 'x'), ScalarType::Byte, {}}},
                 "readers of safetensors accept 100000000");
}

}  // namespace
}  // namespace dormant::checkpoint
