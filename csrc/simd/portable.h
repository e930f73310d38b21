// The functions of avx2.h without instructions: for processors that lack AVX2, and a reference for
// those that have it. The contracts are there.
#pragma once

#include <cmath>

#include "simd/vector.h"

namespace dormant::simd {
namespace {

// ATen's scalar code at its default level rounds products, unless the target always has fused
// multiply-add: there compilers contract.
#if defined(__aarch64__)
constexpr bool kContracted = true;
#else
constexpr bool kContracted = false;
#endif

// The vector of function(lane).
template <class V, class Function>
V each(Function&& function) {
  decltype(function(size_t{0})) lanes[kLanesOf<V>];
  for (size_t lane = 0; lane < kLanesOf<V>; ++lane) {
    lanes[lane] = function(lane);
  }
  return load<V>(lanes);
}

template <class V>
V fma(V a, V b, V c) {
  return each<V>([&](size_t lane) { return std::fma(a[lane], b[lane], c[lane]); });
}
inline Float negative_fma(Float a, Float b, Float c) { return fma(-a, b, -c); }
inline Float sqrt(Float a) {
  return each<Float>([&](size_t lane) { return std::sqrt(a[lane]); });
}

// To nearest even: in a float of that size the last bit is worth one.
inline Int to_nearest(Float a) {
  constexpr float kMagic = 0x1.8p23f;
  return bits<Int>(convert<Vector<int32_t>>(a + kMagic - kMagic));
}

inline Int product_even(Int a, Int b) {
  return bits<Int>(Long{uint64_t{a[0]} * b[0], uint64_t{a[2]} * b[2]});
}

inline Int widen(Vector<uint16_t, kCount> v) { return convert<Int>(v); }
inline Int widen(Vector<uint8_t, kCount> v) { return convert<Int>(v); }
inline Int widen_signed(Vector<uint8_t, kCount> v) {
  return bits<Int>(convert<Vector<int32_t>>(bits<Vector<int8_t, kCount>>(v)));
}
inline Vector<uint16_t, kCount> narrow(Int v) { return convert<Vector<uint16_t, kCount>>(v); }

// As c10 converts (c10/util/Half.h), by scaling: the processor's own arithmetic rounds, also to
// subnormal numbers.
inline Vector<uint16_t, kCount> to_half(Float v) {
  const Int twice = bits<Int>(v) << 1;  // without the sign
  const Float magnitude = bits<Float>(twice >> 1);
  const Int exponent = larger(twice & 0xff000000u, set<Int>(0x71000000u));
  const Int sum =
      bits<Int>(bits<Float>((exponent >> 1) + 0x07800000u) + magnitude * 0x1p112f * 0x1p-110f);
  const Int half = (sum >> 13 & 0x7c00u) + (sum & 0xfffu);
  const Int number = twice > 0xff000000u ? set<Int>(0x7e00u) : half;
  return convert<Vector<uint16_t, kCount>>((bits<Int>(v) >> 16 & 0x8000u) | number);
}
inline Float from_half(Vector<uint16_t, kCount> v) {
  const Int word = convert<Int>(v) << 16;
  const Int twice = word << 1;
  const Float normal = bits<Float>((twice >> 4) + 0x70000000u) * 0x1p-112f;
  const Float subnormal = bits<Float>((twice >> 17) | 0x3f000000u) - 0.5f;
  const Int magnitude = bits<Int>(twice < (1u << 27) ? subnormal : normal);
  return bits<Float>((word & 0x80000000u) | magnitude);
}
inline float first_half(Vector<uint16_t, 8> v) { return from_half(half<0, uint16_t, 8>(v))[0]; }

inline Vector<uint16_t, 8> largest_of_eight(Vector<uint16_t, 8> v) {
  v = larger(v, permute(v, v, [](size_t lane) { return lane ^ 4; }));
  v = larger(v, permute(v, v, [](size_t lane) { return lane ^ 2; }));
  return larger(v, permute(v, v, [](size_t lane) { return lane ^ 1; }));
}

struct Table {
  float number[8];
};
inline Table table(const float (&numbers)[8]) { return load<Table>(numbers); }
inline Float look_up(const Table& table, Int index) {
  return each<Float>([&](size_t lane) { return table.number[index[lane] & 7]; });
}
struct Table16 {
  float number[16];
};
inline Table16 table16(const float (&numbers)[16]) { return load<Table16>(numbers); }
inline Float look_up(const Table16& table, Int index) {
  return each<Float>([&](size_t lane) { return table.number[index[lane] & 15]; });
}
inline Bytes look_up(Bytes table, Bytes index) {
  return each<Bytes>([&](size_t lane) { return table[index[lane]]; });
}

template <uint32_t kDecisions>
Int decide(Int index, Float a, Float b) {
  return index + index - bits<Int>(a >= b);
}
template <uint32_t kDecisions>
uint32_t decided(uint32_t index, bool bit) {
  return 2 * index + bit;
}

inline Bytes narrow(Int a, Int b, Int c, Int d) {
  using Quarter = Vector<uint8_t, kCount>;
  const Quarter parts[] = {convert<Quarter>(a), convert<Quarter>(b), convert<Quarter>(c),
                           convert<Quarter>(d)};
  return load<Bytes>(parts);
}

inline Vector<uint8_t, kBytes / 2> join_pairs(Bytes v) {
  const auto pairs = bits<Vector<uint16_t>>(v);
  return convert<Vector<uint8_t, kBytes / 2>>(pairs << 4 | pairs >> 8);
}

}  // namespace
}  // namespace dormant::simd
