#include "checkpoint/file_mapping.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <iterator>

#include "system/faults.h"

namespace dormant::checkpoint {
namespace {

#ifdef __linux__
#ifdef MADV_POPULATE_READ
constexpr int kPopulateRead = MADV_POPULATE_READ;
#else
constexpr int kPopulateRead = 22;  // Linux 5.14
#endif

// What a thread writes to between comparing and remapping is lost, so little is done at a time.
constexpr size_t kStep = size_t{64} << 10;

/// Puts memory without a file under whole pages, with the bytes that they have. Pages that were
/// written to need it too: truncation takes the copies of a private mapping away with the file's.
/// Stops where there is no memory, or where the file is already cut.
void detach_pages(std::byte* begin, size_t count) noexcept {
  void* memory = ::mmap(nullptr, count, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) {
    return;
  }
  auto* fresh = static_cast<std::byte*>(memory);
  ::madvise(fresh, count, MADV_NOHUGEPAGE);  // they would be split
  size_t done = 0;
  while (done < count) {
    const auto step = std::min(kStep, count - done);
    // Where pages are gone this says so, instead of a signal.
    if (::madvise(begin + done, step, kPopulateRead) != 0 && errno != EINVAL) {
      break;
    }
    do {
      std::memcpy(fresh + done, begin + done, step);
    } while (std::memcmp(fresh + done, begin + done, step) != 0);
    if (::mremap(fresh + done, step, step, MREMAP_MAYMOVE | MREMAP_FIXED, begin + done) ==
        MAP_FAILED) {
      break;
    }
    done += step;
  }
  if (done < count) {
    ::munmap(fresh + done, count - done);
  }
}
#else
void detach_pages(std::byte* /*begin*/, size_t /*count*/) noexcept {}  // there are no leases
#endif

}  // namespace

std::shared_ptr<FileMapping> FileMapping::make(int descriptor, size_t size) {
  // The owner first: where there is no memory for it, nothing is mapped.
  const std::shared_ptr<FileMapping> mapping(new FileMapping(size));
  // Without MAP_NORESERVE the system would set aside memory for a copy of every page.
  void* memory = system::is_due(system::Fault::allocate)
                     ? MAP_FAILED
                     : ::mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_NORESERVE,
                              descriptor, 0);
  if (memory == MAP_FAILED) {
    return nullptr;
  }
  mapping->memory_ = static_cast<std::byte*>(memory);
  mapping->lease_ = system::Lease::take(descriptor, [owner = mapping.get()] { owner->detach(); });
  return mapping;
}

FileMapping::~FileMapping() {
  lease_.reset();  // first: who writes to the file from here on need not wait
  if (memory_ != nullptr) {
    ::munmap(memory_, size_);
  }
}

bool FileMapping::claim(uint64_t begin, uint64_t end, record::Guard guard) {
  bool added = false;
  const auto change = [&] { added = add(begin, end); };
  const bool guarded = lease_ && lease_->run_if_held(change);
  if (!guarded && guard == record::Guard::if_possible) {
    change();  // nobody detaches a mapping without a lease
  }
  return added;
}

bool FileMapping::add(uint64_t begin, uint64_t end) {
  const auto next = claimed_.lower_bound(begin);
  if (next != claimed_.end() && next->first < end) {
    return false;
  }
  if (next != claimed_.begin() && std::prev(next)->second > begin) {
    return false;
  }
  claimed_.emplace_hint(next, begin, end);
  return true;
}

void FileMapping::detach() noexcept {
  const auto page = static_cast<size_t>(::sysconf(_SC_PAGESIZE));
  size_t done = 0;  // neighbors share pages
  for (const auto& [begin, end] : claimed_) {
    const auto first = std::max(begin / page * page, done);
    done = (end + page - 1) / page * page;
    if (first < done) {
      detach_pages(memory_ + first, done - first);
    }
  }
}

}  // namespace dormant::checkpoint
