#include "system/refusal.h"

#include <c10/util/Exception.h>

#include <atomic>
#include <new>

namespace dormant::system {
namespace {

std::atomic<RefusalTest> refusal_test = nullptr;

}  // namespace

bool is_refusal(const std::exception& error) {
  if (dynamic_cast<const c10::Error*>(&error) != nullptr) {
    return true;
  }
  if (dynamic_cast<const std::bad_alloc*>(&error) != nullptr) {
    return false;
  }
  const auto test = refusal_test.load();
  return test == nullptr || test(error);
}

void set_refusal_test(RefusalTest test) { refusal_test = test; }

}  // namespace dormant::system
