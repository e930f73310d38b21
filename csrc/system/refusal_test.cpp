#include "system/refusal.h"

#include <c10/core/Allocator.h>
#include <c10/core/CPUAllocator.h>
#include <c10/util/Exception.h>
#include <gtest/gtest.h>

#include <new>
#include <stdexcept>

namespace dormant::system {
namespace {

struct Interrupt : std::exception {};

bool no_interrupt(const std::exception& error) {
  return dynamic_cast<const Interrupt*>(&error) == nullptr;
}

TEST(IsRefusal, HoldsForErrorsOfPyTorch) {
  try {
    TORCH_CHECK_INDEX(false, "out of range");
  } catch (const std::exception& error) {
    EXPECT_TRUE(is_refusal(error));
  }
}

TEST(IsRefusal, DoesNotHoldForExhaustedMemory) {
  EXPECT_FALSE(is_refusal(std::bad_alloc()));
  try {
    c10::GetDefaultCPUAllocator()->allocate(size_t{1} << 62);
    FAIL() << "so much memory";
  } catch (const c10::Error& error) {
    EXPECT_TRUE(is_exhausted_memory(error));
    EXPECT_FALSE(is_refusal(error));
  }
}

TEST(IsRefusal, IsDecidedByTheTestForOtherExceptions) {
  EXPECT_TRUE(is_refusal(Interrupt()));
  set_refusal_test(&no_interrupt);
  EXPECT_FALSE(is_refusal(Interrupt()));
  EXPECT_TRUE(is_refusal(std::runtime_error("refused")));
  set_refusal_test(nullptr);
}

}  // namespace
}  // namespace dormant::system
