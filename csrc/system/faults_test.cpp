#include "system/faults.h"

#include <ATen/ops/empty.h>
#include <c10/core/CPUAllocator.h>
#include <c10/util/Exception.h>
#include <gtest/gtest.h>

#include <cerrno>
#include <new>
#include <vector>

namespace dormant::system {
namespace {

class Faults : public ::testing::Test {
 protected:
  ~Faults() override { set_faults(""); }
};

std::vector<bool> due(Fault kind, int calls) {
  std::vector<bool> answers;
  for (int i = 0; i < calls; ++i) {
    answers.push_back(is_due(kind));
  }
  return answers;
}

TEST_F(Faults, TheNthCallFails) {
  set_faults("read:3,write:1");
  EXPECT_EQ(due(Fault::read, 5), std::vector<bool>({false, false, true, false, false}));
  EXPECT_EQ(due(Fault::write, 2), std::vector<bool>({true, false}));
  EXPECT_EQ(due(Fault::allocate, 1), std::vector<bool>({false}));
}

TEST_F(Faults, APlusMeansAllFromThatOn) {
  set_faults("write:2+");
  EXPECT_EQ(due(Fault::write, 4), std::vector<bool>({false, true, true, true}));
}

TEST_F(Faults, AFailingCallSetsTheSystemsError) {
  set_faults("read:1,write:1,allocate:1");
  EXPECT_TRUE(is_due(Fault::read));
  EXPECT_EQ(errno, EIO);
  EXPECT_TRUE(is_due(Fault::write));
  EXPECT_EQ(errno, ENOSPC);
  EXPECT_THROW(fail_if_due_to_allocate(), std::bad_alloc);
}

TEST_F(Faults, CallsAreCountedSinceTheLastTime) {
  set_faults("read:0");
  due(Fault::read, 4);
  EXPECT_EQ(set_faults(""), (FaultCounts{0, 4, 0}));
  due(Fault::read, 4);
  EXPECT_EQ(set_faults(""), (FaultCounts{0, 0, 0})) << "nothing is counted while it is off";
}

TEST_F(Faults, PyTorchsOwnAllocationsFailInItsWords) {
  set_faults("allocate:2");
  EXPECT_NO_THROW(at::empty({4}));
  try {
    at::empty({4});
    FAIL() << "nothing was thrown";
  } catch (const c10::Error& error) {
    EXPECT_NE(std::string(error.what()).find("can't allocate memory: you tried to allocate 16"),
              std::string::npos);
  }
  EXPECT_NO_THROW(at::empty({4}));
}

TEST_F(Faults, MemoryOutlivesTheSwitchAndTheAllocatorIsPutBack) {
  auto* const before = c10::GetCPUAllocator();
  set_faults("allocate:0");
  EXPECT_NE(c10::GetCPUAllocator(), before);
  auto tensor = at::empty({4});
  set_faults("allocate:0");
  set_faults("");
  EXPECT_EQ(c10::GetCPUAllocator(), before);
  EXPECT_NO_THROW(tensor.resize_({1000}).fill_(1));  // its storage remembers who allocated it
}

TEST_F(Faults, OtherTextIsRefusedAndChangesNothing) {
  set_faults("read:1");
  for (const auto* text : {"read", "read:", "read:x", "read:1x", "paint:1", "read:1,,", "read:+"}) {
    EXPECT_THROW(set_faults(text), c10::ValueError) << text;
  }
  EXPECT_TRUE(is_due(Fault::read));
}

}  // namespace
}  // namespace dormant::system
