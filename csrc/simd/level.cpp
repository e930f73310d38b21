#include "simd/level.h"

namespace dormant::simd {

bool available(Level level) {
#if defined(__x86_64__)
  switch (level) {
    case Level::portable:
      return true;
    case Level::avx2:
      // No processor has AVX2 without F16C, a name that clang does not know before 15.
      return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
             __builtin_cpu_supports("pclmul");
    case Level::avx512:
      return available(Level::avx2) && __builtin_cpu_supports("avx512f") &&
             __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
             __builtin_cpu_supports("avx512vl");
  }
#endif
  return level == Level::portable;
}

Level highest() {
  static const Level level = available(Level::avx512) ? Level::avx512
                             : available(Level::avx2) ? Level::avx2
                                                      : Level::portable;
  return level;
}

}  // namespace dormant::simd
