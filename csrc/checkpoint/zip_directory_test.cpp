#include "checkpoint/zip_directory.h"

#include <c10/util/Exception.h>
#include <gtest/gtest.h>

#include <string>
#include <utility>
#include <vector>

#include "checkpoint/archive_bytes.h"
#include "checkpoint/file.h"
#include "checkpoint/scratch_folder.h"

namespace dormant::checkpoint {
namespace {

struct Written {
  explicit Written(const std::string& text, const std::string& before = "")
      : file(File::open(folder.write("f", before + text + "behind"))),
        offset(before.size()),
        length(text.size()) {}

  ZipDirectory open() const { return {*file, offset, length, "the archive"}; }

  ScratchFolder folder;
  std::shared_ptr<const File> file;
  uint64_t offset;
  uint64_t length;
};

TEST(ZipDirectory, FindsRecordsOfAnArchiveInTheMiddleOfAFile) {
  const std::string large(5000, 'l');
  const Written written(
      bytes::archive({{"a/data.pkl", "pickle"}, {"a/data/0", large}, {"a/version", "3"}}), "before");
  const auto directory = written.open();
  ASSERT_EQ(directory.records().size(), 3U);
  const auto* record = directory.find("data/0");
  ASSERT_NE(record, nullptr);
  EXPECT_EQ(directory.read(*record, 5000), large);
  std::string got(5000, '\0');
  written.file->read(directory.place(*record), got.size(), got.data());
  EXPECT_EQ(got, large);
  EXPECT_EQ(directory.read(*directory.find("data.pkl"), 100), "pickle");
  EXPECT_EQ(directory.find("nothing"), nullptr);
  EXPECT_EQ(directory.find("a/version"), nullptr);
  message_of<c10::ValueError>([&] { directory.read(*record, 4999); });
}

TEST(ZipDirectory, EveryCutIsRefused) {
  const auto text = bytes::archive({{"a/data.pkl", "pickle"}, {"a/data/0", "elements"}});
  for (size_t length = 0; length < text.size(); ++length) {
    const Written written(text.substr(0, length));
    message_of<c10::ValueError>([&] { written.open(); });
  }
}

TEST(ZipDirectory, ChangedBytesAreRefusedOrReadWithinTheArchive) {
  const auto text = bytes::archive({{"a/data.pkl", "pickle"}, {"a/data/0", "elements"}});
  for (size_t at = 0; at < text.size(); ++at) {
    for (const auto bit : {0x01, 0x20, 0x80, 0xff}) {
      auto changed = text;
      changed[at] = static_cast<char>(changed[at] ^ bit);
      const Written written(changed);
      try {
        const auto directory = written.open();
        for (const auto& record : directory.records()) {
          const auto place = directory.place(record);
          EXPECT_LE(place + record.nbytes, text.size());
        }
      } catch (const c10::ValueError&) {
      }
    }
  }
}

TEST(ZipDirectory, RefusesNamesThatLeadOutOrComeTwice) {
  using Records = std::vector<std::pair<std::string, std::string>>;
  for (const auto& records :
       {Records{{"a/data.pkl", ""}, {"../b", ""}}, Records{{"/a/data.pkl", ""}},
        Records{{"a\\data.pkl", ""}}, Records{{"a/x", "1"}, {"a/x", "2"}},
        Records{{"a/data.pkl", ""}, {"b/data.pkl", ""}}, Records{{"", ""}}}) {
    const Written written(bytes::archive(records));
    message_of<c10::ValueError>([&] { written.open(); });
  }
}

}  // namespace
}  // namespace dormant::checkpoint
