// Two uniform numbers of 24 bits to two normal ones, with the bits of ATen's vector code. For
// kernels only (simd/vector.h).
//
// ATen's float32 normal_ under AVX2 and AVX-512 (ATen/native/cpu/DistributionTemplates.h,
// NormalFill16) evaluates Cephes' single-precision log and sincos (ATen/native/cpu/avx_mathfun.h)
// with each product that feeds a sum contracted to one rounding. Here every step rounds where
// ATen's does; what differs is exact: constants are scaled by powers of two (2 of sqrt(-2 log u)
// and 2^-24 of the draw), and the logarithm splits its argument by integer arithmetic. Checked for
// all 2^24 values of either number in stream_test.cpp.
//
// Source of the polynomials: Moshier, Cephes Mathematical Library 2.2 (logf.c, sinf.c), 1992.
#pragma once

#include <cstdint>

#include "simd/lanes.h"

namespace dormant::random {
namespace {

// The values at x of a polynomial, highest coefficient first, each step rounded once.
template <class... Coefficients>
simd::Float polynomial(simd::Float x, float highest, Coefficients... others) {
  simd::Float y = simd::set<simd::Float>(highest);
  ((y = simd::fma(y, x, simd::set<simd::Float>(others))), ...);
  return y;
}

// sqrt(-2 log(1 - u)), u = low 24 bits * 2^-24.
inline simd::Float radius(simd::Int draw) {
  using simd::Float;
  constexpr uint32_t kSqrtHalf = 0x3f3504f3;  // bits of sqrt(1/2)
  constexpr uint32_t kExponent24 = 24u << 23;
  // (1 - u) * 2^24, an integer in [1, 2^24]: exact.
  const Float scaled = simd::to_float((1u << 24) - (draw & 0xffffffu));
  // 1 - u = (1 + x) * 2^e with 1 + x in [sqrt(1/2), sqrt(2)).
  const simd::Int offset = simd::bits<simd::Int>(scaled) - (kSqrtHalf + kExponent24);
  const Float e = simd::convert<Float>(simd::bits<simd::Vector<int32_t>>(offset) >> 23);
  const Float x = simd::bits<Float>((offset & 0x7fffffu) + kSqrtHalf) - 1.0f;
  const Float z = x * x;

  // Twice Cephes' polynomial.
  Float y = polynomial(x, 2 * 7.0376836292e-2f, 2 * -1.1514610310e-1f, 2 * 1.1676998740e-1f,
                       2 * -1.2420140846e-1f, 2 * 1.4249322787e-1f, 2 * -1.6668057665e-1f,
                       2 * 2.0000714765e-1f, 2 * -2.4999993993e-1f, 2 * 3.3333331174e-1f);
  y = y * x;
  // log 2 in two parts, so that e * high is exact.
  y = simd::fma(y, z, e * (2 * -2.12194440e-4f));
  y = y - z;                                    // 2 * (y - z / 2)
  y = simd::fma(x, simd::set<Float>(2.0f), y);  // 2 * (x + y)
  // Negated last, since -2 log 1 is -0 in ATen and shows in the sign of a zero result.
  return simd::sqrt(simd::negative_fma(e, simd::set<Float>(2 * 0.693359375f), y));
}

// Cosine and sine of 2 pi u, u = low 24 bits * 2^-24.
inline void angle(simd::Int draw, simd::Float& cosine, simd::Float& sine) {
  using simd::Float;
  using simd::Int;
  const Float theta = simd::to_float(draw & 0xffffffu) * (6.28318530717958647692f * 0x1p-24f);
  // The octant, rounded up to even, tells which of the two series is which, and the signs.
  const Int octant = (simd::truncate(theta * 1.27323954473516f) + 1u) & ~1u;
  const Float turns = simd::to_float(octant);
  // theta - octant * pi / 4, in three parts that leave no rounding error.
  Float x = simd::fma(turns, simd::set<Float>(-0.78515625f), theta);
  x = simd::fma(turns, simd::set<Float>(-2.4187564849853515625e-4f), x);
  x = simd::fma(turns, simd::set<Float>(-3.77489497744594108e-8f), x);
  const Float z = x * x;

  Float c = polynomial(z, 2.443315711809948e-5f, -1.388731625493765e-3f, 4.166664568298827e-2f);
  c = simd::fma(c * z, z, z * -0.5f) + 1.0f;
  Float s = polynomial(z, -1.9515295891e-4f, 8.3321608736e-3f, -1.6666654611e-1f);
  s = simd::fma(s * z, x, x);

  const auto swapped = (octant & 2u) != 0u;
  const auto with_sign = [](Float v, Int turned) {
    return simd::bits<Float>(simd::bits<Int>(v) ^ (turned << 29 & 0x80000000u));
  };
  cosine = with_sign(swapped ? s : c, octant + 2u);
  sine = with_sign(swapped ? c : s, octant);
}

// Both coordinates of the pair that the low 24 bits of the two draws give, mean 0 and deviation 1.
inline void box_muller(simd::Int radius_draw, simd::Int angle_draw, simd::Float& cosine,
                       simd::Float& sine) {
  const simd::Float r = radius(radius_draw);
  angle(angle_draw, cosine, sine);
  cosine = r * cosine;
  sine = r * sine;
}

}  // namespace
}  // namespace dormant::random
