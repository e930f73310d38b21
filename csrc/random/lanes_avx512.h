// Sixteen 32-bit lanes of AVX-512 (F, BW, DQ, VL), as the kernel templates use them. Only for
// sources compiled with those flags; see stream_kernels.h on what those may include.
#pragma once

// GCC 12 takes the undefined pass-through operand of its own AVX-512 intrinsics for an
// uninitialised read (GCC bug 105593).
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#endif

#include <immintrin.h>

#include <cstddef>
#include <cstdint>

#include "random/stream_kernels.h"

namespace dormant::random {
namespace {

struct Avx512Lanes {
  static constexpr size_t kCount = 16;
  using Int = __m512i;
  using Float = __m512;
  using Double = __m512d;
  using Mask = __mmask16;

  // Integers.
  static Int load(const uint32_t* from) { return _mm512_loadu_si512(from); }
  static void save(uint32_t* to, Int v) { _mm512_storeu_si512(to, v); }
  static Int set(uint32_t v) { return _mm512_set1_epi32(static_cast<int>(v)); }
  static Int add(Int a, Int b) { return _mm512_add_epi32(a, b); }
  static Int sub(Int a, Int b) { return _mm512_sub_epi32(a, b); }
  static Int bit_and(Int a, Int b) { return _mm512_and_si512(a, b); }
  static Int bit_xor(Int a, Int b) { return _mm512_xor_si512(a, b); }
  // The last argument of a ternary operation is its truth table, indexed by the bits of a, b and c.
  static Int xor3(Int a, Int b, Int c) { return _mm512_ternarylogic_epi32(a, b, c, 0x96); }
  static Int xor_masked(Int a, Int b, Int mask) {
    return _mm512_ternarylogic_epi32(a, b, mask, 0x78);
  }
  static Int bit_select(Int mask, Int a, Int b) {
    return _mm512_ternarylogic_epi32(mask, a, b, 0xca);
  }
  static Int where_odd(Int a, Int value) {
    return _mm512_maskz_mov_epi32(_mm512_test_epi32_mask(a, set(1)), value);
  }
  template <int kBits>
  static Int shift_left(Int a) {
    return _mm512_slli_epi32(a, kBits);
  }
  template <int kBits>
  static Int shift_right(Int a) {
    return _mm512_srli_epi32(a, kBits);
  }
  template <int kBits>
  static Int shift_right_signed(Int a) {
    return _mm512_srai_epi32(a, kBits);
  }

  // For Philox: products of the even lanes, as 64-bit lanes.
  static Int iota() {
    return _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  }
  static Int product_even(Int a, Int b) { return _mm512_mul_epu32(a, b); }
  static Int high_half(Int a) { return _mm512_shuffle_epi32(a, static_cast<_MM_PERM_ENUM>(0xf5)); }
  // Lane 2j from lane 2j of `a`, lane 2j + 1 from lane 2j of `b`.
  static Int interleave_even(Int a, Int b) {
    return _mm512_mask_shuffle_epi32(a, 0xaaaa, b, static_cast<_MM_PERM_ENUM>(0xa0));
  }
  // Bit i tells whether lane i is at most `limit`, unsigned.
  static uint32_t at_most(Int a, Int limit) { return _mm512_cmple_epu32_mask(a, limit); }

  // Floats.
  static Float set_float(float v) { return _mm512_set1_ps(v); }
  static Float to_float(Int a) { return _mm512_cvtepi32_ps(a); }
  static Int truncate(Float a) { return _mm512_cvttps_epi32(a); }
  static Float as_float(Int a) { return _mm512_castsi512_ps(a); }
  static Int as_int(Float a) { return _mm512_castps_si512(a); }
  static Float add(Float a, Float b) { return _mm512_add_ps(a, b); }
  static Float sub(Float a, Float b) { return _mm512_sub_ps(a, b); }
  static Float mul(Float a, Float b) { return _mm512_mul_ps(a, b); }
  static Float fma(Float a, Float b, Float c) { return _mm512_fmadd_ps(a, b, c); }
  static Float fms(Float a, Float b, Float c) { return _mm512_fmsub_ps(a, b, c); }
  static Float fnms(Float a, Float b, Float c) { return _mm512_fnmsub_ps(a, b, c); }
  static Float sqrt(Float a) { return _mm512_sqrt_ps(a); }
  static Mask equal(Float a, Float b) { return _mm512_cmp_ps_mask(a, b, _CMP_EQ_OQ); }
  static Mask has_bit(Int a, Int bit) { return _mm512_test_epi32_mask(a, bit); }
  static Float select(Mask mask, Float a, Float b) { return _mm512_mask_blend_ps(mask, b, a); }

  // Affine map of a uniform number, rounded as ATen's scalar code is under AVX-512: contracted to
  // one operation.
  static Float affine(Float u, Float scale, Float offset) { return fma(u, scale, offset); }
  static Double affine(Double u, Double scale, Double offset) {
    return _mm512_fmadd_pd(u, scale, offset);
  }

  // Sixteen pairs: the first halves of two blocks of 16 words, and their second halves.
  static void load_pairs(const uint32_t* from, Int& first, Int& second) {
    const Int low = load(from);
    const Int high = load(from + 16);
    first = _mm512_shuffle_i64x2(low, high, 0x44);
    second = _mm512_shuffle_i64x2(low, high, 0xee);
  }
  static void restore_order(Float& first, Float& second) {
    const Float low = _mm512_shuffle_f32x4(first, second, 0x44);
    second = _mm512_shuffle_f32x4(first, second, 0xee);
    first = low;
  }

  // 32 elements from two vectors. Values of the 16-bit formats are rounded already (round), so this
  // only packs.
  template <Format kFormat>
  static Float round(Float v) {
    if constexpr (kFormat == Format::bfloat16) {
      const Int bits = as_int(v);
      const Int odd = bit_and(shift_right<16>(bits), set(1));
      const Int rounded = bit_and(add(bits, add(odd, set(0x7fff))), set(0xffff0000));
      return select(_mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q), as_float(set(0x7fc00000)),
                    as_float(rounded));
    } else if constexpr (kFormat == Format::float16) {
      return _mm512_cvtph_ps(_mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
    } else {
      return v;
    }
  }
  template <Format kFormat>
  static void store(void* to, Float low, Float high) {
    auto* out = static_cast<__m512i*>(to);
    if constexpr (kFormat == Format::float32) {
      put(out, as_int(low));
      put(out + 1, as_int(high));
    } else if constexpr (kFormat == Format::bfloat16) {
      const Int packed =
          _mm512_packus_epi32(shift_right<16>(as_int(low)), shift_right<16>(as_int(high)));
      put(out, _mm512_permutexvar_epi64(_mm512_setr_epi64(0, 2, 4, 6, 1, 3, 5, 7), packed));
    } else {
      constexpr int kNearest = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
      const Int half = _mm512_castsi256_si512(_mm512_cvtps_ph(low, kNearest));
      put(out, _mm512_inserti64x4(half, _mm512_cvtps_ph(high, kNearest), 1));
    }
  }

  // Doubles: eight lanes from sixteen draws, the first draw of a pair being the high half of 53
  // bits.
  static constexpr size_t kDoubles = 8;
  static Double set_double(double v) { return _mm512_set1_pd(v); }
  static Double load_uniform53(const uint32_t* from) {
    return _mm512_mul_pd(_mm512_cvtepi64_pd(number53(from)), _mm512_set1_pd(0x1p-53));
  }
  static Double select_equal(Double a, Double b, Double then) {
    return _mm512_mask_blend_pd(_mm512_cmp_pd_mask(a, b, _CMP_EQ_OQ), a, then);
  }
  static void store(double* to, Double v) {
    put(reinterpret_cast<__m512i*>(to), _mm512_castpd_si512(v));
  }

  // Bit i tells whether the 53-bit number of draws 2i and 2i + 1 is below `threshold`, for 32
  // numbers.
  static uint32_t below53(const uint32_t* draws, uint64_t threshold) {
    const Int limit = _mm512_set1_epi64(static_cast<int64_t>(threshold));
    uint32_t bits = 0;
    for (int i = 0; i < 4; ++i) {
      const uint32_t below = _mm512_cmplt_epu64_mask(number53(draws + 16 * i), limit);
      bits |= below << (8 * i);
    }
    return bits;
  }
  // 32 elements, each `one` where its bit is set.
  template <size_t kWidth>
  static void store_bits(void* to, uint32_t bits, uint64_t one) {
    auto* out = static_cast<__m512i*>(to);
    if constexpr (kWidth == 1) {
      const __m256i bytes = _mm256_maskz_set1_epi8(bits, static_cast<char>(one));
      _mm256_storeu_si256(static_cast<__m256i*>(to), bytes);
    } else if constexpr (kWidth == 2) {
      put(out, _mm512_maskz_set1_epi16(bits, static_cast<int16_t>(one)));
    } else if constexpr (kWidth == 4) {
      put(out, _mm512_maskz_set1_epi32(static_cast<__mmask16>(bits), static_cast<int>(one)));
      put(out + 1,
          _mm512_maskz_set1_epi32(static_cast<__mmask16>(bits >> 16), static_cast<int>(one)));
    } else {
      for (int i = 0; i < 4; ++i) {
        put(out + i, _mm512_maskz_set1_epi64(static_cast<__mmask8>(bits >> (8 * i)),
                                             static_cast<int64_t>(one)));
      }
    }
  }

 private:
  static Int number53(const uint32_t* from) {
    return bit_and(_mm512_rol_epi64(load(from), 32), _mm512_set1_epi64((int64_t{1} << 53) - 1));
  }
  static void put(__m512i* to, Int v) { _mm512_storeu_si512(to, v); }
};

}  // namespace
}  // namespace dormant::random
