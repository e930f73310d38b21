// The kernels of StreamKernels, written once over lanes (lanes_*.h) and instantiated once per
// processor level.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "random/block_draws.h"
#include "random/box_muller.h"
#include "random/store_choice.h"
#include "random/stream_kernels.h"
#include "random/uniform_map.h"

namespace dormant::random {

template <class Lanes>
class StreamLoops {
 public:
  static constexpr StreamKernels kernels(const char* name, bool has_block_normal) {
    return {name,     Draws::twist, draw, uniform, has_block_normal ? block_normal : nullptr,
            bernoulli};
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

  static void draw(EngineBlock& block, uint32_t* out, size_t n) {
    Draws::template take<kGranule>(block, n, [&](const uint32_t* draws, size_t count) {
      std::memcpy(out, draws, count * sizeof *out);
      out += count;
    });
  }

  // One element a draw: map(draws, low, high) makes two vectors of values from 2 * kCount draws.
  template <Format kFormat, Store kStore, class Map>
  static void map_draws(EngineBlock& block, void* to, size_t n, Map&& map) {
    constexpr size_t kBytes = kFormat == Format::float32 ? 4 : 2;
    auto* out = static_cast<unsigned char*>(to);
    Draws::template take<kGranule>(block, n, [&](const uint32_t* draws, size_t count) {
      size_t i = 0;
      for (; i + kPair <= count; i += kPair) {
        Float low, high;
        map(draws + i, low, high);
        Lanes::template store<kFormat, kStore>(out + i * kBytes, low, high);
      }
      if (i < count) {
        alignas(64) unsigned char rest[kPair * kBytes];
        Float low, high;
        map(draws + i, low, high);
        Lanes::template store<kFormat, Store::cached>(rest, low, high);
        std::memcpy(out + i * kBytes, rest, (count - i) * kBytes);
      }
      out += count * kBytes;
    });
  }

  template <Format kFormat, Store kStore>
  static void uniform_as(EngineBlock& block, void* out, size_t n, double from, double to) {
    const UniformMap<Lanes, kFormat> map(from, to);
    map_draws<kFormat, kStore>(block, out, n, [&](const uint32_t* draws, Float& low, Float& high) {
      low = map(Lanes::load(draws));
      high = map(Lanes::load(draws + Lanes::kCount));
    });
  }

  template <Store kStore>
  static void uniform_double(EngineBlock& block, double* out, size_t n, double from, double to) {
    const Double scale = Lanes::set_double(to - from);
    const Double offset = Lanes::set_double(from);
    const Double excluded = Lanes::set_double(to);
    Draws::template take<kGranule>(block, 2 * n, [&](const uint32_t* draws, size_t count) {
      for (size_t i = 0; i < count; i += 2 * Lanes::kDoubles) {
        const Double value = Lanes::affine(Lanes::load_uniform53(draws + i), scale, offset);
        const Double kept = Lanes::select_equal(value, excluded, offset);
        if (i + 2 * Lanes::kDoubles <= count) {
          Lanes::template store<kStore>(out + i / 2, kept);
        } else {
          alignas(64) double rest[Lanes::kDoubles];
          Lanes::template store<Store::cached>(rest, kept);
          std::memcpy(out + i / 2, rest, (count - i) / 2 * sizeof *out);
        }
      }
      out += count / 2;
    });
  }

  template <Format kFormat, Store kStore>
  static void block_normal_as(EngineBlock& block, void* out, size_t n, double mean, double std) {
    const Float offset = Lanes::set_float(static_cast<float>(mean));
    const Float scale = Lanes::set_float(static_cast<float>(std));
    map_draws<kFormat, kStore>(block, out, n, [&](const uint32_t* draws, Float& low, Float& high) {
      Int radius_draw, angle_draw;
      Lanes::load_pairs(draws, radius_draw, angle_draw);
      BoxMuller<Lanes>::pair(radius_draw, angle_draw, low, high);
      low = Lanes::template round<kFormat>(Lanes::fma(low, scale, offset));
      high = Lanes::template round<kFormat>(Lanes::fma(high, scale, offset));
      Lanes::restore_order(low, high);
    });
  }

  template <size_t kWidth, Store kStore>
  static void bernoulli_as(EngineBlock& block, uint64_t one, void* to, size_t n,
                           uint64_t threshold) {
    constexpr size_t kElements = 32;  // of one store_bits()
    auto* out = static_cast<unsigned char*>(to);
    Draws::template take<kBitGranule>(block, 2 * n, [&](const uint32_t* draws, size_t count) {
      const size_t elements = count / 2;
      for (size_t i = 0; i < elements; i += kElements) {
        const uint32_t bits = Lanes::below53(draws + 2 * i, threshold);
        if (i + kElements <= elements) {
          Lanes::template store_bits<kWidth, kStore>(out + i * kWidth, bits, one);
        } else {
          alignas(64) unsigned char rest[kElements * kWidth];
          Lanes::template store_bits<kWidth, Store::cached>(rest, bits, one);
          std::memcpy(out + i * kWidth, rest, (elements - i) * kWidth);
        }
      }
      out += elements * kWidth;
    });
  }

  static void uniform(EngineBlock& block, Format format, void* out, size_t n, double from,
                      double to, Store store) {
    with_store<Lanes>(store, out, [&]<Store kStore>() {
      switch (format) {
        case Format::float32:
          return uniform_as<Format::float32, kStore>(block, out, n, from, to);
        case Format::bfloat16:
          return uniform_as<Format::bfloat16, kStore>(block, out, n, from, to);
        case Format::float16:
          return uniform_as<Format::float16, kStore>(block, out, n, from, to);
        case Format::float64:
          return uniform_double<kStore>(block, static_cast<double*>(out), n, from, to);
      }
    });
  }

  static void block_normal(EngineBlock& block, Format format, void* out, size_t n, double mean,
                           double std, Store store) {
    with_store<Lanes>(store, out, [&]<Store kStore>() {
      switch (format) {
        case Format::float32:
          return block_normal_as<Format::float32, kStore>(block, out, n, mean, std);
        case Format::bfloat16:
          return block_normal_as<Format::bfloat16, kStore>(block, out, n, mean, std);
        case Format::float16:
          return block_normal_as<Format::float16, kStore>(block, out, n, mean, std);
        case Format::float64:
          return;  // excluded by the contract
      }
    });
  }

  static void bernoulli(EngineBlock& block, size_t width, uint64_t one, void* out, size_t n,
                        double p, Store store) {
    // k * 2^-53 < p exactly where k < ceil(p * 2^53): the product is exact. Written without
    // std::ceil, see stream_kernels.h.
    const double scaled = p * 0x1p53;
    uint64_t threshold = static_cast<uint64_t>(scaled);
    threshold += static_cast<double>(threshold) < scaled ? 1 : 0;
    with_store<Lanes>(store, out, [&]<Store kStore>() {
      switch (width) {
        case 1:
          return bernoulli_as<1, kStore>(block, one, out, n, threshold);
        case 2:
          return bernoulli_as<2, kStore>(block, one, out, n, threshold);
        case 4:
          return bernoulli_as<4, kStore>(block, one, out, n, threshold);
        default:
          return bernoulli_as<8, kStore>(block, one, out, n, threshold);
      }
    });
  }
};

}  // namespace dormant::random
