#include "text/printable.h"

#include <gtest/gtest.h>

namespace dormant::text {
namespace {

TEST(Printable, LeavesTextAlone) {
  EXPECT_EQ(printable("model.layers.0.weight \xc3\xa9 \xe2\x82\xac \xf0\x9f\x98\x80"),
            "model.layers.0.weight \xc3\xa9 \xe2\x82\xac \xf0\x9f\x98\x80");
  EXPECT_EQ(in_quotes("a"), "'a'");
}

TEST(Printable, ShowsControlCharactersAndBytesThatAreNoText) {
  EXPECT_EQ(printable(std::string_view("a\0b\n\x1b[31m\x7f", 10)), "a\\x00b\\x0a\\x1b[31m\\x7f");
  EXPECT_EQ(printable("\xff\xc3"), "\\xff\\xc3");
  EXPECT_EQ(printable("\xed\xa0\x80"), "\\xed\\xa0\\x80");
}

TEST(Printable, ShowsCharactersThatTurnOrHideText) {
  EXPECT_EQ(printable("\xc2\x9bm"), "\\xc2\\x9bm") << "a terminal's command";
  EXPECT_EQ(printable("x\xe2\x80\xaey"), "x\\xe2\\x80\\xaey") << "from right to left from here";
  EXPECT_EQ(printable("\xe2\x80\xa8"), "\\xe2\\x80\\xa8") << "a line separator";
  EXPECT_EQ(printable("\xef\xbb\xbf"), "\\xef\\xbb\\xbf") << "a space without width";
  EXPECT_EQ(printable("\xf3\xa0\x81\x81"), "\\xf3\\xa0\\x81\\x81") << "a tag, which is invisible";
  EXPECT_EQ(printable("\xc2\xa0\xdf\xbf\xe2\x80\x90"), "\xc2\xa0\xdf\xbf\xe2\x80\x90");
}

TEST(Printable, LongTextIsCutToValidText) {
  std::string text;
  for (int i = 0; i < 1000; ++i) {
    text += "\xe2\x82\xac";
  }
  const auto shown = printable(text);
  EXPECT_LT(shown.size(), 500u);
  EXPECT_NE(shown.find("2600 bytes more"), std::string::npos);
  EXPECT_EQ(first_not_utf8(shown), std::string_view::npos);
}

TEST(Printable, FindsTheFirstByteThatIsNoUtf8) {
  EXPECT_EQ(first_not_utf8("abc"), std::string_view::npos);
  EXPECT_EQ(first_not_utf8("ab\x80"), 2u);
  EXPECT_EQ(first_not_utf8("\xc0\x80"), 0u) << "an overlong form";
  EXPECT_EQ(first_not_utf8("a\xf4\x90\x80\x80"), 1u) << "above U+10FFFF";
  EXPECT_EQ(first_not_utf8("a\xe2\x82"), 1u) << "the text ends within a character";
}

}  // namespace
}  // namespace dormant::text
