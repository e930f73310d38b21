// What a processor level offers to the decoders of narrow numbers: runs of codes times one scale,
// the same bits at every level.
#pragma once

#include <cstddef>
#include <cstdint>

#include "simd/format.h"
#include "simd/level.h"

namespace dormant::decode {

using simd::Format;  // of what is decoded; never float64

enum class Fp8 : uint8_t { e4m3, e5m2 };

// Which of the two codes in a byte comes first.
enum class Nibbles : uint8_t { low_first, high_first };

// The numbers that 16 codes stand for.
struct FourBitValues {
  alignas(64) float value[16];
};

// Products are rounded to float32, and then to `format`.
struct FloatKernels {
  const char* name;

  // `count` numbers of a byte times `scale`.
  void (*fp8)(Fp8 kind, Format format, const uint8_t* from, size_t count, float scale, void* out);

  // `count` integers less `zero`, times `scale`, and that times `factor`.
  void (*int8)(Format format, const int8_t* from, size_t count, float zero, float scale,
               float factor, void* out);

  // `count` numbers that codes stand for times `scale`, from the first half of the first byte on.
  void (*four_bit)(const FourBitValues& values, Nibbles order, Format format, const uint8_t* from,
                   size_t count, float scale, void* out);

  static const FloatKernels& at(simd::At<simd::Level::portable>);
  static const FloatKernels& at(simd::At<simd::Level::avx2>);
  static const FloatKernels& at(simd::At<simd::Level::avx512>);
};

}  // namespace dormant::decode
