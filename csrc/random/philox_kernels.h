// What a processor level offers to Philox (philox.h).
#pragma once

#include <cstddef>
#include <cstdint>

#include "random/stream_kernels.h"

namespace dormant::random {

// The key, and the half of the counter that tells streams apart.
struct PhiloxKey {
  uint64_t seed;
  uint64_t stream;
};

// 16 consecutive counters make a unit of 64 words: first word 0 of each counter, then word 1 of
// each, and so on. Elements take the words of their unit in order; a float64 takes two.
constexpr size_t kPhiloxCounters = 16;
constexpr size_t kPhiloxWords = 64;

// Each fills elements [begin, begin + n) of an endless sequence. Levels agree in every word;
// uniform values differ in the last bit between levels with and without fused multiply-add.
struct PhiloxKernels {
  const char* name;

  // Whole units of words.
  void (*words)(const PhiloxKey& key, uint64_t first_unit, size_t units, uint32_t* out);

  void (*uniform)(const PhiloxKey& key, Format format, void* out, uint64_t begin, size_t n,
                  double from, double to);

  // Not float64.
  void (*normal)(const PhiloxKey& key, Format format, void* out, uint64_t begin, size_t n,
                 double mean, double std);

  // Elements of `width` bytes: the low bytes of `one` where the word is at most `last`, else zero.
  void (*bernoulli)(const PhiloxKey& key, size_t width, uint64_t one, void* out, uint64_t begin,
                    size_t n, uint32_t last);

  static const PhiloxKernels& at(simd::At<simd::Level::portable>);
  static const PhiloxKernels& at(simd::At<simd::Level::avx2>);
  static const PhiloxKernels& at(simd::At<simd::Level::avx512>);
};

}  // namespace dormant::random
