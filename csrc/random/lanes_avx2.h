// Eight 32-bit lanes of AVX2, FMA and F16C, as the kernel templates use them. Only for sources
// compiled with -mavx2 -mfma -mf16c; see stream_kernels.h on what those may include.
#pragma once

#include <immintrin.h>

#include <cstddef>
#include <cstdint>

#include "random/stream_kernels.h"

namespace dormant::random {
namespace {

struct Avx2Lanes {
  static constexpr size_t kCount = 8;
  using Int = __m256i;
  using Float = __m256;
  using Double = __m256d;
  using Mask = __m256;

  // Integers.
  static Int load(const uint32_t* from) {
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
  }
  static void save(uint32_t* to, Int v) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), v); }
  static Int set(uint32_t v) { return _mm256_set1_epi32(static_cast<int>(v)); }
  static Int add(Int a, Int b) { return _mm256_add_epi32(a, b); }
  static Int sub(Int a, Int b) { return _mm256_sub_epi32(a, b); }
  static Int bit_and(Int a, Int b) { return _mm256_and_si256(a, b); }
  static Int bit_xor(Int a, Int b) { return _mm256_xor_si256(a, b); }
  static Int xor3(Int a, Int b, Int c) { return bit_xor(bit_xor(a, b), c); }
  static Int xor_masked(Int a, Int b, Int mask) { return bit_xor(a, bit_and(b, mask)); }
  static Int bit_select(Int mask, Int a, Int b) {
    return _mm256_or_si256(bit_and(a, mask), _mm256_andnot_si256(mask, b));
  }
  static Int where_odd(Int a, Int value) {
    return bit_and(_mm256_srai_epi32(shift_left<31>(a), 31), value);
  }
  template <int kBits>
  static Int shift_left(Int a) {
    return _mm256_slli_epi32(a, kBits);
  }
  template <int kBits>
  static Int shift_right(Int a) {
    return _mm256_srli_epi32(a, kBits);
  }
  template <int kBits>
  static Int shift_right_signed(Int a) {
    return _mm256_srai_epi32(a, kBits);
  }

  // For Philox: products of the even lanes, as 64-bit lanes.
  static Int iota() { return _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7); }
  static Int product_even(Int a, Int b) { return _mm256_mul_epu32(a, b); }
  static Int high_half(Int a) { return _mm256_srli_epi64(a, 32); }
  // Lane 2j from lane 2j of `a`, lane 2j + 1 from lane 2j of `b`.
  static Int interleave_even(Int a, Int b) {
    return _mm256_blend_epi32(a, _mm256_shuffle_epi32(b, 0xa0), 0xaa);
  }
  // Bit i tells whether lane i is at most `limit`, unsigned.
  static uint32_t at_most(Int a, Int limit) {
    const Int within = _mm256_cmpeq_epi32(_mm256_max_epu32(a, limit), limit);
    return static_cast<uint32_t>(_mm256_movemask_ps(as_float(within)));
  }

  // Floats.
  static Float set_float(float v) { return _mm256_set1_ps(v); }
  static Float to_float(Int a) { return _mm256_cvtepi32_ps(a); }
  static Int truncate(Float a) { return _mm256_cvttps_epi32(a); }
  static Float as_float(Int a) { return _mm256_castsi256_ps(a); }
  static Int as_int(Float a) { return _mm256_castps_si256(a); }
  static Float add(Float a, Float b) { return _mm256_add_ps(a, b); }
  static Float sub(Float a, Float b) { return _mm256_sub_ps(a, b); }
  static Float mul(Float a, Float b) { return _mm256_mul_ps(a, b); }
  static Float fma(Float a, Float b, Float c) { return _mm256_fmadd_ps(a, b, c); }
  static Float fms(Float a, Float b, Float c) { return _mm256_fmsub_ps(a, b, c); }
  static Float fnms(Float a, Float b, Float c) { return _mm256_fnmsub_ps(a, b, c); }
  static Float sqrt(Float a) { return _mm256_sqrt_ps(a); }
  static Mask equal(Float a, Float b) { return _mm256_cmp_ps(a, b, _CMP_EQ_OQ); }
  static Mask has_bit(Int a, Int bit) { return as_float(_mm256_cmpeq_epi32(bit_and(a, bit), bit)); }
  static Float select(Mask mask, Float a, Float b) { return _mm256_blendv_ps(b, a, mask); }

  // Affine map of a uniform number, rounded as ATen's scalar code is under AVX2: contracted to one
  // operation.
  static Float affine(Float u, Float scale, Float offset) { return fma(u, scale, offset); }
  static Double affine(Double u, Double scale, Double offset) {
    return _mm256_fmadd_pd(u, scale, offset);
  }

  // Eight pairs: lane j of `first` and `second` are words j and j + 8 of a block of 16.
  static void load_pairs(const uint32_t* from, Int& first, Int& second) {
    first = load(from);
    second = load(from + 8);
  }
  static void restore_order(Float&, Float&) {}

  // 16 elements from two vectors. Values of the 16-bit formats are rounded already (round), so this
  // only packs.
  template <Format kFormat>
  static Float round(Float v) {
    if constexpr (kFormat == Format::bfloat16) {
      const Int bits = as_int(v);
      const Int odd = bit_and(shift_right<16>(bits), set(1));
      const Int rounded = bit_and(add(bits, add(odd, set(0x7fff))), set(0xffff0000));
      return select(_mm256_cmp_ps(v, v, _CMP_UNORD_Q), as_float(set(0x7fc00000)),
                    as_float(rounded));
    } else if constexpr (kFormat == Format::float16) {
      return _mm256_cvtph_ps(_mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
    } else {
      return v;
    }
  }
  template <Format kFormat>
  static void store(void* to, Float low, Float high) {
    auto* out = static_cast<__m256i*>(to);
    if constexpr (kFormat == Format::float32) {
      put(out, as_int(low));
      put(out + 1, as_int(high));
    } else if constexpr (kFormat == Format::bfloat16) {
      const Int packed =
          _mm256_packus_epi32(shift_right<16>(as_int(low)), shift_right<16>(as_int(high)));
      put(out, _mm256_permute4x64_epi64(packed, 0xd8));
    } else {
      constexpr int kNearest = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
      put(out, _mm256_set_m128i(_mm256_cvtps_ph(high, kNearest), _mm256_cvtps_ph(low, kNearest)));
    }
  }

  // Doubles: four lanes from eight draws, the first draw of a pair being the high half of 53 bits.
  static constexpr size_t kDoubles = 4;
  static Double set_double(double v) { return _mm256_set1_pd(v); }
  static Double load_uniform53(const uint32_t* from) {
    const Int swapped = _mm256_shuffle_epi32(load(from), 0xb1);
    // AVX2 has no conversion from 64-bit integers. 2^52 + low and 2^84 + high * 2^32 are doubles
    // whose mantissas are the two halves; the subtraction and the sum are exact since the result
    // has 53 bits.
    const Int low = _mm256_blend_epi32(_mm256_set1_epi64x(0x4330000000000000), swapped, 0x55);
    const Int high =
        _mm256_or_si256(bit_and(_mm256_srli_epi64(swapped, 32), _mm256_set1_epi64x(0x1fffff)),
                        _mm256_set1_epi64x(0x4530000000000000));
    const Double offset = _mm256_set1_pd(19342813118337666422669312.0);  // 2^84 + 2^52
    const Double value =
        _mm256_add_pd(_mm256_sub_pd(_mm256_castsi256_pd(high), offset), _mm256_castsi256_pd(low));
    return _mm256_mul_pd(value, _mm256_set1_pd(0x1p-53));
  }
  static Double select_equal(Double a, Double b, Double then) {
    return _mm256_blendv_pd(a, then, _mm256_cmp_pd(a, b, _CMP_EQ_OQ));
  }
  static void store(double* to, Double v) {
    put(reinterpret_cast<__m256i*>(to), _mm256_castpd_si256(v));
  }

  // Bit i tells whether the 53-bit number of draws 2i and 2i + 1 is below `threshold`, for 32
  // numbers.
  static uint32_t below53(const uint32_t* draws, uint64_t threshold) {
    const Int limit = _mm256_set1_epi64x(static_cast<int64_t>(threshold));
    const Int mask = _mm256_set1_epi64x((int64_t{1} << 53) - 1);
    uint32_t bits = 0;
    for (int i = 0; i < 8; ++i) {
      const Int value = bit_and(_mm256_shuffle_epi32(load(draws + 8 * i), 0xb1), mask);
      const int below = _mm256_movemask_pd(_mm256_castsi256_pd(_mm256_cmpgt_epi64(limit, value)));
      bits |= static_cast<uint32_t>(below) << (4 * i);
    }
    return bits;
  }
  // 32 elements, each `one` where its bit is set.
  template <size_t kWidth>
  static void store_bits(void* to, uint32_t bits, uint64_t one) {
    auto* out = static_cast<__m256i*>(to);
    const Int spread = set(bits);
    for (size_t i = 0; i < kWidth; ++i) {
      Int chosen;
      if constexpr (kWidth == 1) {
        const Int byte = _mm256_shuffle_epi8(
            spread,
            _mm256_setr_epi64x(0, 0x0101010101010101, 0x0202020202020202, 0x0303030303030303));
        const Int bit = _mm256_set1_epi64x(static_cast<int64_t>(0x8040201008040201));
        chosen = bit_and(_mm256_cmpeq_epi8(bit_and(byte, bit), bit),
                         _mm256_set1_epi8(static_cast<char>(one)));
      } else if constexpr (kWidth == 2) {
        const Int half = _mm256_set1_epi16(static_cast<int16_t>(bits >> (16 * i)));
        const Int bit = _mm256_setr_epi16(1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096,
                                          8192, 16384, static_cast<int16_t>(0x8000));
        chosen = bit_and(_mm256_cmpeq_epi16(bit_and(half, bit), bit),
                         _mm256_set1_epi16(static_cast<int16_t>(one)));
      } else if constexpr (kWidth == 4) {
        const Int bit =
            _mm256_sllv_epi32(set(1u << (8 * i)), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
        chosen =
            bit_and(_mm256_cmpeq_epi32(bit_and(spread, bit), bit), set(static_cast<uint32_t>(one)));
      } else {
        const Int bit = _mm256_sllv_epi64(_mm256_set1_epi64x(int64_t{1} << (4 * i)),
                                          _mm256_setr_epi64x(0, 1, 2, 3));
        chosen = bit_and(_mm256_cmpeq_epi64(bit_and(_mm256_set1_epi64x(bits), bit), bit),
                         _mm256_set1_epi64x(static_cast<int64_t>(one)));
      }
      put(out + i, chosen);
    }
  }

 private:
  static void put(__m256i* to, Int v) { _mm256_storeu_si256(to, v); }
};

}  // namespace
}  // namespace dormant::random
