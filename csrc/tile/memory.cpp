#include "tile/memory.h"

#include <cstdint>

#include "record/lazy_storage.h"

#ifdef __linux__
#include <sys/mman.h>
#endif

namespace dormant::tile {

c10::Storage allocate_fresh(size_t nbytes) {
  auto storage = record::allocate(nbytes);
#ifdef __linux__
  constexpr uintptr_t kHugePage = uintptr_t{2} << 20;
  const auto begin = reinterpret_cast<uintptr_t>(storage.data());
  const auto first = (begin + kHugePage - 1) & ~(kHugePage - 1);
  const auto last = (begin + nbytes) & ~(kHugePage - 1);
  if (nbytes >= 2 * kHugePage && last > first) {
    // A hint: where the system refuses it, ordinary pages do.
    (void)madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
  }
#endif
  return storage;
}

}  // namespace dormant::tile
