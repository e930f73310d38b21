// For tests: allocations of C++ that fail on demand. The program's operators new and delete are in
// exhausted_memory_test.cpp.
#pragma once

#include <ATen/Parallel.h>
#include <c10/util/Exception.h>
#include <gtest/gtest.h>

#include <cstdint>
#include <functional>
#include <new>
#include <string>

namespace dormant::exhausted {

// Which of this thread's allocations fails: counted down to it; none where it is zero.
inline thread_local int64_t until_failure = 0;
inline thread_local bool failed = false;
inline thread_local bool fails_on = false;  // whether all after it fail, too

inline bool is_due() noexcept {
  if (until_failure == 0 || --until_failure > 0) {
    return false;
  }
  until_failure = fails_on ? 1 : 0;
  failed = true;
  return true;
}

/// While it lives, the `n`-th allocation of this thread fails.
class FailingNew {
 public:
  explicit FailingNew(int64_t n, bool and_all_after = false) {
    failed = false;
    fails_on = and_all_after;
    until_failure = n;
  }
  ~FailingNew() { until_failure = 0; }
  FailingNew(const FailingNew&) = delete;
  FailingNew& operator=(const FailingNew&) = delete;
};

/// Calls work(), each time with another allocation failing, until none is left to fail.
inline int64_t sweep(const std::function<void()>& work, const std::function<void(bool)>& check,
                     bool and_all_after) {
  for (int64_t n = 1;; ++n) {
    bool stopped = false;
    try {
      const FailingNew failing(n, and_all_after);
      work();
    } catch (const std::bad_alloc&) {
      stopped = true;
    } catch (const c10::Error&) {
      stopped = true;
    }
    if (!failed) {
      EXPECT_FALSE(stopped);
      return n - 1;
    }
    SCOPED_TRACE("allocation " + std::to_string(n) + (and_all_after ? " and all after" : ""));
    check(stopped);
    if (::testing::Test::HasFailure()) {
      return n;
    }
  }
}

/// The same, first with one failure at a time, then with everything failing from there on. What
/// stops `work` must be std::bad_alloc, or an error of PyTorch's that it became. After each
/// failure, check(stopped); it leaves everything ready for another attempt. Returns how many
/// failures there were.
inline int64_t sweep(const std::function<void()>& work, const std::function<void(bool)>& check) {
  auto count = sweep(work, check, /*and_all_after=*/false);
  check(/*stopped=*/false);
  count += sweep(work, check, /*and_all_after=*/true);
  ::testing::Test::RecordProperty("failures", std::to_string(count));
  return count;
}

class Threads {
 public:
  explicit Threads(int count) : before_(at::get_num_threads()) { at::set_num_threads(count); }
  ~Threads() { at::set_num_threads(before_); }
  Threads(const Threads&) = delete;
  Threads& operator=(const Threads&) = delete;

 private:
  int before_;
};

/// Only this thread's allocations fail: it works alone.
class ExhaustedMemory : public ::testing::Test {
 private:
  const Threads one_{1};
};

}  // namespace dormant::exhausted
