// Two uniform numbers of 24 bits to two normal ones, with the bits of ATen's vector code.
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

namespace dormant::random {

template <class Lanes>
class BoxMuller {
 public:
  using Int = typename Lanes::Int;
  using Float = typename Lanes::Float;

  // Both coordinates of the pair that the low 24 bits of `radius_draw` and `angle_draw` give, mean
  // 0 and deviation 1.
  static void pair(Int radius_draw, Int angle_draw, Float& cosine, Float& sine) {
    const Float r = radius(radius_draw);
    angle(angle_draw, cosine, sine);
    cosine = Lanes::mul(r, cosine);
    sine = Lanes::mul(r, sine);
  }

 private:
  static Float number(float v) { return Lanes::set_float(v); }
  static Int low24(Int draw) { return Lanes::bit_and(draw, Lanes::set(0xffffff)); }

  // sqrt(-2 log(1 - u)), u = low 24 bits * 2^-24.
  static Float radius(Int draw) {
    constexpr uint32_t kSqrtHalf = 0x3f3504f3;  // bits of sqrt(1/2)
    constexpr uint32_t kExponent24 = 24u << 23;
    // (1 - u) * 2^24, an integer in [1, 2^24]: exact.
    const Float scaled = Lanes::to_float(Lanes::sub(Lanes::set(1u << 24), low24(draw)));
    // 1 - u = (1 + x) * 2^e with 1 + x in [sqrt(1/2), sqrt(2)).
    const Int offset = Lanes::sub(Lanes::as_int(scaled), Lanes::set(kSqrtHalf + kExponent24));
    const Float e = Lanes::to_float(Lanes::template shift_right_signed<23>(offset));
    const Int mantissa = Lanes::bit_and(offset, Lanes::set(0x7fffff));
    const Float x =
        Lanes::sub(Lanes::as_float(Lanes::add(mantissa, Lanes::set(kSqrtHalf))), number(1.0f));
    const Float z = Lanes::mul(x, x);

    // y = 2 * (Cephes' polynomial).
    Float y = number(2 * 7.0376836292e-2f);
    y = Lanes::fma(y, x, number(2 * -1.1514610310e-1f));
    y = Lanes::fma(y, x, number(2 * 1.1676998740e-1f));
    y = Lanes::fma(y, x, number(2 * -1.2420140846e-1f));
    y = Lanes::fma(y, x, number(2 * 1.4249322787e-1f));
    y = Lanes::fma(y, x, number(2 * -1.6668057665e-1f));
    y = Lanes::fma(y, x, number(2 * 2.0000714765e-1f));
    y = Lanes::fma(y, x, number(2 * -2.4999993993e-1f));
    y = Lanes::fma(y, x, number(2 * 3.3333331174e-1f));
    y = Lanes::mul(y, x);
    // log 2 in two parts, so that e * high is exact.
    y = Lanes::fma(y, z, Lanes::mul(e, number(2 * -2.12194440e-4f)));
    y = Lanes::sub(y, z);                // 2 * (y - z / 2)
    y = Lanes::fma(x, number(2.0f), y);  // 2 * (x + y)
    // Negated last, since -2 log 1 is -0 in ATen and shows in the sign of a zero result.
    y = Lanes::fnms(e, number(2 * 0.693359375f), y);
    return Lanes::sqrt(y);
  }

  // Cosine and sine of 2 pi u, u = low 24 bits * 2^-24.
  static void angle(Int draw, Float& cosine, Float& sine) {
    const Float theta =
        Lanes::mul(Lanes::to_float(low24(draw)), number(6.28318530717958647692f * 0x1p-24f));
    // The octant, rounded up to even, tells which of the two series is which, and the signs.
    Int octant = Lanes::truncate(Lanes::mul(theta, number(1.27323954473516f)));
    octant = Lanes::bit_and(Lanes::add(octant, Lanes::set(1)), Lanes::set(~1u));
    const Float turns = Lanes::to_float(octant);
    // theta - octant * pi / 4, in three parts that leave no rounding error.
    Float x = Lanes::fma(turns, number(-0.78515625f), theta);
    x = Lanes::fma(turns, number(-2.4187564849853515625e-4f), x);
    x = Lanes::fma(turns, number(-3.77489497744594108e-8f), x);
    const Float z = Lanes::mul(x, x);

    Float c = number(2.443315711809948e-5f);
    c = Lanes::fma(c, z, number(-1.388731625493765e-3f));
    c = Lanes::fma(c, z, number(4.166664568298827e-2f));
    c = Lanes::mul(c, z);
    c = Lanes::fms(c, z, Lanes::mul(z, number(0.5f)));
    c = Lanes::add(c, number(1.0f));

    Float s = number(-1.9515295891e-4f);
    s = Lanes::fma(s, z, number(8.3321608736e-3f));
    s = Lanes::fma(s, z, number(-1.6666654611e-1f));
    s = Lanes::mul(s, z);
    s = Lanes::fma(s, x, x);

    const auto swapped = Lanes::has_bit(octant, Lanes::set(2));
    const Int sign = Lanes::set(0x80000000);
    const Int sine_sign = Lanes::template shift_left<29>(octant);
    const Int cosine_sign = Lanes::template shift_left<29>(Lanes::add(octant, Lanes::set(2)));
    cosine = with_sign(Lanes::select(swapped, s, c), cosine_sign, sign);
    sine = with_sign(Lanes::select(swapped, c, s), sine_sign, sign);
  }

  static Float with_sign(Float v, Int from, Int sign) {
    return Lanes::as_float(Lanes::xor_masked(Lanes::as_int(v), from, sign));
  }
};

}  // namespace dormant::random
