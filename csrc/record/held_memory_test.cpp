#include "record/held_memory.h"

#include <c10/core/CPUAllocator.h>
#include <gtest/gtest.h>

#include <array>
#include <atomic>
#include <cstring>
#include <limits>
#include <numeric>
#include <thread>
#include <vector>

#include "record/lazy_storage.h"

namespace dormant::record {
namespace {

using Bytes = std::array<unsigned char, 16>;

Bytes counted() {
  Bytes bytes{};
  std::iota(bytes.begin(), bytes.end(), static_cast<unsigned char>(1));
  return bytes;
}

Bytes all_of(const HeldMemory& memory) {
  Bytes bytes{};
  memory.read(0, bytes.size(), bytes.data());
  return bytes;
}

TEST(HeldMemory, ReadsAnyRangeOfTheMemory) {
  const auto bytes = counted();
  const HeldMemory memory(bytes.data(), bytes.size());
  EXPECT_EQ(all_of(memory), bytes);
  std::array<unsigned char, 3> part{};
  memory.read(13, 3, part.data());
  EXPECT_EQ(part, (std::array<unsigned char, 3>{14, 15, 16}));
  memory.read(16, 0, nullptr);
}

TEST(HeldMemory, RefusesARangeBeyondTheMemory) {
  const auto bytes = counted();
  const HeldMemory memory(bytes.data(), bytes.size());
  Bytes out{};
  EXPECT_THROW(memory.read(1, 16, out.data()), c10::ValueError);
  EXPECT_THROW(memory.read(17, 0, out.data()), c10::ValueError);
  EXPECT_THROW(memory.read(std::numeric_limits<uint64_t>::max(), 2, out.data()), c10::ValueError);
}

TEST(HeldMemory, ReadsWhatTheMemoryHeldWhenItWasDetached) {
  auto bytes = counted();
  HeldMemory memory(bytes.data(), bytes.size());
  memory.detach();
  bytes.fill(0);
  memory.detach();  // once is enough
  EXPECT_EQ(all_of(memory), counted());
}

TEST(HeldMemory, KeepsItsStorageAlive) {
  auto storage = allocate(16);
  const auto bytes = counted();
  std::memcpy(storage.mutable_data(), bytes.data(), bytes.size());
  const auto weak = storage.getWeakStorageImpl();
  {
    const auto* data = storage.data();
    const HeldMemory memory(data, bytes.size(), std::move(storage));
    storage = c10::Storage();
    EXPECT_EQ(all_of(memory), bytes);
  }
  EXPECT_TRUE(weak.expired());
}

TEST(HeldMemory, OfNoBytesCanBeDetached) {
  HeldMemory memory(nullptr, 0);
  memory.detach();
  memory.read(0, 0, nullptr);
}

TEST(HeldMemoryThreads, NoReaderSeesWhatIsWrittenAfterDetaching) {
  for (int round = 0; round < 100; ++round) {
    auto bytes = counted();
    HeldMemory memory(bytes.data(), bytes.size());
    std::atomic<bool> over{false};
    std::vector<std::thread> readers;
    for (int i = 0; i < 3; ++i) {
      readers.emplace_back([&] {
        do {
          EXPECT_EQ(all_of(memory), counted());
        } while (!over);
      });
    }
    memory.detach();
    bytes.fill(0);
    over = true;
    for (auto& reader : readers) {
      reader.join();
    }
  }
}

}  // namespace
}  // namespace dormant::record
