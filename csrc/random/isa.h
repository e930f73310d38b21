// Which vector unit the portable loops of this folder run on. They are written once, without
// intrinsics, and compiled for each: a target attribute on a function that inlines the loop is
// enough.
#pragma once

namespace dormant::random {

enum class Isa { baseline, avx2, avx512 };

inline bool supported(Isa isa) {
#if defined(__x86_64__)
  switch (isa) {
    case Isa::baseline:
      return true;
    case Isa::avx2:
      return __builtin_cpu_supports("avx2");
    case Isa::avx512:
      return __builtin_cpu_supports("avx512f");
  }
#endif
  return isa == Isa::baseline;
}

// The widest unit of this machine.
inline Isa best_isa() {
  static const Isa best = supported(Isa::avx512) ? Isa::avx512
                          : supported(Isa::avx2) ? Isa::avx2
                                                 : Isa::baseline;
  return best;
}

}  // namespace dormant::random
