// Instructions that this processor, and its operating system, can run.
#pragma once

namespace dormant::random {

// AVX2, FMA and F16C, as *_avx2.cpp are compiled for.
inline bool processor_has_avx2() {
#if defined(__x86_64__)
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
         __builtin_cpu_supports("f16c");
#else
  return false;
#endif
}

// AVX-512 F, BW, DQ and VL, as *_avx512.cpp are compiled for.
inline bool processor_has_avx512() {
#if defined(__x86_64__)
  return processor_has_avx2() && __builtin_cpu_supports("avx512f") &&
         __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
         __builtin_cpu_supports("avx512vl");
#else
  return false;
#endif
}

}  // namespace dormant::random
