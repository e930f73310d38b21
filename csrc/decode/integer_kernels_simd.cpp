#include <cstddef>
#include <cstdint>
#include <cstring>

#include "decode/integer_kernels.h"
#include "simd/lanes.h"

namespace dormant::decode {
namespace {

using simd::Bytes;
using simd::Float;
using simd::Int;
using simd::kBytes;
using simd::kCount;

using Codes = simd::Vector<uint8_t, kCount>;

Float floats_of(Codes codes) { return simd::to_float(simd::widen(codes)); }

// Rounds numbers to the format and stores them.
template <Format kFormat>
void store_rounded(void* to, Float v) {
  if constexpr (kFormat == Format::float16) {
    simd::store_elements<kFormat>(to, v);  // which rounds
  } else {
    simd::store_elements<kFormat>(to, simd::round<kFormat>(v));
  }
}

// Calls step(i) for i = 0, kCount, ... and last(i, rest) where fewer elements are left.
template <class Step, class Last>
void by_vectors(size_t n, const Step& step, const Last& last) {
  size_t i = 0;
  for (; i + kCount <= n; i += kCount) {
    step(i);
  }
  if (i < n) {
    last(i, n - i);
  }
}

// `count` of the lanes that `from` has, the others zero.
template <class V, class T>
V load_some(const T* from, size_t count) {
  V v = {};
  std::memcpy(&v, from, count * sizeof(T));
  return v;
}

// Stores `count` of the numbers.
template <Format kFormat>
void store_some(void* to, Float v, size_t count) {
  alignas(64) unsigned char all[kCount * simd::kWidth<kFormat>];
  store_rounded<kFormat>(all, v);
  std::memcpy(to, all, count * simd::kWidth<kFormat>);
}

// Lane 2 i is lane i of `a`, lane 2 i + 1 that of `b`.
template <size_t kLanes>
simd::Vector<uint8_t, 2 * kLanes> interleave(simd::Vector<uint8_t, kLanes> a,
                                             simd::Vector<uint8_t, kLanes> b) {
  return [&]<size_t... lane>(std::index_sequence<lane...>) {
    return __builtin_shufflevector(a, b, (lane / 2 + lane % 2 * kLanes)...);
  }(std::make_index_sequence<2 * kLanes>());
}

void unpack_nibbles(const uint8_t* packed, size_t n, uint8_t* codes) {
  using Half = simd::Vector<uint8_t, kBytes / 2>;
  size_t i = 0;
  for (; i + kBytes <= n; i += kBytes) {
    const auto both = simd::load<Half>(packed + i / 2);
    simd::store(codes + i, interleave<kBytes / 2>(both & uint8_t{15}, both >> 4));
  }
  for (; i < n; ++i) {
    codes[i] = static_cast<uint8_t>(packed[i / 2] >> i % 2 * 4) & 15;
  }
}

// Any number of bits: eight codes fill whole bytes, and four of them lie in 32 bits.
template <uint32_t kBits>
void unpack_bits(const uint8_t* packed, size_t n, uint8_t* codes) {
  constexpr uint32_t kMask = (1U << kBits) - 1;
  constexpr size_t kSecondFour = 4 * kBits / 8;
  constexpr uint32_t kShift = 4 * kBits % 8;  // of the second four
  const Int shifts = simd::iota<Int>() % 4 * kBits + simd::iota<Int>() / 4 % 2 * kShift;
  const auto four = [&](size_t i) {
    uint32_t word = 0;
    std::memcpy(&word, packed + i / 8 * kBits + i % 8 / 4 * kSecondFour, sizeof word);
    return word;
  };
  const auto vector = [&](size_t i) {
    const Int words = [&]<size_t... lane>(std::index_sequence<lane...>) {
      uint32_t of[kCount / 4];
      for (size_t part = 0; part < kCount / 4; ++part) {
        of[part] = four(i + 4 * part);
      }
      return Int{of[lane / 4]...};
    }(std::make_index_sequence<kCount>());
    // Where a vector has four lanes, every other one is a second four.
    const Int more = kCount == 4 && i % 8 != 0 ? simd::set<Int>(kShift) : Int{};
    return words >> (shifts + more) & kMask;
  };
  size_t i = 0;
  // The last word that a step loads may reach into the codes after it, 24 of them at one bit.
  for (; i + kBytes + 32 <= n; i += kBytes) {
    simd::store(codes + i, simd::narrow(vector(i), vector(i + kCount), vector(i + 2 * kCount),
                                        vector(i + 3 * kCount)));
  }
  for (; i < n; ++i) {
    const size_t bit = i * kBits;
    uint32_t word = packed[bit / 8];
    if (bit % 8 + kBits > 8) {
      word |= static_cast<uint32_t>(packed[bit / 8 + 1]) << 8;
    }
    codes[i] = static_cast<uint8_t>(word >> bit % 8 & kMask);
  }
}

void unpack(const uint8_t* packed, size_t bits, size_t n, uint8_t* codes) {
  switch (bits) {
    case 1:
      return unpack_bits<1>(packed, n, codes);
    case 2:
      return unpack_bits<2>(packed, n, codes);
    case 3:
      return unpack_bits<3>(packed, n, codes);
    case 4:
      return unpack_nibbles(packed, n, codes);
    case 5:
      return unpack_bits<5>(packed, n, codes);
    case 6:
      return unpack_bits<6>(packed, n, codes);
    case 7:
      return unpack_bits<7>(packed, n, codes);
    default:
      std::memcpy(codes, packed, n);
  }
}

void unpack_awq(const uint8_t* words, size_t count, uint8_t* codes) {
  // Of elements 0, 1, 2, ... 7: a word whose bytes are b0 to b3 keeps 0, 2, 4, 6 in b0 and b1, the
  // low nibble first, and 1, 3, 5, 7 in b2 and b3.
  constexpr size_t kWords = kBytes / 8;
  using Words = simd::Vector<uint8_t, 4 * kWords>;
  const auto spread = [](Words low, Words high) {
    return [&]<size_t... lane>(std::index_sequence<lane...>) {
      return __builtin_shufflevector(
          low, high, (lane / 8 * 4 + lane % 2 * 2 + lane % 8 / 4 + lane % 4 / 2 * 4 * kWords)...);
    }(std::make_index_sequence<kBytes>());
  };
  size_t i = 0;
  for (; i + kWords <= count; i += kWords) {
    const auto v = simd::load<Words>(words + 4 * i);
    simd::store(codes + 8 * i, spread(v & uint8_t{15}, v >> 4));
  }
  for (; i < count; ++i) {
    for (size_t lane = 0; lane < 8; ++lane) {
      const uint8_t byte = words[4 * i + lane % 2 * 2 + lane / 4];
      codes[8 * i + lane] = lane % 4 < 2 ? byte & 15 : byte >> 4;
    }
  }
}

template <Format kFormat>
void widen_as(const unsigned char* from, size_t n, float* to) {
  constexpr size_t kWidth = simd::kWidth<kFormat>;
  by_vectors(
      n, [&](size_t i) { simd::store(to + i, simd::load_elements<kFormat>(from + i * kWidth)); },
      [&](size_t i, size_t rest) {
        alignas(64) unsigned char some[kCount * kWidth] = {};
        std::memcpy(some, from + i * kWidth, rest * kWidth);
        const Float v = simd::load_elements<kFormat>(some);
        std::memcpy(to + i, &v, rest * sizeof(float));
      });
}

void widen(Format format, const void* from, size_t n, float* to) {
  simd::with_format(format, [&]<Format kFormat>() {
    if constexpr (kFormat != Format::float64) {  // excluded by the contract
      widen_as<kFormat>(static_cast<const unsigned char*>(from), n, to);
    }
  });
}

void to_floats(const uint8_t* codes, size_t n, float* to) {
  by_vectors(
      n, [&](size_t i) { simd::store(to + i, floats_of(simd::load<Codes>(codes + i))); },
      [&](size_t i, size_t rest) {
        const Float v = floats_of(load_some<Codes>(codes + i, rest));
        std::memcpy(to + i, &v, rest * sizeof(float));
      });
}

template <Format kFormat>
void scale_as(const uint8_t* codes, const float* zeros, const float* scales, size_t n,
              unsigned char* out) {
  by_vectors(
      n,
      [&](size_t i) {
        const Float difference =
            floats_of(simd::load<Codes>(codes + i)) - simd::load<Float>(zeros + i);
        store_rounded<kFormat>(out + i * simd::kWidth<kFormat>,
                               difference * simd::load<Float>(scales + i));
      },
      [&](size_t i, size_t rest) {
        const Float difference =
            floats_of(load_some<Codes>(codes + i, rest)) - load_some<Float>(zeros + i, rest);
        store_some<kFormat>(out + i * simd::kWidth<kFormat>,
                            difference * load_some<Float>(scales + i, rest), rest);
      });
}

void scale(const uint8_t* codes, const float* zeros, const float* scales, size_t n, Format format,
           void* out) {
  simd::with_format(format, [&]<Format kFormat>() {
    if constexpr (kFormat != Format::float64) {
      scale_as<kFormat>(codes, zeros, scales, n, static_cast<unsigned char*>(out));
    }
  });
}

template <Format kFormat, bool kCrosses>
void scale_fields_as(const uint8_t* low, const uint8_t* high, unsigned shift, unsigned bits,
                     const float* zeros, const float* scales, size_t n, unsigned char* out) {
  const uint32_t mask = (uint32_t{1} << bits) - 1;
  const auto code = [&](Int below, Int above) {
    Int field = below >> shift;
    if constexpr (kCrosses) {
      field |= above << (32 - shift);
    }
    return simd::to_float(field & mask);
  };
  by_vectors(
      n,
      [&](size_t i) {
        const Float v =
            code(simd::load<Int>(low + 4 * i), kCrosses ? simd::load<Int>(high + 4 * i) : Int{});
        store_rounded<kFormat>(out + i * simd::kWidth<kFormat>,
                               (v - simd::load<Float>(zeros + i)) * simd::load<Float>(scales + i));
      },
      [&](size_t i, size_t rest) {
        const Float v = code(load_some<Int>(low + 4 * i, 4 * rest),
                             kCrosses ? load_some<Int>(high + 4 * i, 4 * rest) : Int{});
        store_some<kFormat>(
            out + i * simd::kWidth<kFormat>,
            (v - load_some<Float>(zeros + i, rest)) * load_some<Float>(scales + i, rest), rest);
      });
}

void scale_fields(const uint8_t* low, const uint8_t* high, unsigned shift, unsigned bits,
                  const float* zeros, const float* scales, size_t n, Format format, void* out) {
  simd::with_format(format, [&]<Format kFormat>() {
    if constexpr (kFormat != Format::float64) {
      const auto kernel =
          shift + bits > 32 ? scale_fields_as<kFormat, true> : scale_fields_as<kFormat, false>;
      kernel(low, high, shift, bits, zeros, scales, n, static_cast<unsigned char*>(out));
    }
  });
}

template <Format kFormat>
void scale_groups_as(const uint8_t* codes, size_t before, size_t group, const float* zeros,
                     const float* scales, size_t n, unsigned char* out) {
  constexpr size_t kWidth = simd::kWidth<kFormat>;
  while (n != 0) {
    const size_t count = group - before < n ? group - before : n;
    const auto zero = simd::set<Float>(*zeros);
    const auto by = simd::set<Float>(*scales);
    const auto number = [&](Codes code) { return (floats_of(code) - zero) * by; };
    by_vectors(
        count,
        [&](size_t i) {
          store_rounded<kFormat>(out + i * kWidth, number(simd::load<Codes>(codes + i)));
        },
        [&](size_t i, size_t rest) {
          store_some<kFormat>(out + i * kWidth, number(load_some<Codes>(codes + i, rest)), rest);
        });
    before = 0;
    ++zeros;
    ++scales;
    codes += count;
    out += count * kWidth;
    n -= count;
  }
}

void scale_groups(const uint8_t* codes, size_t before, size_t group, const float* zeros,
                  const float* scales, size_t n, Format format, void* out) {
  simd::with_format(format, [&]<Format kFormat>() {
    if constexpr (kFormat != Format::float64) {
      scale_groups_as<kFormat>(codes, before, group, zeros, scales, n,
                               static_cast<unsigned char*>(out));
    }
  });
}

constexpr IntegerKernels kKernels = {simd::kLevelName, unpack, unpack_awq,   widen,
                                     to_floats,        scale,  scale_fields, scale_groups};

}  // namespace

const IntegerKernels& IntegerKernels::at(simd::Compiled) { return kKernels; }

}  // namespace dormant::decode
