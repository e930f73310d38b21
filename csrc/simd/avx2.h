// What takes an instruction's name: AVX2, FMA and F16C.
#pragma once

#include "simd/x86.h"

namespace dormant::simd {
namespace {

inline Float fma(Float a, Float b, Float c) { return _mm256_fmadd_ps(a, b, c); }
inline Double fma(Double a, Double b, Double c) { return _mm256_fmadd_pd(a, b, c); }
// -(a * b) - c.
inline Float negative_fma(Float a, Float b, Float c) { return _mm256_fnmsub_ps(a, b, c); }
inline Float sqrt(Float a) { return _mm256_sqrt_ps(a); }

// To the nearest integer, of two the even one, where it is below 2^22.
inline Int to_nearest(Float a) { return bits<Int>(_mm256_cvtps_epi32(a)); }

// The 64-bit products of the even lanes.
inline Int product_even(Int a, Int b) {
  return bits<Int>(_mm256_mul_epu32(bits<__m256i>(a), bits<__m256i>(b)));
}

inline Int widen(Vector<uint16_t, kCount> v) {
  return bits<Int>(_mm256_cvtepu16_epi32(bits<__m128i>(v)));
}
inline Int widen(Vector<uint8_t, kCount> v) {
  return bits<Int>(_mm256_cvtepu8_epi32(_mm_cvtsi64_si128(bits<long long>(v))));
}
// Of signed bytes, as signed numbers.
inline Int widen_signed(Vector<uint8_t, kCount> v) {
  return bits<Int>(_mm256_cvtepi8_epi32(_mm_cvtsi64_si128(bits<int64_t>(v))));
}
// Of lanes below 2^16.
inline Vector<uint16_t, kCount> narrow(Int v) {
  const __m256i all = bits<__m256i>(v);
  return bits<Vector<uint16_t, kCount>>(
      _mm_packus_epi32(_mm256_castsi256_si128(all), _mm256_extracti128_si256(all, 1)));
}
inline Vector<uint16_t, kCount> to_half(Float v) {
  return bits<Vector<uint16_t, kCount>>(_mm256_cvtps_ph(v, kNearest));
}
inline Float from_half(Vector<uint16_t, kCount> v) { return _mm256_cvtph_ps(bits<__m128i>(v)); }

// Eight numbers; the low three bits of each lane of `index` choose one.
using Table = Float;
inline Table table(const float (&numbers)[8]) { return load<Table>(numbers); }
inline Float look_up(Table table, Int index) {
  return _mm256_permutevar8x32_ps(table, bits<__m256i>(index));
}
// The same of sixteen numbers, by the low four bits.
struct Table16 {
  Float low;
  Float high;
};
inline Table16 table16(const float (&numbers)[16]) {
  return {load<Float>(numbers), load<Float>(numbers + 8)};
}
inline Float look_up(const Table16& table, Int index) {
  // The sign of each lane chooses.
  const Float upper = bits<Float>(index << 28);
  return _mm256_blendv_ps(look_up(table.low, index), look_up(table.high, index), upper);
}
// Byte i of the sixteen of `table`, repeated in it, for each i < 16 of `index`.
inline Bytes look_up(Bytes table, Bytes index) {
  return bits<Bytes>(_mm256_shuffle_epi8(bits<__m256i>(table), bits<__m256i>(index)));
}

// An index for look_up() after kDecisions of a bisection, with one more: whether a >= b. decided()
// is the same for one lane: what is quickest to append to an index differs.
template <uint32_t kDecisions>
Int decide(Int index, Float a, Float b) {
  return index + index + bits<Int>(a >= b);
}
template <uint32_t kDecisions>
uint32_t decided(uint32_t index, bool bit) {
  return 2 * index - bit;
}

// The lanes of a, b, c and d, of -128 to 127 as signed numbers, as bytes.
inline Bytes narrow(Int a, Int b, Int c, Int d) {
  const __m256i low = _mm256_packs_epi32(bits<__m256i>(a), bits<__m256i>(b));
  const __m256i high = _mm256_packs_epi32(bits<__m256i>(c), bits<__m256i>(d));
  // Four bytes in turn of each of a, b, c and d.
  const __m256i mixed = _mm256_packs_epi16(low, high);
  const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
  return bits<Bytes>(_mm256_permutevar8x32_epi32(mixed, order));
}

// Of each pair of numbers below 16, 16 times the first plus the second.
inline Vector<uint8_t, kBytes / 2> join_pairs(Bytes v) {
  const __m256i pairs = _mm256_maddubs_epi16(bits<__m256i>(v), _mm256_set1_epi16(0x0110));
  const __m256i mixed = _mm256_packus_epi16(pairs, pairs);
  return bits<Vector<uint8_t, kBytes / 2>>(
      _mm256_castsi256_si128(_mm256_permute4x64_epi64(mixed, 0x08)));
}

}  // namespace
}  // namespace dormant::simd
