// Eight floats of AVX2, FMA and F16C, as loops.h uses them. Only for sources compiled with -mavx2
// -mfma -mf16c; see random/stream_kernels.h on what those may include.
#pragma once

#include <immintrin.h>

#include <cstddef>
#include <cstdint>

#include "quantize/kernels.h"

namespace dormant::quantize {
namespace {

struct Avx2Lanes {
  static constexpr size_t kFloats = 8;
  using Float = __m256;

  static Float set(float v) { return _mm256_set1_ps(v); }
  static Float mul(Float a, Float b) { return _mm256_mul_ps(a, b); }
  static Float div(Float a, Float b) { return _mm256_div_ps(a, b); }

  template <Format kFormat>
  static Float load(const unsigned char* from) {
    if constexpr (kFormat == Format::float32) {
      return _mm256_loadu_ps(reinterpret_cast<const float*>(from));
    } else {
      const __m128i bits = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
      if constexpr (kFormat == Format::bfloat16) {
        return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
      } else {
        return _mm256_cvtph_ps(bits);
      }
    }
  }

  static Float round_to_half(Float v) { return _mm256_cvtph_ps(_mm256_cvtps_ph(v, kNearest)); }
  static float round_to_half(float v) { return _cvtsh_ss(_cvtss_sh(v, kNearest)); }

  // The largest magnitude of n elements, a multiple of kGroup; NaN if one is. Without the sign,
  // floats are ordered as their bits are, and NaN is above infinity.
  template <Format kFormat>
  static float largest(const unsigned char* from, size_t n) {
    __m256i most = _mm256_setzero_si256();
    if constexpr (kFormat == Format::float32) {
      const __m256i magnitude = _mm256_set1_epi32(0x7fffffff);
      for (size_t i = 0; i < n; i += 8) {
        const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from + 4 * i));
        most = _mm256_max_epu32(most, _mm256_and_si256(bits, magnitude));
      }
      __m128i four = _mm_max_epu32(_mm256_castsi256_si128(most), _mm256_extracti128_si256(most, 1));
      four = _mm_max_epu32(four, _mm_shuffle_epi32(four, 0x4e));
      four = _mm_max_epu32(four, _mm_shuffle_epi32(four, 0xb1));
      return _mm_cvtss_f32(_mm_castsi128_ps(four));
    } else {
      const __m256i magnitude = _mm256_set1_epi16(0x7fff);
      for (size_t i = 0; i < n; i += 16) {
        const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from + 2 * i));
        most = _mm256_max_epu16(most, _mm256_and_si256(bits, magnitude));
      }
      const __m128i eight =
          _mm_max_epu16(_mm256_castsi256_si128(most), _mm256_extracti128_si256(most, 1));
      // There is an instruction for the smallest of eight.
      const __m128i ones = _mm_set1_epi16(-1);
      const __m128i bits = _mm_xor_si128(_mm_minpos_epu16(_mm_xor_si128(eight, ones)), ones);
      if constexpr (kFormat == Format::bfloat16) {
        return _mm_cvtss_f32(_mm_castsi128_ps(_mm_slli_epi32(bits, 16)));
      } else {
        return _mm_cvtss_f32(_mm_cvtph_ps(bits));
      }
    }
  }

  // The buckets of a table, found by bisection. They count down from zero, since a comparison
  // yields -1; a lookup in eight entries sees the lowest three bits, so entry -k is entry 8 - k.
  class Buckets {
   public:
    explicit Buckets(const FourBitTable& table)
        : codes_(_mm256_broadcastsi128_si256(
              _mm_load_si128(reinterpret_cast<const __m128i*>(table.code)))) {
      const float* m = table.middle;
      first_ = _mm256_set1_ps(m[7]);
      second_ = _mm256_setr_ps(m[3], 0, 0, 0, 0, 0, 0, m[11]);
      third_ = _mm256_setr_ps(m[1], 0, 0, 0, 0, m[13], m[9], m[5]);
      fourth_ = _mm256_setr_ps(m[0], m[14], m[12], m[10], m[8], m[6], m[4], m[2]);
    }

    __m256i of(Float v) const {
      __m256i k = above(first_, v);
      k = halved(second_, v, k);
      k = halved(third_, v, k);
      return halved(fourth_, v, k);
    }

    // 32 elements.
    void store(uint8_t* to, __m256i a, __m256i b, __m256i c, __m256i d) const {
      // Bytes, four at a time from each of a, b, c and d.
      const __m256i mixed = _mm256_packs_epi16(_mm256_packs_epi32(a, b), _mm256_packs_epi32(c, d));
      const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
      const __m256i k = _mm256_abs_epi8(_mm256_permutevar8x32_epi32(mixed, order));
      // 16 times an even byte plus the odd one after it.
      const __m256i pairs =
          _mm256_maddubs_epi16(_mm256_shuffle_epi8(codes_, k), _mm256_set1_epi16(0x0110));
      const __m256i bytes = _mm256_permute4x64_epi64(_mm256_packus_epi16(pairs, pairs), 0x08);
      _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm256_castsi256_si128(bytes));
    }

   private:
    // Where the middle is below: not (middle >= v), so that all of them are below NaN.
    static __m256i above(Float middle, Float v) {
      return _mm256_castps_si256(_mm256_cmp_ps(middle, v, _CMP_NGE_UQ));
    }
    static __m256i halved(Float middles, Float v, __m256i k) {
      const __m256i upper = above(_mm256_permutevar8x32_ps(middles, k), v);
      return _mm256_add_epi32(_mm256_add_epi32(k, k), upper);
    }

    Float first_, second_, third_, fourth_;
    __m256i codes_;
  };

  // 32 elements, rounded to nearest even.
  static void store_rounded(int8_t* to, Float a, Float b, Float c, Float d) {
    const __m256i ab = _mm256_packs_epi32(_mm256_cvtps_epi32(a), _mm256_cvtps_epi32(b));
    const __m256i cd = _mm256_packs_epi32(_mm256_cvtps_epi32(c), _mm256_cvtps_epi32(d));
    const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to),
                        _mm256_permutevar8x32_epi32(_mm256_packs_epi16(ab, cd), order));
  }

 private:
  static constexpr int kNearest = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
};

}  // namespace
}  // namespace dormant::quantize
