// Eight 32-bit lanes as plain arrays: what processors without AVX2 use, and a reference for those
// with it.
//
// Arithmetic is that of ATen's scalar code at its default level: a product and a sum, each rounded,
// unless the target always has fused multiply-add (arm64), where compilers contract the two.
#pragma once

#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>

#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "random/integer_lanes_portable.h"
#include "random/stream_kernels.h"

namespace dormant::random {
namespace {

struct PortableLanes : PortableIntegers {
  using Float = Array<float>;
  using Double = Array<double, 4>;
  using Mask = Array<bool>;

  using PortableIntegers::add;
  using PortableIntegers::sub;

  static Float set_float(float value) {
    return each([&](size_t) { return value; });
  }
  static Float to_float(Int a) {
    return each([&](size_t i) { return static_cast<float>(static_cast<int32_t>(a.lane[i])); });
  }
  static Int truncate(Float a) {
    return each([&](size_t i) { return static_cast<uint32_t>(static_cast<int32_t>(a.lane[i])); });
  }
  static Float as_float(Int a) { return std::bit_cast<Float>(a); }
  static Int as_int(Float a) { return std::bit_cast<Int>(a); }
  static Float add(Float a, Float b) {
    return each([&](size_t i) { return a.lane[i] + b.lane[i]; });
  }
  static Float sub(Float a, Float b) {
    return each([&](size_t i) { return a.lane[i] - b.lane[i]; });
  }
  static Float mul(Float a, Float b) {
    return each([&](size_t i) { return a.lane[i] * b.lane[i]; });
  }
  static Float fma(Float a, Float b, Float c) {
    return each([&](size_t i) { return std::fma(a.lane[i], b.lane[i], c.lane[i]); });
  }
  static Float fms(Float a, Float b, Float c) {
    return each([&](size_t i) { return std::fma(a.lane[i], b.lane[i], -c.lane[i]); });
  }
  static Float fnms(Float a, Float b, Float c) {
    return each([&](size_t i) { return std::fma(-a.lane[i], b.lane[i], -c.lane[i]); });
  }
  static Float sqrt(Float a) {
    return each([&](size_t i) { return std::sqrt(a.lane[i]); });
  }
  static Mask equal(Float a, Float b) {
    return each([&](size_t i) { return a.lane[i] == b.lane[i]; });
  }
  static Mask has_bit(Int a, Int bit) {
    return each([&](size_t i) { return (a.lane[i] & bit.lane[i]) != 0; });
  }
  static Float select(Mask mask, Float a, Float b) {
    return each([&](size_t i) { return mask.lane[i] ? a.lane[i] : b.lane[i]; });
  }
  static Float affine(Float u, Float scale, Float offset) {
    return each([&](size_t i) { return multiply_add(u.lane[i], scale.lane[i], offset.lane[i]); });
  }
  static Double affine(Double u, Double scale, Double offset) {
    Double v;
    for (size_t i = 0; i < kDoubles; ++i) {
      v.lane[i] = multiply_add(u.lane[i], scale.lane[i], offset.lane[i]);
    }
    return v;
  }

  // Eight pairs: lane j of `first` and `second` are words j and j + 8 of a block of 16.
  static void load_pairs(const uint32_t* from, Int& first, Int& second) {
    first = load(from);
    second = load(from + kCount);
  }
  static void restore_order(Float&, Float&) {}

  // 16 elements from two vectors. Values of the 16-bit formats are rounded already (round), so this
  // only packs.
  template <Format kFormat>
  static Float round(Float v) {
    if constexpr (kFormat == Format::bfloat16) {
      return each([&](size_t i) { return static_cast<float>(c10::BFloat16(v.lane[i])); });
    } else if constexpr (kFormat == Format::float16) {
      return each([&](size_t i) { return static_cast<float>(c10::Half(v.lane[i])); });
    } else {
      return v;
    }
  }
  template <Format kFormat>
  static void store(void* to, Float low, Float high) {
    if constexpr (kFormat == Format::float32) {
      std::memcpy(to, low.lane, sizeof low.lane);
      std::memcpy(static_cast<float*>(to) + kCount, high.lane, sizeof high.lane);
    } else {
      uint16_t packed[2 * kCount];
      for (size_t i = 0; i < kCount; ++i) {
        packed[i] = pack<kFormat>(low.lane[i]);
        packed[i + kCount] = pack<kFormat>(high.lane[i]);
      }
      std::memcpy(to, packed, sizeof packed);
    }
  }

  // Doubles: four lanes from eight draws, the first draw of a pair being the high half of 53 bits.
  static constexpr size_t kDoubles = 4;
  static Double set_double(double value) { return {{value, value, value, value}}; }
  static Double load_uniform53(const uint32_t* from) {
    Double v;
    for (size_t i = 0; i < kDoubles; ++i) {
      v.lane[i] = static_cast<double>(number53(from + 2 * i)) * 0x1p-53;
    }
    return v;
  }
  static Double select_equal(Double a, Double b, Double then) {
    for (size_t i = 0; i < kDoubles; ++i) {
      a.lane[i] = a.lane[i] == b.lane[i] ? then.lane[i] : a.lane[i];
    }
    return a;
  }
  static void store(double* to, Double v) { std::memcpy(to, v.lane, sizeof v.lane); }

  // Bit i tells whether the 53-bit number of draws 2i and 2i + 1 is below `threshold`, for 32
  // numbers.
  static uint32_t below53(const uint32_t* draws, uint64_t threshold) {
    uint32_t bits = 0;
    for (uint32_t i = 0; i < 32; ++i) {
      bits |= static_cast<uint32_t>(number53(draws + 2 * i) < threshold) << i;
    }
    return bits;
  }
  // 32 elements, each `one` where its bit is set.
  template <size_t kWidth>
  static void store_bits(void* to, uint32_t bits, uint64_t one) {
    for (uint32_t i = 0; i < 32; ++i) {
      const uint64_t element = (bits >> i & 1u) != 0 ? one : 0;
      write_low_bytes<kWidth>(static_cast<unsigned char*>(to) + i * kWidth, element);
    }
  }

 private:
  template <class T>
  static T multiply_add(T a, T b, T c) {
#if defined(__aarch64__)
    return std::fma(a, b, c);
#else
    return a * b + c;
#endif
  }
  template <Format kFormat>
  static uint16_t pack(float v) {
    return kFormat == Format::bfloat16 ? c10::BFloat16(v).x : c10::Half(v).x;
  }
  static uint64_t number53(const uint32_t* from) {
    return (uint64_t{from[0]} << 32 | from[1]) & ((uint64_t{1} << 53) - 1);
  }
  template <size_t kWidth>
  static void write_low_bytes(unsigned char* to, uint64_t element) {
    if constexpr (kWidth == 1) {
      write(to, static_cast<uint8_t>(element));
    } else if constexpr (kWidth == 2) {
      write(to, static_cast<uint16_t>(element));
    } else if constexpr (kWidth == 4) {
      write(to, static_cast<uint32_t>(element));
    } else {
      write(to, element);
    }
  }
  template <class T>
  static void write(unsigned char* to, T value) {
    std::memcpy(to, &value, sizeof value);
  }
};

}  // namespace
}  // namespace dormant::random
