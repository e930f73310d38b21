// What a processor level offers to decoders of packed integers: codes out of their words, and codes
// into numbers. The same bits at every level.
//
// The number of a code is (code - zero) * scale, rounded once to the format of the result. The
// libraries compute in that format, but there the difference of two codes is exact, so it is the
// same number. What it is where it is NaN is left open: ATen's own loops differ in that.
#pragma once

#include <cstddef>
#include <cstdint>

#include "simd/format.h"
#include "simd/level.h"

namespace dormant::decode {

using simd::Format;  // never float64

struct IntegerKernels {
  const char* name;

  // n codes of 1 to 8 bits each, which follow each other from the lowest bit of a byte on, as
  // bytes.
  void (*unpack)(const uint8_t* packed, size_t bits, size_t n, uint8_t* codes);

  // The same of whole words of eight 4-bit codes in the order of AWQ: those of the even elements
  // are in the low half of a word.
  void (*unpack_awq)(const uint8_t* words, size_t count, uint8_t* codes);

  // Elements as floats, and codes as floats.
  void (*widen)(Format format, const void* from, size_t n, float* to);
  void (*to_floats)(const uint8_t* codes, size_t n, float* to);

  // Each with a zero and a scale of its own.
  void (*scale)(const uint8_t* codes, const float* zeros, const float* scales, size_t n,
                Format format, void* out);

  // The same of codes that are bits [shift, shift + bits) of each pair of words, `high` above
  // `low`; where shift + bits is at most 32 `high` is not read.
  void (*scale_fields)(const uint8_t* low, const uint8_t* high, unsigned shift, unsigned bits,
                       const float* zeros, const float* scales, size_t n, Format format, void* out);

  // Each `group` codes with a zero and a scale; those of the first begin `before` codes earlier.
  void (*scale_groups)(const uint8_t* codes, size_t before, size_t group, const float* zeros,
                       const float* scales, size_t n, Format format, void* out);

  static const IntegerKernels& at(simd::At<simd::Level::portable>);
  static const IntegerKernels& at(simd::At<simd::Level::avx2>);
  static const IntegerKernels& at(simd::At<simd::Level::avx512>);
};

}  // namespace dormant::decode
