#include <cstddef>
#include <cstdint>
#include <cstring>

#include "random/bernoulli_map.h"
#include "random/block_draws.h"
#include "random/normal_map.h"
#include "random/stream_kernels.h"
#include "random/uniform_map.h"

namespace dormant::random {
namespace {

// Fills `n` elements by a map (uniform_map.h).
template <class Map>
void fill(EngineBlock& block, void* to, size_t n, const Map& map) {
  constexpr size_t kWordsEach = Map::kWords / Map::kElements;
  auto* out = static_cast<unsigned char*>(to);
  take<Map::kWords>(block, n * kWordsEach, [&](const uint32_t* draws, size_t count) {
    size_t i = 0;
    for (; i + Map::kWords <= count; i += Map::kWords) {
      map(draws + i, out);
      out += Map::kElements * Map::kWidth;
    }
    if (i < count) {
      alignas(64) unsigned char rest[Map::kElements * Map::kWidth];
      map(draws + i, rest);
      const size_t bytes = (count - i) / kWordsEach * Map::kWidth;
      std::memcpy(out, rest, bytes);
      out += bytes;
    }
  });
}

void uniform(EngineBlock& block, Format format, void* out, size_t n, double from, double to) {
  simd::with_format(format,
                    [&]<Format kFormat>() { fill(block, out, n, UniformMap<kFormat>(from, to)); });
}

void block_normal(EngineBlock& block, Format format, void* out, size_t n, double mean, double std) {
  simd::with_format(format, [&]<Format kFormat>() {
    if constexpr (kFormat != Format::float64) {  // excluded by the contract
      fill(block, out, n, NormalMap<kFormat>(mean, std));
    }
  });
}

void bernoulli(EngineBlock& block, size_t width, uint64_t one, void* out, size_t n, double p) {
  // k * 2^-53 < p exactly where k < ceil(p * 2^53): the product is exact. Written without
  // std::ceil, see simd/vector.h.
  const double scaled = p * 0x1p53;
  uint64_t threshold = static_cast<uint64_t>(scaled);
  threshold += static_cast<double>(threshold) < scaled ? 1 : 0;
  with_width(width, [&]<size_t kWidth>() {
    fill(block, out, n, BernoulliMap<kWidth, Below53>({threshold}, one));
  });
}

// At its default level ATen takes log, cos and sin from the C library, whose bits are its own.
constexpr bool kHasNormal = simd::kLevel != simd::Level::portable;
constexpr StreamKernels kKernels = {simd::kLevelName, twist, uniform,
                                    kHasNormal ? block_normal : nullptr, bernoulli};

}  // namespace

const StreamKernels& StreamKernels::at(simd::Compiled) { return kKernels; }

}  // namespace dormant::random
