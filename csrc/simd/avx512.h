// What takes an instruction's name: AVX-512 F, BW, DQ and VL. The contracts are in avx2.h.
#pragma once

// GCC 12 takes the undefined pass-through operand of its own AVX-512 intrinsics for an
// uninitialized read (GCC bug 105593).
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#endif

#include "simd/x86.h"

namespace dormant::simd {
namespace {

inline Float fma(Float a, Float b, Float c) { return _mm512_fmadd_ps(a, b, c); }
inline Double fma(Double a, Double b, Double c) { return _mm512_fmadd_pd(a, b, c); }
inline Float negative_fma(Float a, Float b, Float c) { return _mm512_fnmsub_ps(a, b, c); }
inline Float sqrt(Float a) { return _mm512_sqrt_ps(a); }

inline Int to_nearest(Float a) { return bits<Int>(_mm512_cvtps_epi32(a)); }

inline Int product_even(Int a, Int b) {
  return bits<Int>(_mm512_mul_epu32(bits<__m512i>(a), bits<__m512i>(b)));
}

inline Int widen(Vector<uint16_t, kCount> v) {
  return bits<Int>(_mm512_cvtepu16_epi32(bits<__m256i>(v)));
}
inline Int widen(Vector<uint8_t, kCount> v) {
  return bits<Int>(_mm512_cvtepu8_epi32(bits<__m128i>(v)));
}
inline Int widen_signed(Vector<uint8_t, kCount> v) {
  return bits<Int>(_mm512_cvtepi8_epi32(bits<__m128i>(v)));
}
inline Vector<uint16_t, kCount> narrow(Int v) {
  return bits<Vector<uint16_t, kCount>>(_mm512_cvtepi32_epi16(bits<__m512i>(v)));
}
inline Vector<uint16_t, kCount> to_half(Float v) {
  return bits<Vector<uint16_t, kCount>>(_mm512_cvtps_ph(v, kNearest));
}
inline Float from_half(Vector<uint16_t, kCount> v) { return _mm512_cvtph_ps(bits<__m256i>(v)); }

using Table = Float;
inline Table table(const float (&numbers)[8]) {
  return _mm512_broadcast_f32x8(_mm256_loadu_ps(numbers));
}
inline Float look_up(Table table, Int index) {
  return _mm512_permutexvar_ps(bits<__m512i>(index), table);
}
struct Table16 {
  Float all;
};
inline Table16 table16(const float (&numbers)[16]) { return {load<Float>(numbers)}; }
inline Float look_up(const Table16& table, Int index) {
  return _mm512_permutexvar_ps(bits<__m512i>(index), table.all);
}
inline Bytes look_up(Bytes table, Bytes index) {
  return bits<Bytes>(_mm512_shuffle_epi8(bits<__m512i>(table), bits<__m512i>(index)));
}

template <uint32_t kDecisions>
Int decide(Int index, Float a, Float b) {
  const __mmask16 where = _mm512_cmp_ps_mask(a, b, _CMP_GE_OQ);
  const __m512i old = bits<__m512i>(index);
  return bits<Int>(_mm512_mask_or_epi32(old, where, old, _mm512_set1_epi32(1 << kDecisions)));
}
template <uint32_t kDecisions>
uint32_t decided(uint32_t index, bool bit) {
  return index | uint32_t{bit} << kDecisions;
}

inline Bytes narrow(Int a, Int b, Int c, Int d) {
  const __m512i low = _mm512_packs_epi32(bits<__m512i>(a), bits<__m512i>(b));
  const __m512i high = _mm512_packs_epi32(bits<__m512i>(c), bits<__m512i>(d));
  const __m512i mixed = _mm512_packs_epi16(low, high);
  const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  return bits<Bytes>(_mm512_permutexvar_epi32(order, mixed));
}

inline Vector<uint8_t, kBytes / 2> join_pairs(Bytes v) {
  const __m512i pairs = _mm512_maddubs_epi16(bits<__m512i>(v), _mm512_set1_epi16(0x0110));
  return bits<Vector<uint8_t, kBytes / 2>>(_mm512_cvtepi16_epi8(pairs));
}

}  // namespace
}  // namespace dormant::simd
