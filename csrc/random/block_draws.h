// mt19937 over lanes: twists and tempers whole blocks, and hands out draws in parts that stay in
// cache.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "random/stream_kernels.h"

namespace dormant::random {

template <class Lanes>
class BlockDraws {
 public:
  static constexpr size_t kOverread = 128;

  // `blocks` twists, without drawing.
  static void twist(EngineBlock& block, uint64_t blocks) {
    for (uint64_t i = 0; i < blocks; ++i) {
      twist_block(block, [](size_t, Int) {});
    }
  }

  // Takes `n` draws and calls consume(draws, count) on successive parts of them; all counts but the
  // last are multiples of `kMultiple`. Up to kOverread words past the count may be read, whatever
  // they hold.
  template <size_t kMultiple, class Consume>
  static void take(EngineBlock& block, size_t n, Consume&& consume) {
    constexpr size_t kBlocks = 2;  // at a time: a multiple of 32 draws, so nothing is left over
    constexpr size_t kFilled = kMultiple + kBlocks * kWords;
    alignas(64) uint32_t draws[kFilled + kOverread];
    std::memset(draws + kFilled, 0, kOverread * sizeof *draws);

    // What is left of the current block; vectors may write more than it, not more than fits.
    size_t ready = kWords - block.used < n ? kWords - block.used : n;
    for (size_t i = 0; i < ready; i += Lanes::kCount) {
      Lanes::save(draws + i, temper(Lanes::load(block.words + block.used + i)));
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
        twist_block(block, [&](size_t at, Int words) { Lanes::save(out + at, temper(words)); });
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

 private:
  using Int = typename Lanes::Int;

  static constexpr size_t kWords = EngineBlock::kWords;
  static_assert(kWords % Lanes::kCount == 0 && EngineBlock::kOverlap >= Lanes::kCount);

  // Computes words [at, at + kCount) of the next block, in place: `middle` are the words 397 ahead,
  // which for the last 397 words are new ones.
  static Int twist_at(EngineBlock& block, size_t at, size_t middle) {
    const Int current = Lanes::load(block.words + at);
    const Int next = Lanes::load(block.words + at + 1);
    const Int mixed =
        Lanes::template shift_right<1>(Lanes::bit_select(Lanes::set(0x80000000), current, next));
    const Int word = Lanes::xor3(Lanes::load(block.words + middle), mixed,
                                 Lanes::where_odd(next, Lanes::set(0x9908b0df)));
    Lanes::save(block.words + at, word);
    return word;
  }

  // Calls use(index, words) for each vector of the next block.
  template <class Use>
  static void twist_block(EngineBlock& block, Use&& use) {
    constexpr size_t kOld = kWords - EngineBlock::kMiddle;
    const Int first = twist_at(block, 0, EngineBlock::kMiddle);
    // Seen from the end of the block, the new words follow the old ones, as in the recurrence: no
    // vector is split.
    Lanes::save(block.words + kWords, first);
    use(0, first);
    size_t at = Lanes::kCount;
    for (; at < kOld; at += Lanes::kCount) {
      use(at, twist_at(block, at, at + EngineBlock::kMiddle));
    }
    for (; at < kWords; at += Lanes::kCount) {
      use(at, twist_at(block, at, at - kOld));
    }
  }

  static Int temper(Int y) {
    y = Lanes::bit_xor(y, Lanes::template shift_right<11>(y));
    y = Lanes::xor_masked(y, Lanes::template shift_left<7>(y), Lanes::set(0x9d2c5680));
    y = Lanes::xor_masked(y, Lanes::template shift_left<15>(y), Lanes::set(0xefc60000));
    return Lanes::bit_xor(y, Lanes::template shift_right<18>(y));
  }
};

}  // namespace dormant::random
