// What a processor level offers to the decoder of GGUF: whole blocks to floats, the same bits at
// every level.
#pragma once

#include <cstddef>
#include <cstdint>

#include "simd/level.h"

namespace dormant::decode {

// The encodings of ggml that there are kernels for, by ggml's names.
enum class BlockCode : uint8_t {
  q4_0,
  q4_1,
  q5_0,
  q5_1,
  q8_0,
  q2_k,
  q3_k,
  q4_k,
  q5_k,
  q6_k,
  tq1_0,
  tq2_0,
  iq4_nl,
  iq4_xs,
  mxfp4,
  nvfp4,
};
inline constexpr size_t kBlockCodes = static_cast<size_t>(BlockCode::nvfp4) + 1;

// Decodes `count` blocks that lie one after the other, at any address.
using DecodeBlocks = void (*)(const uint8_t* blocks, size_t count, float* out);

struct GgufKernels {
  const char* name;
  DecodeBlocks decode[kBlockCodes];  // by BlockCode

  static const GgufKernels& at(simd::At<simd::Level::portable>);
  static const GgufKernels& at(simd::At<simd::Level::avx2>);
  static const GgufKernels& at(simd::At<simd::Level::avx512>);
};

}  // namespace dormant::decode
