#include "system/pages.h"

#ifdef __linux__
#include <sys/mman.h>

#include <algorithm>
#include <cstdint>
#include <ctime>
#endif

namespace dormant::system {

#ifdef __linux__
namespace {

constexpr size_t kHugePage = size_t{2} << 20;
constexpr size_t kOrdinaryPage = 4096;
constexpr size_t kCallsBetweenSamples = 16;
constexpr size_t kShortestPause = 16;
constexpr size_t kLongestPause = 1024;
// Huge pages must be this much faster: their gain is smaller than what a wrong choice costs.
constexpr double kMargin = 0.8;

/// Time that this thread ran, in seconds: on a busy machine the clock on the wall says little.
double thread_seconds() {
  timespec time{};
  ::clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
  return static_cast<double>(time.tv_sec) + static_cast<double>(time.tv_nsec) * 1e-9;
}

/// A hint: where the system refuses it, ordinary pages do.
void ask_for_huge_page(std::byte* begin) { (void)madvise(begin, kHugePage, MADV_HUGEPAGE); }

/// Seconds that it takes to fault in one huge page's worth of memory.
double touch(std::byte* begin) {
  const auto start = thread_seconds();
  for (size_t i = 0; i < kHugePage; i += kOrdinaryPage) {
    *static_cast<volatile std::byte*>(begin + i) = std::byte{0};
  }
  return thread_seconds() - start;
}

}  // namespace

void Pages::prepare(std::byte* memory, size_t nbytes) {
  const auto address = reinterpret_cast<uintptr_t>(memory);
  const auto skipped = (kHugePage - address % kHugePage) % kHugePage;
  if (nbytes < skipped + 3 * kHugePage) {
    return;
  }
  auto* begin = memory + skipped;
  const auto* end = begin + (nbytes - skipped) / kHugePage * kHugePage;
  bool sample = false;
  double ordinary = 0;
  {
    const MutexLock lock(mutex_);
    const auto call = calls_++;
    if (call < next_attempt_) {
      return;
    }
    sample = call % kCallsBetweenSamples == 0 || ordinary_seconds_ == 0;
    ordinary = ordinary_seconds_;
  }
  if (sample) {
    ordinary = touch(begin);
    begin += kHugePage;
  }
  bool dear = false;
  for (; begin != end && !dear; begin += kHugePage) {
    ask_for_huge_page(begin);
    dear = touch(begin) > kMargin * ordinary;
  }
  const MutexLock lock(mutex_);
  ordinary_seconds_ = ordinary;
  pause_ = dear ? std::clamp(2 * pause_, kShortestPause, kLongestPause) : 0;
  next_attempt_ = dear ? calls_ + pause_ : next_attempt_;
}
#else
void Pages::prepare(std::byte* /*memory*/, size_t /*nbytes*/) {}
#endif

}  // namespace dormant::system
