#include "tile/pages.h"

#include <chrono>
#include <cstdint>

#ifdef __linux__
#include <sys/mman.h>
#endif

namespace dormant::tile {

#ifdef __linux__
namespace {

constexpr size_t kHugePage = size_t{2} << 20;
constexpr size_t kOrdinaryPage = 4096;
constexpr size_t kCallsBetweenSamples = 16;
// Huge pages must be this much faster: their gain is smaller than what a wrong choice costs.
constexpr double kMargin = 0.8;

/// A hint: where the system refuses it, ordinary pages do.
void ask_for_huge_pages(std::byte* begin, size_t nbytes) {
  (void)madvise(begin, nbytes, MADV_HUGEPAGE);
}

/// Seconds that it takes to fault in one huge page's worth of memory.
double touch(std::byte* begin) {
  const auto start = std::chrono::steady_clock::now();
  for (size_t i = 0; i < kHugePage; i += kOrdinaryPage) {
    *static_cast<volatile std::byte*>(begin + i) = std::byte{0};
  }
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

}  // namespace

void Pages::prepare(std::byte* memory, size_t nbytes) {
  const auto address = reinterpret_cast<uintptr_t>(memory);
  const auto skipped = (kHugePage - address % kHugePage) % kHugePage;
  if (nbytes < skipped + 3 * kHugePage) {
    return;
  }
  auto* begin = memory + skipped;
  auto left = (nbytes - skipped) / kHugePage * kHugePage;
  const std::lock_guard<std::mutex> lock(mutex_);
  if (calls_++ % kCallsBetweenSamples == 0) {
    ask_for_huge_pages(begin, kHugePage);
    huge_seconds_ = touch(begin);
    ordinary_seconds_ = touch(begin + kHugePage);
    begin += 2 * kHugePage;
    left -= 2 * kHugePage;
  }
  if (huge_seconds_ < kMargin * ordinary_seconds_) {
    ask_for_huge_pages(begin, left);
  }
}
#else
void Pages::prepare(std::byte* /*memory*/, size_t /*nbytes*/) {}
#endif

}  // namespace dormant::tile
