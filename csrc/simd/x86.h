// What AVX2 and AVX-512 have in common: instructions for 16 bytes.
#pragma once

#include <immintrin.h>

#include "simd/vector.h"

namespace dormant::simd {
namespace {

constexpr int kNearest = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;

// ATen's scalar code is contracted at these levels.
constexpr bool kContracted = true;

inline float first_half(Vector<uint16_t, 8> v) {
  return _mm_cvtss_f32(_mm_cvtph_ps(bits<__m128i>(v)));
}

// The same as look_up() of Bytes, for sixteen of them.
inline Vector<uint8_t, 16> look_up(Vector<uint8_t, 16> table, Vector<uint8_t, 16> index) {
  return bits<Vector<uint8_t, 16>>(_mm_shuffle_epi8(bits<__m128i>(table), bits<__m128i>(index)));
}

// The largest of eight in the first lane. There is an instruction for the smallest.
inline Vector<uint16_t, 8> largest_of_eight(Vector<uint16_t, 8> v) {
  return ~bits<Vector<uint16_t, 8>>(_mm_minpos_epu16(bits<__m128i>(~v)));
}

}  // namespace
}  // namespace dormant::simd
