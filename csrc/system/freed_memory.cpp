#include "system/freed_memory.h"

#include <cstdlib>

#ifdef __GLIBC__
#include <malloc.h>
#endif

namespace dormant::system {
namespace {

// Pages that are given back have to be cleared when they are used again: only where they are many
// does that cost less than they are worth.
constexpr size_t kMany = size_t{64} << 20;
constexpr size_t kWorthwhile = size_t{1} << 20;

void give_back() {
#ifdef __GLIBC__
  malloc_trim(0);
#endif
}

}  // namespace

FreedMemory::~FreedMemory() {
  if (nbytes_ >= kWorthwhile) {
    give_back();
  }
}

void FreedMemory::add(size_t nbytes) {
  nbytes_ += nbytes;
  if (nbytes_ >= kMany) {
    give_back();
    nbytes_ = 0;
  }
}

}  // namespace dormant::system
