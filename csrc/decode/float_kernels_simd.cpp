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
    return simd::from_half(simd::convert<simd::Vector<uint16_t, kCount>>(codes) << 8);
  } else {
    const Int code = simd::convert<Int>(codes);
    const Int magnitude = code & 0x7fu;
    const Int normal = (magnitude << 20) + (120u << 23);
    // Below 2^-6: eighths of it, without the leading one that the exponent adds.
    const Float subnormal = simd::bits<Float>((magnitude << 20) + (121u << 23)) - 0x1p-6f;
    Int word = magnitude < 8u ? simd::bits<Int>(subnormal) : normal;
    word = magnitude == 0x7fu ? simd::set<Int>(0x7fc00000u) : word;
    return simd::bits<Float>(word | (code & 0x80u) << 24);
  }
}

template <Fp8 kKind, Format kFormat>
void fp8_as(const uint8_t* from, size_t count, float scale, unsigned char* out) {
  constexpr size_t kVector = kCount * simd::kWidth<kFormat>;
  const auto by = simd::set<Float>(scale);
  const auto step = [&](const uint8_t* source, unsigned char* to) {
    const Float v = value<kKind>(simd::load<Codes>(source)) * by;
    simd::store_elements<kFormat>(to, simd::round<kFormat>(v));
  };
  size_t i = 0;
  for (; i + kCount <= count; i += kCount) {
    step(from + i, out + i * simd::kWidth<kFormat>);
  }
  if (i < count) {
    uint8_t codes[kCount] = {};
    unsigned char last[kVector];
    std::memcpy(codes, from + i, count - i);
    step(codes, last);
    std::memcpy(out + i * simd::kWidth<kFormat>, last, (count - i) * simd::kWidth<kFormat>);
  }
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

constexpr FloatKernels kKernels = {simd::kLevelName, fp8};

}  // namespace

const FloatKernels& FloatKernels::at(simd::Compiled) { return kKernels; }

}  // namespace dormant::decode
