#include "checkpoint/local_file.h"

#include <c10/util/Exception.h>
#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <array>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>
#include <string_view>
#include <system_error>
#include <thread>
#include <vector>

#include "checkpoint/scratch_folder.h"

namespace dormant::checkpoint {
namespace {

using record::Guard;

std::string read(const File& file, uint64_t offset, size_t count) {
  std::string bytes(count, '?');
  file.read(offset, count, bytes.data());
  return bytes;
}

TEST(File, ReadsWhatLiesAtAnOffset) {
  const ScratchFolder folder;
  const auto file = File::open(folder.write("f", "0123456789"));
  EXPECT_EQ(file->size(), 10u);
  EXPECT_EQ(read(*file, 0, 10), "0123456789");
  EXPECT_EQ(read(*file, 7, 3), "789");
  EXPECT_EQ(read(*file, 10, 0), "");
}

TEST(File, RefusesRangesOutsideWithoutOverflow) {
  const ScratchFolder folder;
  const auto file = File::open(folder.write("f", "0123456789"));
  EXPECT_THROW(file->check_range(0, 11), c10::ValueError);
  EXPECT_THROW(file->check_range(11, 0), c10::ValueError);
  EXPECT_THROW(file->check_range(8, UINT64_MAX - 4), c10::ValueError);
  EXPECT_THROW(file->map(8, 3, Guard::if_possible), c10::ValueError);
}

TEST(File, ShrunkFileIsAnErrorThatSaysSo) {
  const ScratchFolder folder;
  const auto path = folder.write("f", "0123456789");
  const auto file = File::open(path);
  std::filesystem::resize_file(path, 4);
  const auto text = message_of<c10::ValueError>([&] { read(*file, 2, 8); });
  EXPECT_TRUE(contains(text, path + ": the file ends at byte 4, expected 8 bytes at offset 2"))
      << text;
  EXPECT_TRUE(contains(message_of<c10::ValueError>([&] { file->check(); }),
                       "the file has 4 bytes, expected 10"));
}

TEST(File, CheckNoticesAModification) {
  const ScratchFolder folder;
  const auto path = folder.write("f", "0123456789");
  const auto file = File::open(path);
  file->check();
  const std::array<timespec, 2> times = {timespec{1, 0}, timespec{1, 5}};
  ASSERT_EQ(::utimensat(AT_FDCWD, path.c_str(), times.data(), 0), 0);
  EXPECT_TRUE(contains(message_of<c10::ValueError>([&] { file->check(); }),
                       "the file was modified at 1000000005 ns, expected"));
}

TEST(File, ReplacedFileIsStillReadable) {
  const ScratchFolder folder;
  const auto path = folder.write("f", "0123456789");
  const auto file = File::open(path);
  const auto mapped = file->map(0, 2, Guard::if_possible);
  std::filesystem::rename(folder.write("g", "short"), path);
  file->check();
  EXPECT_EQ(read(*file, 0, 10), "0123456789");
  EXPECT_EQ(std::memcmp(mapped.get(), "01", 2), 0);
  EXPECT_EQ(std::memcmp(file->map(5, 5, Guard::if_possible).get(), "56789", 5), 0);
  EXPECT_EQ(read(*File::open(path), 0, 5), "short");
}

TEST(File, RemovedFileIsStillReadable) {
  const ScratchFolder folder;
  const auto path = folder.write("f", "0123456789");
  const auto file = File::open(path);
  std::filesystem::remove(path);
  file->check();
  EXPECT_EQ(read(*file, 3, 2), "34");
}

TEST(File, RelativePathMeansTheFolderOfItsTime) {
  const ScratchFolder folder;
  folder.write("f", "0123456789");
  const auto before = std::filesystem::current_path();
  std::filesystem::current_path(folder.path(""));
  const auto file = File::open("f");
  std::filesystem::current_path(before);
  EXPECT_EQ(std::filesystem::path(file->path()), std::filesystem::path(folder.path("f")));
  file->check();
}

TEST(File, WhatIsNoFileIsRefused) {
  const ScratchFolder folder;
  EXPECT_TRUE(contains(message_of<c10::ValueError>([&] { File::open(folder.path("")); }),
                       "is a folder, expected a file"));
  ASSERT_EQ(::mkfifo(folder.path("pipe").c_str(), 0600), 0);
  EXPECT_THROW(File::open(folder.path("pipe")), c10::ValueError);
  try {
    File::open(folder.path("absent"));
    ADD_FAILURE() << "opened a file that does not exist";
  } catch (const std::system_error& error) {
    EXPECT_EQ(error.code().value(), ENOENT);
    EXPECT_TRUE(contains(error.what(), folder.path("absent")));
  }
}

TEST(File, MappingIsPrivateAndOutlivesTheFile) {
  const ScratchFolder folder;
  const auto path = folder.write("f", "0123456789");
  auto file = File::open(path);
  auto memory = file->map(2, 4, Guard::if_possible);
  const auto other = file->map(6, 4, Guard::if_possible);
  file.reset();
  ASSERT_NE(memory.get(), nullptr);
  EXPECT_EQ(std::memcmp(memory.get(), "2345", 4), 0);
  std::memcpy(memory.mutable_get(), "abcd", 4);
  EXPECT_EQ(std::memcmp(other.get(), "6789", 4), 0);
  EXPECT_EQ(read(*File::open(path), 0, 10), "0123456789");
}

TEST(File, WhoMapsTheSameBytesAgainDoesNotSeeEarlierWrites) {
  const ScratchFolder folder;
  const auto file = File::open(folder.write("f", "0123456789"));
  const auto third = file->map(0, 1, Guard::if_possible);  // keeps the first mapping alive
  auto first = file->map(2, 4, Guard::if_possible);
  std::memcpy(first.mutable_get(), "abcd", 4);
  const auto overlapping = file->map(5, 3, Guard::if_possible);
  EXPECT_EQ(std::memcmp(overlapping.get(), "567", 3), 0);
  first.clear();
  const auto second = file->map(2, 3, Guard::if_possible);
  EXPECT_EQ(std::memcmp(second.get(), "234", 3), 0);
  EXPECT_EQ(std::memcmp(third.get(), "0", 1), 0);
}

TEST(File, AGuardedMappingKeepsItsBytesWhateverIsDoneToTheFile) {
  using Writer = std::function<void(const std::string&)>;
  const std::vector<Writer> writers = {
      [](const auto& path) { std::filesystem::resize_file(path, 0); },
      [](const auto& path) { std::ofstream(path, std::ios::binary) << "another"; },
      [](const auto& path) {
        std::fstream(path, std::ios::binary | std::ios::in | std::ios::out) << "overwritten";
      },
  };
  std::string bytes(100'000, 'a');
  bytes.replace(50'000, 3, "xyz");
  for (size_t i = 0; i < writers.size(); ++i) {
    const ScratchFolder folder;
    const auto path = folder.write("f", bytes);
    auto file = File::open(path);
    auto memory = file->map(0, 60'000, Guard::required);
    if (memory.get() == nullptr) {
      GTEST_SKIP() << "the filesystem of " << path << " has no leases";
    }
    const auto rest = file->map(60'000, 40'000, Guard::required);
    static_cast<char*>(memory.mutable_get())[1] = 'b';
    if (i == 0) {
      file.reset();  // the mapping alone is enough
    }
    writers[i](path);
    const std::string_view shown(static_cast<const char*>(memory.get()), 60'000);
    EXPECT_EQ(shown.substr(0, 4), "abaa");
    EXPECT_EQ(shown.substr(49'999, 5), "axyza");
    EXPECT_EQ(std::memcmp(rest.get(), bytes.data(), 40'000), 0);
    if (file) {
      EXPECT_THROW(file->check(), c10::ValueError);
    }
  }
}

TEST(File, WithoutAGuardThereIsNoMappingThatNeedsOne) {
  const ScratchFolder folder;
  const auto path = folder.write("f", "0123456789");
  const auto file = File::open(path);
  {
    const std::ofstream writer(path, std::ios::binary | std::ios::app);
    EXPECT_EQ(file->map(0, 4, Guard::required).get(), nullptr);
    EXPECT_NE(file->map(0, 4, Guard::if_possible).get(), nullptr);
  }
  const auto copied = File::open(path);
  copied->copy_always();
  EXPECT_EQ(copied->map(0, 4, Guard::required).get(), nullptr);
  EXPECT_NE(copied->map(0, 4, Guard::if_possible).get(), nullptr);
}

TEST(File, AFileThatChangedIsNotMapped) {
  const ScratchFolder folder;
  const auto path = folder.write("f", "0123456789");
  const auto file = File::open(path);
  std::filesystem::resize_file(path, 4);
  for (const auto guard : {Guard::required, Guard::if_possible}) {
    EXPECT_TRUE(contains(message_of<c10::ValueError>([&] { file->map(0, 4, guard); }),
                         "the file has 4 bytes, expected 10"));
  }
}

TEST(File, ThreadsReadAndMapAtATime) {
  const ScratchFolder folder;
  std::string bytes;
  for (int i = 0; i < 4096; ++i) {
    bytes.push_back(static_cast<char>(i * 7));
  }
  const auto file = File::open(folder.write("f", bytes));
  std::vector<std::thread> threads;
  std::array<bool, 4> equal{};
  for (size_t i = 0; i < equal.size(); ++i) {
    threads.emplace_back([&, i] {
      bool same = true;
      for (size_t offset = i; offset + 64 <= bytes.size(); offset += 64) {
        const auto mapped = file->map(offset, 64, Guard::if_possible);
        same = same && std::memcmp(mapped.get(), bytes.data() + offset, 64) == 0 &&
               read(*file, offset, 64) == bytes.substr(offset, 64);
      }
      equal[i] = same;
    });
  }
  for (auto& thread : threads) {
    thread.join();
  }
  EXPECT_EQ(equal, (std::array<bool, 4>{true, true, true, true}));
}

}  // namespace
}  // namespace dormant::checkpoint
