// What a processor level offers to Stream (stream.h): the engine's block and the kernels that draw
// from it.
#pragma once

#include <cstddef>
#include <cstdint>

#include "simd/format.h"
#include "simd/level.h"

namespace dormant::random {

using simd::Format;

// 624 words of mt19937 and how many of them were drawn; 624 means that the next draw twists first.
struct EngineBlock {
  static constexpr uint32_t kWords = 624;
  static constexpr uint32_t kMiddle = 397;  // the recurrence adds the word this far ahead
  static constexpr uint32_t kOverlap =
      16;  // a twist leaves the first new words here too, so vectors may run over

  alignas(64) uint32_t words[kWords + kOverlap];
  uint32_t used;
};

// Kernels of one processor level. All are exact: the same draws and bits as ATen at the level that
// the table is named after (exact_path.h checks that). `n` counts elements; every kernel moves the
// block by what ATen would draw.
struct StreamKernels {
  const char* name;

  // `blocks` twists.
  void (*twist)(EngineBlock& block, uint64_t blocks);

  // uniform_(from, to) of any format. One draw an element, two for float64.
  void (*uniform)(EngineBlock& block, Format format, void* out, size_t n, double from, double to);

  // Whole blocks of normal_(mean, std): `n` is a multiple of 16, format isn't float64. One draw an
  // element. Null where there is no exact kernel.
  void (*block_normal)(EngineBlock& block, Format format, void* out, size_t n, double mean,
                       double std);

  // bernoulli_(p), two draws an element. Elements have `width` bytes (1, 2, 4 or 8) and are zero or
  // the `width` low bytes of `one`.
  void (*bernoulli)(EngineBlock& block, size_t width, uint64_t one, void* out, size_t n, double p);

  static const StreamKernels& at(simd::At<simd::Level::portable>);
  static const StreamKernels& at(simd::At<simd::Level::avx2>);
  static const StreamKernels& at(simd::At<simd::Level::avx512>);
};

}  // namespace dormant::random
