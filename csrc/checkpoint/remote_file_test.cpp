#include "checkpoint/remote_file.h"

#include <c10/util/Exception.h>
#include <gtest/gtest.h>

#include <cerrno>
#include <cstring>
#include <memory>
#include <string>
#include <system_error>
#include <utility>

#include "checkpoint/safetensors.h"
#include "checkpoint/scratch_folder.h"

namespace dormant::checkpoint {
namespace {

class Bytes final : public RangeReader {
 public:
  explicit Bytes(std::string bytes) : bytes_(std::move(bytes)) {}

  void read(uint64_t offset, size_t count, void* out) const override {
    if (bytes_.empty()) {
      throw std::system_error(ECONNRESET, std::generic_category(), "reading");
    }
    std::memcpy(out, bytes_.data() + offset, count);
  }

 private:
  const std::string bytes_;
};

RemoteFile file_of(const std::string& bytes, uint64_t size) {
  return {"memory://f", size, std::make_unique<Bytes>(bytes)};
}

TEST(RemoteFile, ReadsWhatItsReaderHasAtAnOffset) {
  const auto file = file_of("0123456789", 10);
  std::string bytes(3, '?');
  file.read(7, 3, bytes.data());
  EXPECT_EQ(bytes, "789");
  EXPECT_EQ(file.path(), "memory://f");
  EXPECT_EQ(file.size(), 10u);
}

TEST(RemoteFile, RefusesRangesOutsideBeforeTheReaderIsAsked) {
  const auto file = file_of("", 10);
  std::string bytes(20, '?');
  EXPECT_THROW(file.read(8, 3, bytes.data()), c10::ValueError);
  file.read(10, 0, bytes.data());  // nothing to ask for
}

TEST(RemoteFile, PassesOnWhatTheReaderThrows) {
  const auto file = file_of("", 10);
  std::string bytes(1, '?');
  EXPECT_THROW(file.read(0, 1, bytes.data()), std::system_error);
}

TEST(RemoteFile, IsNeverMapped) {
  EXPECT_EQ(file_of("0123456789", 10).map(0, 4, record::Guard::if_possible).get(), nullptr);
}

TEST(RemoteFile, ParsersReadIt) {
  const std::string header = R"({"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]}})";
  std::string bytes(8, '\0');
  bytes[0] = static_cast<char>(header.size());
  bytes += header + "xy";
  const auto contents = read_safetensors_header(file_of(bytes, bytes.size()));
  ASSERT_EQ(contents.entries.size(), 1u);
  EXPECT_EQ(contents.entries[0].offset, 8 + header.size());
}

}  // namespace
}  // namespace dormant::checkpoint
