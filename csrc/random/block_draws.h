// mt19937 over vectors: twists and tempers whole blocks, and hands out draws in parts that stay in
// cache. For kernels only (simd/vector.h).
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "random/stream_kernels.h"
#include "simd/lanes.h"

namespace dormant::random {
namespace {

using simd::Int;

constexpr size_t kWords = EngineBlock::kWords;
static_assert(kWords % simd::kCount == 0 && EngineBlock::kOverlap >= simd::kCount);

// Computes words [at, at + kCount) of the next block, in place: `middle` are the words 397 ahead,
// which for the last 397 words are new ones.
inline Int twist_at(EngineBlock& block, size_t at, size_t middle) {
  const auto current = simd::load<Int>(block.words + at);
  const auto next = simd::load<Int>(block.words + at + 1);
  const Int mixed = ((current & 0x80000000u) | (next & 0x7fffffffu)) >> 1;
  const Int word = simd::load<Int>(block.words + middle) ^ mixed ^ (-(next & 1u) & 0x9908b0dfu);
  simd::store(block.words + at, word);
  return word;
}

// Calls use(index, words) for each vector of the next block.
template <class Use>
void twist_block(EngineBlock& block, Use&& use) {
  constexpr size_t kOld = kWords - EngineBlock::kMiddle;
  const Int first = twist_at(block, 0, EngineBlock::kMiddle);
  // Seen from the end of the block, the new words follow the old ones, as in the recurrence: no
  // vector is split.
  simd::store(block.words + kWords, first);
  use(0, first);
  size_t at = simd::kCount;
  for (; at < kOld; at += simd::kCount) {
    use(at, twist_at(block, at, at + EngineBlock::kMiddle));
  }
  for (; at < kWords; at += simd::kCount) {
    use(at, twist_at(block, at, at - kOld));
  }
}

// `blocks` twists, without drawing.
inline void twist(EngineBlock& block, uint64_t blocks) {
  for (uint64_t i = 0; i < blocks; ++i) {
    twist_block(block, [](size_t, Int) {});
  }
}

inline Int temper(Int y) {
  y ^= y >> 11;
  y ^= y << 7 & 0x9d2c5680u;
  y ^= y << 15 & 0xefc60000u;
  return y ^ y >> 18;
}

// Takes `n` draws and calls consume(draws, count) on successive parts of them; all counts but the
// last are multiples of `kMultiple`. As many words past the count may be read, whatever they hold.
template <size_t kMultiple, class Consume>
void take(EngineBlock& block, size_t n, Consume&& consume) {
  constexpr size_t kBlocks = 2;  // at a time: a multiple of 32 draws, so nothing is left over
  constexpr size_t kFilled = kMultiple + kBlocks * kWords;
  alignas(64) uint32_t draws[kFilled + kMultiple];
  std::memset(draws + kFilled, 0, kMultiple * sizeof *draws);

  // What is left of the current block; vectors may write more than it, not more than fits.
  size_t ready = kWords - block.used < n ? kWords - block.used : n;
  for (size_t i = 0; i < ready; i += simd::kCount) {
    simd::store(draws + i, temper(simd::load<Int>(block.words + block.used + i)));
  }
  block.used += static_cast<uint32_t>(ready);
  n -= ready;
  while (n > 0) {
    const size_t whole = ready - ready % kMultiple;
    if (whole > 0) {
      consume(static_cast<const uint32_t*>(draws), whole);
      ready -= whole;
      std::memcpy(draws, draws + whole, kMultiple * sizeof *draws);
    }
    for (size_t i = 0; i < kBlocks && n > 0; ++i) {
      uint32_t* const out = draws + ready;
      twist_block(block, [&](size_t at, Int words) { simd::store(out + at, temper(words)); });
      const size_t taken = n < kWords ? n : kWords;
      block.used = static_cast<uint32_t>(taken);
      ready += taken;
      n -= taken;
    }
  }
  if (ready > 0) {
    consume(static_cast<const uint32_t*>(draws), ready);
  }
}

}  // namespace
}  // namespace dormant::random
