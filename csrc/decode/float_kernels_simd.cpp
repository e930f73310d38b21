#include <cstddef>
#include <cstdint>
#include <cstring>

#include "decode/float_kernels.h"
#include "simd/lanes.h"

namespace dormant::decode {
namespace {

using simd::Float;
using simd::Int;
using simd::kCount;

using Codes = simd::Vector<uint8_t, kCount>;

// Exact: every number of a byte is a normal float32.
template <Fp8 kKind>
Float value(Codes codes) {
  if constexpr (kKind == Fp8::e5m2) {
    // The upper half of a float16.
    return simd::from_half(simd::narrow(simd::widen(codes)) << 8);
  } else {
    const Int code = simd::widen(codes);
    const Int magnitude = code & 0x7fu;
    const Int normal = (magnitude << 20) + (120u << 23);
    // Below 2^-6: eighths of it, without the leading one that the exponent adds.
    const Float subnormal = simd::bits<Float>((magnitude << 20) + (121u << 23)) - 0x1p-6f;
    Int word = magnitude < 8u ? simd::bits<Int>(subnormal) : normal;
    word = magnitude == 0x7fu ? simd::set<Int>(0x7fc00000u) : word;
    return simd::bits<Float>(word | (code & 0x80u) << 24);
  }
}

template <Format kFormat>
void store_rounded(void* to, Float v) {
  if constexpr (kFormat == Format::bfloat16) {
    v = simd::round<kFormat>(v);
  }
  simd::store_elements<kFormat>(to, v);  // which rounds to float16
}

// Calls step(source, out) for each kStep elements of `count`; each byte of the
// source has kPer of them. The last step works on copies.
template <size_t kStep, size_t kPer, size_t kWidth, class Step>
void each_step(const uint8_t* from, size_t count, unsigned char* out, Step&& step) {
  size_t i = 0;
  for (; i + kStep <= count; i += kStep) {
    step(from + i / kPer, out + i * kWidth);
  }
  if (i < count) {
    const size_t rest = count - i;
    uint8_t codes[kStep / kPer] = {};
    unsigned char last[kStep * kWidth];
    std::memcpy(codes, from + i / kPer, (rest + kPer - 1) / kPer);
    step(codes, last);
    std::memcpy(out + i * kWidth, last, rest * kWidth);
  }
}

template <Fp8 kKind, Format kFormat>
void fp8_as(const uint8_t* from, size_t count, float scale, unsigned char* out) {
  const auto by = simd::set<Float>(scale);
  each_step<kCount, 1, simd::kWidth<kFormat>>(
      from, count, out, [&](const uint8_t* codes, unsigned char* to) {
        const Float v = value<kKind>(simd::load<Codes>(codes)) * by;
        store_rounded<kFormat>(to, v);
      });
}

void fp8(Fp8 kind, Format format, const uint8_t* from, size_t count, float scale, void* out) {
  simd::with_format(format, [&]<Format kFormat>() {
    if constexpr (kFormat != Format::float64) {  // excluded by the contract
      const auto kernel =
          kind == Fp8::e4m3 ? fp8_as<Fp8::e4m3, kFormat> : fp8_as<Fp8::e5m2, kFormat>;
      kernel(from, count, scale, static_cast<unsigned char*>(out));
    }
  });
}

template <Format kFormat>
void int8_as(const uint8_t* from, size_t count, float zero, float scale, float factor,
             unsigned char* out) {
  const auto less = simd::set<Float>(zero);
  const auto by = simd::set<Float>(scale);
  const auto last = simd::set<Float>(factor);
  each_step<kCount, 1, simd::kWidth<kFormat>>(
      from, count, out, [&](const uint8_t* codes, unsigned char* to) {
        const Int integers = simd::widen_signed(simd::load<Codes>(codes));
        const Float v = simd::convert<Float>(simd::bits<simd::Vector<int32_t>>(integers));
        store_rounded<kFormat>(to, (v - less) * by * last);
      });
}

void int8(Format format, const int8_t* from, size_t count, float zero, float scale, float factor,
          void* out) {
  simd::with_format(format, [&]<Format kFormat>() {
    if constexpr (kFormat != Format::float64) {
      int8_as<kFormat>(reinterpret_cast<const uint8_t*>(from), count, zero, scale, factor,
                       static_cast<unsigned char*>(out));
    }
  });
}

template <Nibbles kOrder, Format kFormat>
void four_bit_as(const FourBitValues& values, const uint8_t* from, size_t count, float scale,
                 unsigned char* out) {
  constexpr size_t kWidth = simd::kWidth<kFormat>;
  const auto by = simd::set<Float>(scale);
  const auto table = simd::table16(values.value);
  each_step<2 * kCount, 2, kWidth>(from, count, out, [&](const uint8_t* codes, unsigned char* to) {
    const Int pairs = simd::widen(simd::load<Codes>(codes));
    const Float low = simd::look_up(table, pairs & 15u) * by;
    const Float high = simd::look_up(table, pairs >> 4) * by;
    const Float first = kOrder == Nibbles::low_first ? low : high;
    const Float second = kOrder == Nibbles::low_first ? high : low;
    // Lanes in turn of both.
    const auto mixed = [&]<size_t kFrom>() {
      return simd::permute(first, second, [](size_t lane) {
        return kFrom + lane / 2 + (lane % 2 != 0 ? kCount : 0);
      });
    };
    const Float one = mixed.template operator()<0>();
    const Float other = mixed.template operator()<kCount / 2>();
    store_rounded<kFormat>(to, one);
    store_rounded<kFormat>(to + kCount * kWidth, other);
  });
}

void four_bit(const FourBitValues& values, Nibbles order, Format format, const uint8_t* from,
              size_t count, float scale, void* out) {
  simd::with_format(format, [&]<Format kFormat>() {
    if constexpr (kFormat != Format::float64) {
      const auto kernel = order == Nibbles::low_first ? four_bit_as<Nibbles::low_first, kFormat>
                                                      : four_bit_as<Nibbles::high_first, kFormat>;
      kernel(values, from, count, scale, static_cast<unsigned char*>(out));
    }
  });
}

constexpr FloatKernels kKernels = {simd::kLevelName, fp8, int8, four_bit};

}  // namespace

const FloatKernels& FloatKernels::at(simd::Compiled) { return kKernels; }

}  // namespace dormant::decode
