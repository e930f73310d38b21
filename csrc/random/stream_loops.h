// The kernels of StreamKernels, written once over lanes (lanes_*.h) and instantiated once per
// processor level.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "random/block_draws.h"
#include "random/normal_map.h"
#include "random/static_choice.h"
#include "random/stream_kernels.h"
#include "random/uniform_map.h"

namespace dormant::random {

template <class Lanes>
class StreamLoops {
 public:
  static constexpr StreamKernels kernels(const char* name, bool has_block_normal) {
    return {name, Draws::twist, uniform, has_block_normal ? block_normal : nullptr, bernoulli};
  }

 private:
  using Draws = BlockDraws<Lanes>;
  using Int = typename Lanes::Int;
  using Float = typename Lanes::Float;
  using Double = typename Lanes::Double;

  static constexpr size_t kPair = 2 * Lanes::kCount;  // elements of one store()

  // Draws are handed on in multiples of this, which keeps the alignment of the output: 64 bytes of
  // 16-bit elements.
  static constexpr size_t kGranule = 32;
  // The same where an element is one byte and takes two draws.
  static constexpr size_t kBitGranule = 128;
  static_assert(kGranule % kPair == 0);

  // One element a draw: map(draws, low, high) makes two vectors of values from 2 * kCount draws.
  template <Format kFormat, class Map>
  static void map_draws(EngineBlock& block, void* to, size_t n, Map&& map) {
    constexpr size_t kBytes = kFormat == Format::float32 ? 4 : 2;
    auto* out = static_cast<unsigned char*>(to);
    Draws::template take<kGranule>(block, n, [&](const uint32_t* draws, size_t count) {
      size_t i = 0;
      for (; i + kPair <= count; i += kPair) {
        Float low, high;
        map(draws + i, low, high);
        Lanes::template store<kFormat>(out + i * kBytes, low, high);
      }
      if (i < count) {
        alignas(64) unsigned char rest[kPair * kBytes];
        Float low, high;
        map(draws + i, low, high);
        Lanes::template store<kFormat>(rest, low, high);
        std::memcpy(out + i * kBytes, rest, (count - i) * kBytes);
      }
      out += count * kBytes;
    });
  }

  static void uniform_double(EngineBlock& block, double* out, size_t n, double from, double to) {
    const UniformMap<Lanes, Format::float64> map(from, to);
    Draws::template take<kGranule>(block, 2 * n, [&](const uint32_t* draws, size_t count) {
      for (size_t i = 0; i < count; i += 2 * Lanes::kDoubles) {
        const Double value = map(draws + i);
        if (i + 2 * Lanes::kDoubles <= count) {
          Lanes::store(out + i / 2, value);
        } else {
          alignas(64) double rest[Lanes::kDoubles];
          Lanes::store(rest, value);
          std::memcpy(out + i / 2, rest, (count - i) / 2 * sizeof *out);
        }
      }
      out += count / 2;
    });
  }

  template <size_t kWidth>
  static void bernoulli_as(EngineBlock& block, uint64_t one, void* to, size_t n,
                           uint64_t threshold) {
    constexpr size_t kElements = 32;  // of one store_bits()
    auto* out = static_cast<unsigned char*>(to);
    Draws::template take<kBitGranule>(block, 2 * n, [&](const uint32_t* draws, size_t count) {
      const size_t elements = count / 2;
      for (size_t i = 0; i < elements; i += kElements) {
        const uint32_t bits = Lanes::below53(draws + 2 * i, threshold);
        if (i + kElements <= elements) {
          Lanes::template store_bits<kWidth>(out + i * kWidth, bits, one);
        } else {
          alignas(64) unsigned char rest[kElements * kWidth];
          Lanes::template store_bits<kWidth>(rest, bits, one);
          std::memcpy(out + i * kWidth, rest, (elements - i) * kWidth);
        }
      }
      out += elements * kWidth;
    });
  }

  static void uniform(EngineBlock& block, Format format, void* out, size_t n, double from,
                      double to) {
    with_format(format, [&]<Format kFormat>() {
      if constexpr (kFormat == Format::float64) {
        uniform_double(block, static_cast<double*>(out), n, from, to);
      } else {
        map_draws<kFormat>(block, out, n, UniformMap<Lanes, kFormat>(from, to));
      }
    });
  }

  static void block_normal(EngineBlock& block, Format format, void* out, size_t n, double mean,
                           double std) {
    with_format(format, [&]<Format kFormat>() {
      if constexpr (kFormat != Format::float64) {  // excluded by the contract
        map_draws<kFormat>(block, out, n, NormalMap<Lanes, kFormat>(mean, std));
      }
    });
  }

  static void bernoulli(EngineBlock& block, size_t width, uint64_t one, void* out, size_t n,
                        double p) {
    // k * 2^-53 < p exactly where k < ceil(p * 2^53): the product is exact. Written without
    // std::ceil, see stream_kernels.h.
    const double scaled = p * 0x1p53;
    uint64_t threshold = static_cast<uint64_t>(scaled);
    threshold += static_cast<double>(threshold) < scaled ? 1 : 0;
    with_width(width,
               [&]<size_t kWidth>() { bernoulli_as<kWidth>(block, one, out, n, threshold); });
  }
};

}  // namespace dormant::random
