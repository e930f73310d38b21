// The rounds of Philox 4x32-10 over vectors. For kernels only (simd/vector.h).
#pragma once

#include <cstddef>
#include <cstdint>

#include "random/philox_kernels.h"
#include "simd/lanes.h"

namespace dormant::random {
namespace {

// The round keys of one stream as vectors, made once for a call.
class PhiloxSchedule {
 public:
  explicit PhiloxSchedule(const PhiloxKey& key) : stream_(key.stream) {
    const auto key0 = static_cast<uint32_t>(key.seed);
    const auto key1 = static_cast<uint32_t>(key.seed >> 32);
    // Products rather than two running sums: GCC 12.2 at -O3 vectorizes the two sums as one.
    for (uint32_t round = 0; round < kRounds; ++round) {
      keys_[round][0] = simd::set<Int>(key0 + round * 0x9e3779b9u);
      keys_[round][1] = simd::set<Int>(key1 + round * 0xbb67ae85u);
    }
  }

  // The words of one unit.
  void unit(uint64_t index, uint32_t* out) const {
    for (size_t half = 0; half < kPhiloxCounters; half += simd::kCount) {
      counters(index * kPhiloxCounters + half, out + half);
    }
  }

 private:
  using Int = simd::Int;
  static constexpr uint32_t kRounds = 10;

  struct Group {
    Int word[4];
  };

  // Counters [first, first + kCount): word w of counter i goes to out[w * kPhiloxCounters + i].
  void counters(uint64_t first, uint32_t* out) const {
    // Two groups, of even and of odd counters, each word in the low half of a 64-bit lane: the
    // products need no shuffles, and what they leave in the high halves is never read.
    const auto group = [&](uint32_t parity) {
      return Group{{simd::iota<Int>() + (static_cast<uint32_t>(first) + parity),
                    simd::set<Int>(static_cast<uint32_t>(first >> 32)),
                    simd::set<Int>(static_cast<uint32_t>(stream_)),
                    simd::set<Int>(static_cast<uint32_t>(stream_ >> 32))}};
    };
    Group even = group(0);
    Group odd = group(1);
    for (const auto& key : keys_) {
      mix(even, key);
      mix(odd, key);
    }
    for (size_t word = 0; word < 4; ++word) {
      const auto interleaved = simd::permute(even.word[word], odd.word[word], [](size_t lane) {
        return lane % 2 == 0 ? lane : simd::kCount + lane - 1;
      });
      simd::store(out + word * kPhiloxCounters, interleaved);
    }
  }

  static void mix(Group& group, const Int (&key)[2]) {
    const Int product0 = simd::product_even(group.word[0], simd::set<Int>(0xd2511f53));
    const Int product1 = simd::product_even(group.word[2], simd::set<Int>(0xcd9e8d57));
    group = {{high_half(product1) ^ group.word[1] ^ key[0], product1,
              high_half(product0) ^ group.word[3] ^ key[1], product0}};
  }
  static Int high_half(Int a) {
    return simd::permute(a, a, [](size_t lane) { return lane | 1; });
  }

  uint64_t stream_;
  Int keys_[kRounds][2];
};

}  // namespace
}  // namespace dormant::random
