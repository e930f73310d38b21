// What a processor level offers to the quantizers: whole blocks and whole rows of elements, the
// same bits at every level.
#pragma once

#include <cstddef>
#include <cstdint>

#include "simd/format.h"
#include "simd/level.h"

namespace dormant::quantization {

using simd::Format;  // of the elements that are quantized; never float64

// Block sizes are multiples of this.
constexpr size_t kGroup = 32;

// Divisors below this are raised to it, so that a block of zeros has a scale.
constexpr float kSmallestDivisor = 1e-38f;

// Sixteen codes by value: an element takes code[k] where k middles are below it. All of them are if
// it is NaN, and a middle that it equals is not.
struct FourBitTable {
  alignas(64) float middle[16];  // ascending; the last is unused
  alignas(16) uint8_t code[16];
};

// How a block is scaled into [-1, 1]: bitsandbytes multiplies full blocks by a reciprocal and
// divides the elements of an incomplete one, whose absmax it also stores raised.
enum class Scaling : uint8_t { multiply, divide };

struct Kernels {
  const char* name;

  // Packs `blocks` blocks of `block_size` elements, a multiple of kGroup, into two codes a byte,
  // the first in the high half; `absmax` gets a number for each.
  void (*four_bit)(const FourBitTable& table, Scaling scaling, Format format, const void* source,
                   size_t block_size, size_t blocks, uint8_t* packed, float* absmax);

  // Rows of any length, rounded to float16 first, as int8 between -127 and 127.
  void (*int8_rows)(Format format, const void* source, size_t columns, size_t rows, int8_t* out,
                    float* absmax);

  static const Kernels& at(simd::At<simd::Level::portable>);
  static const Kernels& at(simd::At<simd::Level::avx2>);
  static const Kernels& at(simd::At<simd::Level::avx512>);
};

}  // namespace dormant::quantization
