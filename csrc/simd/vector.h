// Vectors of the level that a source is compiled for, and what compilers know of them without being
// told instructions. Only for NAME_simd.cpp and the headers that they include.
//
// Arithmetic, comparisons (all bits of a lane set where true) and `mask ? a : b` are the compiler's
// own on such types. Everything is in unnamed namespaces, for each level has its own code, and
// these sources may call nothing that leaves an inline function in the object file: the linker
// keeps one copy of such a function for the whole library, and were it that of a higher level, an
// older processor would meet an illegal instruction. So they know neither torch nor the containers.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

#include "simd/level.h"

namespace dormant::simd {
namespace {

#if defined(DORMANT_SIMD_AVX512)
constexpr Level kLevel = Level::avx512;
constexpr size_t kBytes = 64;
#elif defined(DORMANT_SIMD_AVX2)
constexpr Level kLevel = Level::avx2;
constexpr size_t kBytes = 32;
#else
constexpr Level kLevel = Level::portable;
constexpr size_t kBytes = 16;
#endif
using Compiled = At<kLevel>;
constexpr const char* kLevelName = kLevelNames[static_cast<size_t>(kLevel)];

template <class T, size_t kLanes>
struct VectorOf {
  using Type [[gnu::vector_size(kLanes * sizeof(T))]] = T;
};
template <class T, size_t kLanes = kBytes / sizeof(T)>
using Vector = typename VectorOf<T, kLanes>::Type;

// The unsigned integer of so many bytes.
template <size_t kWidth>
using Unsigned = std::conditional_t<
    kWidth == 8, uint64_t,
    std::conditional_t<kWidth == 4, uint32_t, std::conditional_t<kWidth == 2, uint16_t, uint8_t>>>;

using Int = Vector<uint32_t>;
using Long = Vector<uint64_t>;
using Float = Vector<float>;
using Double = Vector<double>;
using Bytes = Vector<uint8_t>;
constexpr size_t kCount = kBytes / sizeof(uint32_t);  // lanes of Int and of Float

template <class V>
constexpr size_t kLanesOf = sizeof(V) / sizeof(V{}[0]);

template <class V>
V load(const void* from) {
  V v;
  std::memcpy(&v, from, sizeof v);
  return v;
}

template <class V>
void store(void* to, V v) {
  std::memcpy(to, &v, sizeof v);
}

// The same bits as another type.
template <class To, class From>
To bits(From from) {
  return __builtin_bit_cast(To, from);
}

// Each lane converted to the type of the lane of `To`.
template <class To, class From>
To convert(From from) {
  return __builtin_convertvector(from, To);
}

// Of lanes that are signed numbers.
inline Float to_float(Int a) { return convert<Float>(bits<Vector<int32_t>>(a)); }
inline Int truncate(Float a) { return bits<Int>(convert<Vector<int32_t>>(a)); }

// `value` in every lane, the sign of zero kept.
template <class V, class T>
V set(T value) {
  return value - V{};
}

// 0, 1, 2, ...
template <class V>
V iota() {
  return []<size_t... lane>(std::index_sequence<lane...>) {
    return V{lane...};
  }(std::make_index_sequence<kLanesOf<V>>());
}

// Lane i is lane Pick()(i) of `a` followed by `b`.
template <class Pick, class V>
V permute(V a, V b, Pick) {
  return [&]<size_t... lane>(std::index_sequence<lane...>) {
    return __builtin_shufflevector(a, b, Pick()(lane)...);
  }(std::make_index_sequence<kLanesOf<V>>());
}

// The half of `v` that starts at lane kFirst.
template <size_t kFirst, class T, size_t kLanes>
Vector<T, kLanes / 2> half(Vector<T, kLanes> v) {
  return [&]<size_t... lane>(std::index_sequence<lane...>) {
    return __builtin_shufflevector(v, v, (kFirst + lane)...);
  }(std::make_index_sequence<kLanes / 2>());
}

template <class V>
V larger(V a, V b) {
  return a > b ? a : b;
}

}  // namespace
}  // namespace dormant::simd
