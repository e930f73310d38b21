#include "checkpoint/zip_directory.h"

#include <c10/util/Exception.h>
#include <gtest/gtest.h>

#include <string>

#include "checkpoint/memory_file.h"
#include "checkpoint/scratch_folder.h"
#include "checkpoint/zip_bytes.h"

namespace dormant::checkpoint {
namespace {

const std::vector<StoredRecord> kRecords = {{"a/one", "1"}, {"a/", ""}, {"a/two", "22"}};

std::string refusal(const std::string& bytes) {
  return message_of<c10::ValueError>([&] { read_zip_directory(MemoryFile(bytes)); });
}

std::string changed(std::string bytes, size_t place, const std::string& with) {
  return bytes.replace(place, with.size(), with);
}

class ZipDirectory : public testing::TestWithParam<bool> {};

TEST_P(ZipDirectory, ListsTheRecordsWithoutFolders) {
  const auto bytes = zip_bytes(kRecords, GetParam());
  const auto records = read_zip_directory(MemoryFile(bytes));
  ASSERT_EQ(records.size(), 2U);
  EXPECT_EQ(records[0].name, "a/one");
  EXPECT_EQ(records[1].nbytes, 2U);
  EXPECT_EQ(records[1].crc, crc32_of("22"));
  EXPECT_EQ(bytes.substr(records[1].offset, 2), "22");
}

TEST_P(ZipDirectory, RefusesWhatIsCutAndWhatIsChangedOrReadsTheSame) {
  const auto bytes = zip_bytes(kRecords, GetParam());
  for (size_t size = 0; size < bytes.size(); ++size) {
    EXPECT_NE(refusal(bytes.substr(0, size)), "") << size;
  }
  for (size_t i = 0; i < bytes.size(); ++i) {
    for (const uint8_t bit : {1, 16, 128}) {
      const auto other = changed(
          bytes, i, std::string(1, static_cast<char>(static_cast<uint8_t>(bytes[i]) ^ bit)));
      try {
        for (const auto& record : read_zip_directory(MemoryFile(other))) {
          EXPECT_LE(record.offset + record.nbytes, other.size());
        }
      } catch (const c10::ValueError&) {
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(All, ZipDirectory, testing::Bool(),
                         [](const auto& info) { return info.param ? "Wide" : "Narrow"; });

TEST(ZipDirectoryRefusal, SaysWhatLiesBeforeTheArchive) {
  EXPECT_TRUE(contains(refusal("12345" + zip_bytes(kRecords)), "has 5 bytes before the archive"));
}

TEST(ZipDirectoryRefusal, TakesNoCommentForTheEnd) {
  auto bytes = zip_bytes(kRecords);
  bytes[bytes.size() - 2] = 4;
  EXPECT_EQ(read_zip_directory(MemoryFile(bytes + "text")).size(), 2U);
  EXPECT_TRUE(contains(refusal(bytes + "longer"), "it has no end record"));
}

TEST(ZipDirectoryRefusal, SaysWhichEndsDiffer) {
  auto bytes = zip_bytes(kRecords, true);
  bytes[bytes.size() - 12] ^= 1;  // the count of the narrow end
  EXPECT_TRUE(contains(refusal(bytes), "readable directory"));
}

TEST(ZipDirectoryRefusal, RefusesRecordsUnderTwoNamesOfOneHeader) {
  const auto bytes = zip_bytes({{"a/x", "1"}, {"b/y", "2"}});
  const auto entry = bytes.rfind("PK\x01\x02");
  const auto second = changed(bytes, entry + 42, std::string(4, '\0'));
  EXPECT_TRUE(contains(refusal(second), "the name 'a/x' in the header"));
}

TEST(ZipDirectoryRefusal, AcceptsAnArchiveOfNothing) {
  EXPECT_TRUE(read_zip_directory(MemoryFile(zip_bytes({}))).empty());
}

}  // namespace
}  // namespace dormant::checkpoint
