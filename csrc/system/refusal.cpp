#include "system/refusal.h"

#include <c10/util/Exception.h>

#include <atomic>
#include <new>
#include <string>

namespace dormant::system {
namespace {

std::atomic<RefusalTest> refusal_test = nullptr;

}  // namespace

bool is_exhausted_memory(const std::exception& error) {
  if (const auto* ours = dynamic_cast<const c10::Error*>(&error)) {
    return ours->msg().find("can't allocate memory") != std::string::npos;
  }
  return dynamic_cast<const std::bad_alloc*>(&error) != nullptr;
}

bool is_refusal(const std::exception& error) {
  if (is_exhausted_memory(error)) {
    return false;
  }
  if (dynamic_cast<const c10::Error*>(&error) != nullptr) {
    return true;
  }
  const auto test = refusal_test.load();
  return test == nullptr || test(error);
}

void set_refusal_test(RefusalTest test) { refusal_test = test; }

}  // namespace dormant::system
