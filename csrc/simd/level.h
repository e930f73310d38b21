// The instruction sets that kernels are compiled for, and which of them this processor has.
#pragma once

#include <cstddef>
#include <cstdint>

namespace dormant::simd {

// In ascending order: who has one has those before it.
enum class Level : uint8_t {
  portable,
  avx2,    // with FMA, F16C and PCLMULQDQ
  avx512,  // F, BW, DQ and VL
};
inline constexpr Level kLevels[] = {Level::portable, Level::avx2, Level::avx512};
inline constexpr const char* kLevelNames[] = {"portable", "AVX2", "AVX-512"};

// A level as a type: chooses an overload.
template <Level>
struct At {};

// Whether this processor, and its operating system, can run what is compiled for `level`.
bool available(Level level);

// The highest available level.
Level highest();

}  // namespace dormant::simd
