#include "random/mt19937.h"

#include <c10/util/Exception.h>

#include "random/jump.h"

namespace dormant::random {
namespace {

constexpr uint64_t kN = at::MERSENNE_STATE_N;
constexpr uint64_t kM = at::MERSENNE_STATE_M;

// From about here on a jump whose polynomial is cached (25 us with AVX-512, 80 us with AVX2) costs
// less than the twists it replaces (0.06 us each); a cold jump (200 us for 2^32 draws) does from
// three times that on.
constexpr uint64_t kJumpFromBlocks = 1024;

// In place: word i is replaced after its last reader, word i - 1, so any vector width up to kN - kM
// is safe.
[[gnu::always_inline]] inline void twist_in_place(uint32_t* words) {
  for (uint64_t i = 0; i < kN - kM; ++i) {
    words[i] = next_word(words[i], words[i + 1], words[i + kM]);
  }
  for (uint64_t i = kN - kM; i < kN - 1; ++i) {
    words[i] = next_word(words[i], words[i + 1], words[i + kM - kN]);
  }
  words[kN - 1] = next_word(words[kN - 1], words[0], words[kM - 1]);
}

#if defined(__x86_64__)
[[gnu::target("avx2")]] void twist_avx2(uint32_t* words) { twist_in_place(words); }
[[gnu::target("avx512f")]] void twist_avx512(uint32_t* words) { twist_in_place(words); }
#endif

}  // namespace

void twist(std::span<uint32_t, kN> words, simd::Level level) {
#if defined(__x86_64__)
  if (level == simd::Level::avx512) {
    return twist_avx512(words.data());
  }
  if (level == simd::Level::avx2) {
    return twist_avx2(words.data());
  }
#endif
  static_cast<void>(level);
  twist_in_place(words.data());
}

void advance(at::mt19937_data_pod& state, uint64_t draws) {
  TORCH_CHECK_VALUE(
      state.seeded_ && state.left_ > 0 && static_cast<uint64_t>(state.left_) <= kN &&
          state.next_ <= kN,
      "advance: not a valid mt19937 state: seeded ", state.seeded_, ", left ", state.left_,
      ", next ", state.next_,
      "; expected seeded, left in 1..624 and next in 0..624. Seed the generator or restore it from "
      "torch.get_rng_state().");
  const auto left = static_cast<uint64_t>(state.left_);
  if (draws < left) {
    state.left_ -= static_cast<int>(draws);
    state.next_ += static_cast<uint32_t>(draws);
    return;
  }
  // Draw number `left` twists, and takes the first word of the new block.
  const uint64_t beyond = draws - left;
  const uint64_t blocks = 1 + beyond / kN;
  const uint64_t taken = 1 + beyond % kN;
  if (blocks >= kJumpFromBlocks) {
    jump(state.state_, blocks);
  } else {
    for (uint64_t i = 0; i < blocks; ++i) {
      twist(state.state_);
    }
  }
  state.next_ = static_cast<uint32_t>(taken);
  state.left_ = static_cast<int>(kN + 1 - taken);
}

}  // namespace dormant::random
