// The integers of lanes_portable.h.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

namespace dormant::random {
namespace {

struct PortableIntegers {
  static constexpr size_t kCount = 8;
  template <class T, size_t kSize = kCount>
  struct Array {
    T lane[kSize];
  };
  using Int = Array<uint32_t>;

  // The array of function(lane).
  template <class Function>
  static auto each(Function&& function) {
    Array<decltype(function(size_t{0}))> v;
    for (size_t i = 0; i < kCount; ++i) {
      v.lane[i] = function(i);
    }
    return v;
  }

  // Integers.
  static Int load(const uint32_t* from) {
    Int v;
    std::memcpy(v.lane, from, sizeof v.lane);
    return v;
  }
  static void save(uint32_t* to, Int v) { std::memcpy(to, v.lane, sizeof v.lane); }
  static Int set(uint32_t value) {
    return each([&](size_t) { return value; });
  }
  static Int add(Int a, Int b) {
    return each([&](size_t i) { return a.lane[i] + b.lane[i]; });
  }
  static Int sub(Int a, Int b) {
    return each([&](size_t i) { return a.lane[i] - b.lane[i]; });
  }
  static Int bit_and(Int a, Int b) {
    return each([&](size_t i) { return a.lane[i] & b.lane[i]; });
  }
  static Int bit_xor(Int a, Int b) {
    return each([&](size_t i) { return a.lane[i] ^ b.lane[i]; });
  }
  static Int xor3(Int a, Int b, Int c) { return bit_xor(bit_xor(a, b), c); }
  static Int xor_masked(Int a, Int b, Int mask) { return bit_xor(a, bit_and(b, mask)); }
  static Int bit_select(Int mask, Int a, Int b) {
    return each([&](size_t i) { return (a.lane[i] & mask.lane[i]) | (b.lane[i] & ~mask.lane[i]); });
  }
  static Int where_odd(Int a, Int value) {
    return each([&](size_t i) { return (0u - (a.lane[i] & 1u)) & value.lane[i]; });
  }
  template <int kBits>
  static Int shift_left(Int a) {
    return each([&](size_t i) { return a.lane[i] << kBits; });
  }
  template <int kBits>
  static Int shift_right(Int a) {
    return each([&](size_t i) { return a.lane[i] >> kBits; });
  }
  template <int kBits>
  static Int shift_right_signed(Int a) {
    return each(
        [&](size_t i) { return static_cast<uint32_t>(static_cast<int32_t>(a.lane[i]) >> kBits); });
  }

  // For Philox: products of the even lanes, as 64-bit lanes.
  static Int iota() {
    return each([](size_t i) { return static_cast<uint32_t>(i); });
  }
  static Int product_even(Int a, Int b) {
    Int v;
    for (size_t i = 0; i < kCount; i += 2) {
      const uint64_t product = uint64_t{a.lane[i]} * b.lane[i];
      v.lane[i] = static_cast<uint32_t>(product);
      v.lane[i + 1] = static_cast<uint32_t>(product >> 32);
    }
    return v;
  }
  static Int high_half(Int a) {
    for (size_t i = 0; i < kCount; i += 2) {
      a.lane[i] = a.lane[i + 1];
    }
    return a;
  }
  // Lane 2j from lane 2j of `a`, lane 2j + 1 from lane 2j of `b`.
  static Int interleave_even(Int a, Int b) {
    for (size_t i = 0; i < kCount; i += 2) {
      a.lane[i + 1] = b.lane[i];
    }
    return a;
  }
  // Bit i tells whether lane i is at most `limit`, unsigned.
  static uint32_t at_most(Int a, Int limit) {
    uint32_t bits = 0;
    for (uint32_t i = 0; i < kCount; ++i) {
      bits |= static_cast<uint32_t>(a.lane[i] <= limit.lane[i]) << i;
    }
    return bits;
  }
};

}  // namespace
}  // namespace dormant::random
