// Tells ThreadSanitizer what the fork and the join of an OpenMP region order; part of its build
// only.
//
// GCC's OpenMP runtime synchronizes with futexes that the sanitizer does not see, so that whatever
// a region's body wrote looks like a race with what follows. The compiler turns a region into a
// call of GOMP_parallel; the one here, hidden and therefore preferred within the same binary, adds
// the two edges that OpenMP promises and nothing else: races between the threads of a region are
// still found.
#include <dlfcn.h>
#include <sanitizer/tsan_interface.h>

namespace {

using Body = void (*)(void*);
using Parallel = void (*)(Body, void*, unsigned, unsigned);

struct Region {
  Body body;
  void* data;
  char fork;
  char join;
};

void run(void* argument) {
  auto* region = static_cast<Region*>(argument);
  __tsan_acquire(&region->fork);
  region->body(region->data);
  __tsan_release(&region->join);
}

}  // namespace

extern "C" void GOMP_parallel(Body body, void* data, unsigned threads, unsigned flags) {
  static const auto parallel = reinterpret_cast<Parallel>(dlsym(RTLD_NEXT, "GOMP_parallel"));
  Region region{body, data, 0, 0};
  __tsan_release(&region.fork);
  parallel(run, &region, threads, flags);
  __tsan_acquire(&region.join);
}
