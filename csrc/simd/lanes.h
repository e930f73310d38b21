// What kernels include: the vectors of this level, and elements of memory in them.
#pragma once

#include "simd/format.h"
#include "simd/vector.h"

#if defined(DORMANT_SIMD_AVX512)
#include "simd/avx512.h"
#elif defined(DORMANT_SIMD_AVX2)
#include "simd/avx2.h"
#else
#include "simd/portable.h"
#endif

namespace dormant::simd {
namespace {

// kCount elements as floats.
template <Format kFormat>
Float load_elements(const void* from) {
  if constexpr (kFormat == Format::float32) {
    return load<Float>(from);
  } else {
    const auto halves = load<Vector<uint16_t, kCount>>(from);
    if constexpr (kFormat == Format::bfloat16) {
      return bits<Float>(widen(halves) << 16);
    } else {
      return from_half(halves);
    }
  }
}

// 16 bytes, the first lane of which is the largest of `v`.
template <class T, size_t kLanes>
Vector<T, 16 / sizeof(T)> largest(Vector<T, kLanes> v) {
  if constexpr (sizeof v > 16) {
    return largest<T, kLanes / 2>(larger(half<0, T, kLanes>(v), half<kLanes / 2, T, kLanes>(v)));
  } else if constexpr (kLanes == 8) {
    return largest_of_eight(v);
  } else {
    v = larger(v, permute(v, v, [](size_t lane) { return lane ^ 2; }));
    return larger(v, permute(v, v, [](size_t lane) { return lane ^ 1; }));
  }
}

// The first of the elements in 16 bytes.
template <Format kFormat>
float first_element(Vector<Unsigned<kWidth<kFormat>>, 16 / kWidth<kFormat>> elements) {
  if constexpr (kFormat == Format::float32) {
    return bits<Vector<float, 4>>(elements)[0];
  } else if constexpr (kFormat == Format::bfloat16) {
    return bits<Vector<float, 4>>(bits<Vector<uint32_t, 4>>(elements) << 16)[0];
  } else {
    return first_half(elements);
  }
}

// `v` rounded to the format.
template <Format kFormat>
Float round(Float v) {
  if constexpr (kFormat == Format::bfloat16) {
    const Int exact = bits<Int>(v);
    const Int rounded = (exact + (exact >> 16 & 1u) + 0x7fffu) & 0xffff0000u;
    return v == v ? bits<Float>(rounded) : bits<Float>(set<Int>(0x7fc00000u));
  } else if constexpr (kFormat == Format::float16) {
    return from_half(to_half(v));
  } else {
    return v;
  }
}

// Stores kCount numbers that are already rounded to the format.
template <Format kFormat>
void store_elements(void* to, Float v) {
  if constexpr (kFormat == Format::float32) {
    store(to, v);
  } else if constexpr (kFormat == Format::bfloat16) {
    store(to, narrow(bits<Int>(v) >> 16));
  } else {
    store(to, to_half(v));
  }
}

// scale * u + offset, rounded as ATen's scalar code is at this level.
template <class V>
V affine(V u, V scale, V offset) {
  if constexpr (kContracted) {
    return fma(u, scale, offset);
  } else {
    return u * scale + offset;
  }
}

}  // namespace
}  // namespace dormant::simd
