// What a processor level offers to the decoders of narrow floating point numbers: runs of elements
// times one scale, the same bits at every level.
#pragma once

#include <cstddef>
#include <cstdint>

#include "simd/format.h"
#include "simd/level.h"

namespace dormant::decode {

using simd::Format;  // of what is decoded; never float64

enum class Fp8 : uint8_t { e4m3, e5m2 };

struct FloatKernels {
  const char* name;

  // `count` numbers of a byte as float32, times `scale`, rounded to `format`.
  void (*fp8)(Fp8 kind, Format format, const uint8_t* from, size_t count, float scale, void* out);

  static const FloatKernels& at(simd::At<simd::Level::portable>);
  static const FloatKernels& at(simd::At<simd::Level::avx2>);
  static const FloatKernels& at(simd::At<simd::Level::avx512>);
};

}  // namespace dormant::decode
