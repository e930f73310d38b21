// Sixteen floats of AVX-512 (F, BW, DQ, VL), as loops.h uses them. Only for sources compiled with
// those flags; see random/stream_kernels.h on what those may include.
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

#include "quantize/kernels.h"

namespace dormant::quantize {
namespace {

struct Avx512Lanes {
  static constexpr size_t kFloats = 16;
  using Float = __m512;

  static Float set(float v) { return _mm512_set1_ps(v); }
  static Float mul(Float a, Float b) { return _mm512_mul_ps(a, b); }
  static Float div(Float a, Float b) { return _mm512_div_ps(a, b); }

  template <Format kFormat>
  static Float load(const unsigned char* from) {
    if constexpr (kFormat == Format::float32) {
      return _mm512_loadu_ps(from);
    } else {
      const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
      if constexpr (kFormat == Format::bfloat16) {
        return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
      } else {
        return _mm512_cvtph_ps(bits);
      }
    }
  }

  static Float round_to_half(Float v) { return _mm512_cvtph_ps(_mm512_cvtps_ph(v, kNearest)); }
  static float round_to_half(float v) { return _cvtsh_ss(_cvtss_sh(v, kNearest)); }

  // The largest magnitude of n elements, a multiple of kGroup; NaN if one is. Without the sign,
  // floats are ordered as their bits are, and NaN is above infinity.
  template <Format kFormat>
  static float largest(const unsigned char* from, size_t n) {
    __m512i most = _mm512_setzero_si512();
    if constexpr (kFormat == Format::float32) {
      const __m512i magnitude = _mm512_set1_epi32(0x7fffffff);
      for (size_t i = 0; i < n; i += 16) {
        const __m512i bits = _mm512_loadu_si512(from + 4 * i);
        most = _mm512_max_epu32(most, _mm512_and_si512(bits, magnitude));
      }
      return _mm_cvtss_f32(
          _mm_castsi128_ps(_mm_cvtsi32_si128(static_cast<int>(_mm512_reduce_max_epu32(most)))));
    } else {
      const __m512i magnitude = _mm512_set1_epi16(0x7fff);
      for (size_t i = 0; i < n; i += 32) {
        const __m512i bits = _mm512_loadu_si512(from + 2 * i);
        most = _mm512_max_epu16(most, _mm512_and_si512(bits, magnitude));
      }
      const __m256i half =
          _mm256_max_epu16(_mm512_castsi512_si256(most), _mm512_extracti64x4_epi64(most, 1));
      const __m128i quarter =
          _mm_max_epu16(_mm256_castsi256_si128(half), _mm256_extracti128_si256(half, 1));
      // There is an instruction for the smallest of eight.
      const __m128i ones = _mm_set1_epi16(-1);
      const __m128i bits = _mm_xor_si128(_mm_minpos_epu16(_mm_xor_si128(quarter, ones)), ones);
      if constexpr (kFormat == Format::bfloat16) {
        return _mm_cvtss_f32(_mm_castsi128_ps(_mm_slli_epi32(bits, 16)));
      } else {
        return _mm_cvtss_f32(_mm_cvtph_ps(bits));
      }
    }
  }

  // The buckets of a table, found by bisection.
  class Buckets {
   public:
    explicit Buckets(const FourBitTable& table)
        : first_(_mm512_set1_ps(table.middle[7])),
          fourth_(_mm512_load_ps(table.middle)),
          codes_(_mm512_broadcast_i32x4(
              _mm_load_si128(reinterpret_cast<const __m128i*>(table.code)))) {
      const __m512i iota = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
      second_ = _mm512_permutexvar_ps(_mm512_add_epi32(iota, _mm512_set1_epi32(3)), fourth_);
      third_ = _mm512_permutexvar_ps(_mm512_add_epi32(iota, _mm512_set1_epi32(1)), fourth_);
    }

    __m512i of(Float v) const {
      __m512i k = _mm512_maskz_mov_epi32(above(first_, v), _mm512_set1_epi32(8));
      k = halved(second_, v, k, 4);
      k = halved(third_, v, k, 2);
      return halved(fourth_, v, k, 1);
    }

    // 64 elements.
    void store(uint8_t* to, __m512i a, __m512i b, __m512i c, __m512i d) const {
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), packed(a, b, c, d));
    }
    // 32 elements.
    void store_half(uint8_t* to, __m512i a, __m512i b) const {
      _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm256_castsi256_si128(packed(a, b, a, b)));
    }

   private:
    // Where the middle is below: not (middle >= v), so that all of them are below NaN.
    static __mmask16 above(Float middle, Float v) {
      return _mm512_cmp_ps_mask(middle, v, _CMP_NGE_UQ);
    }
    static __m512i halved(Float middles, Float v, __m512i k, int step) {
      const __mmask16 upper = above(_mm512_permutexvar_ps(k, middles), v);
      return _mm512_mask_or_epi32(k, upper, k, _mm512_set1_epi32(step));
    }
    __m256i packed(__m512i a, __m512i b, __m512i c, __m512i d) const {
      // Bytes, four at a time from each of a, b, c and d.
      const __m512i mixed =
          _mm512_packus_epi16(_mm512_packus_epi32(a, b), _mm512_packus_epi32(c, d));
      const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
      const __m512i code = _mm512_shuffle_epi8(codes_, _mm512_permutexvar_epi32(order, mixed));
      // 16 times an even byte plus the odd one after it.
      return _mm512_cvtepi16_epi8(_mm512_maddubs_epi16(code, _mm512_set1_epi16(0x0110)));
    }

    Float first_, second_, third_, fourth_;
    __m512i codes_;
  };

  // 64 elements, rounded to nearest even.
  static void store_rounded(int8_t* to, Float a, Float b, Float c, Float d) {
    put(to, a);
    put(to + 16, b);
    put(to + 32, c);
    put(to + 48, d);
  }

 private:
  static constexpr int kNearest = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;

  static void put(int8_t* to, Float v) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(v)));
  }
};

}  // namespace
}  // namespace dormant::quantize
