#include "random/jump.h"

#include <c10/util/Exception.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cstddef>
#include <cstring>
#include <memory>
#include <mutex>
#include <span>
#include <utility>
#include <vector>

#include "random/polynomial.h"

namespace dormant::random {
namespace {

static_assert(std::endian::native == std::endian::little, "bit strings are read at byte offsets");

constexpr uint64_t kN = at::MERSENNE_STATE_N;

// Exponents of the characteristic polynomial of one step of mt19937, without the leading 19937.
// Found by Berlekamp-Massey on one output bit; jump_test.cpp finds them anew.
constexpr std::array<uint16_t, 134> kTail = {
    19314, 19087, 18860, 18691, 18633, 18406, 18237, 18179, 18068, 17952, 17841, 17783, 17725,
    17498, 17445, 17329, 17271, 17160, 17044, 16933, 16875, 16822, 16817, 16595, 16590, 16537,
    16421, 16368, 16363, 16252, 16141, 16136, 16025, 15967, 15909, 15682, 15629, 15576, 15513,
    15455, 15349, 15344, 15228, 15117, 15059, 15006, 15001, 14953, 14779, 14774, 14721, 14605,
    14552, 14547, 14436, 14325, 14320, 14209, 14151, 14093, 13866, 13813, 13760, 13697, 13639,
    13533, 13528, 13412, 13301, 13243, 13190, 13185, 13137, 12963, 12958, 12905, 12789, 12736,
    12731, 12673, 12620, 12509, 12504, 12393, 12335, 12277, 11997, 11944, 11881, 11838, 11717,
    11712, 11611, 11485, 11384, 11374, 11321, 11215, 11157, 11147, 11089, 10920, 10761, 10693,
    10128, 9969,  9901,  9505,  8206,  7979,  7752,  7583,  7525,  7477,  7129,  6569,  6337,
    5661,  4753,  4362,  4135,  3908,  3681,  3454,  3227,  3000,  2773,  2493,  1870,  1643,
    1585,  1416,  1189,  0};

constexpr uint64_t kTopWordMask = (uint64_t{1} << (kDegree % 64)) - 1;

// Polynomials are folded in chunks of 512 bits. The gap below the leading term (623 bits) is wider,
// so no chunk needs itself.
constexpr size_t kChunk = 8;
constexpr size_t kSquareWords = 2 * kPolynomialWords;
constexpr size_t kBoundaryWord = kPolynomialWords - kChunk;  // of the chunk that holds x^19937
static_assert(kPolynomialWords % kChunk == 0 && kDegree - kTail.front() > kChunk * 64);

// A chunk in vectors of kBytes, the width of the unit that the code around it is compiled for:
// wider ones would be taken apart through memory.
template <size_t kBytes>
struct Chunk {
  using Vector [[gnu::vector_size(kBytes)]] = uint64_t;
  static constexpr size_t kVectors = kChunk * sizeof(uint64_t) / kBytes;
  Vector vectors[kVectors];  // not std::array: a template argument loses the attribute

  [[gnu::always_inline]] void load(const void* from) { std::memcpy(this, from, sizeof(*this)); }
  [[gnu::always_inline]] void store(void* to) const { std::memcpy(to, this, sizeof(*this)); }
  [[gnu::always_inline]] void add(const void* from) {
    for (size_t i = 0; i < kVectors; ++i) {
      Vector vector;
      std::memcpy(&vector, static_cast<const unsigned char*>(from) + i * kBytes, kBytes);
      vectors[i] ^= vector;
    }
  }
};

// `half` with its bits moved to the even places: over GF(2) this is its square.
[[gnu::always_inline]] inline uint64_t spread(uint64_t half) {
  half = (half | half << 16) & 0x0000ffff0000ffffU;
  half = (half | half << 8) & 0x00ff00ff00ff00ffU;
  half = (half | half << 4) & 0x0f0f0f0f0f0f0f0fU;
  half = (half | half << 2) & 0x3333333333333333U;
  return (half | half << 1) & 0x5555555555555555U;
}

// The coefficients of a square from x^19937 up, in all eight shifts below a byte, so that the 512
// bits from any bit on are one unaligned load. Zero until stored, with a chunk of zeros at either
// end for windows that reach over.
class HighPart {
 public:
  static constexpr uint64_t kFirstWord = kBoundaryWord - kChunk;
  static constexpr uint64_t kFirstBit = kFirstWord * 64;
  static constexpr uint64_t kEndBit = kSquareWords * 64;

  // Stores the chunk that starts at `word`. To be called from the top down: a shift takes bits of
  // the word above.
  template <size_t kBytes>
  [[gnu::always_inline]] void store(size_t word, const Chunk<kBytes>& chunk) {
    uint64_t* const row = shifted_[0].data() + (word - kFirstWord);
    chunk.store(row);
    Chunk<kBytes> above;
    above.load(row + 1);
    for (uint64_t shift = 1; shift < shifted_.size(); ++shift) {
      Chunk<kBytes> shifted;
      for (size_t i = 0; i < shifted.kVectors; ++i) {
        shifted.vectors[i] = chunk.vectors[i] >> shift | above.vectors[i] << (64 - shift);
      }
      shifted.store(shifted_[shift].data() + (word - kFirstWord));
    }
  }

  // The 512 bits from `bit` on; kFirstBit <= bit < kEndBit.
  [[gnu::always_inline]] const void* window(uint64_t bit) const {
    return reinterpret_cast<const unsigned char*>(shifted_[bit % 8].data()) + (bit - kFirstBit) / 8;
  }

 private:
  std::array<std::array<uint64_t, kSquareWords - kFirstWord + kChunk>, 8> shifted_{};
};

// Squares modulo the characteristic polynomial.
template <size_t kBytes>
[[gnu::always_inline]] inline void square_generic(Polynomial& polynomial) {
  std::array<uint64_t, kSquareWords> square;
  for (size_t i = 0; i < kPolynomialWords; ++i) {
    square[2 * i] = spread(polynomial[i] & 0xffffffffU);
    square[2 * i + 1] = spread(polynomial[i] >> 32);
  }
  // x^(19937 + k) equals the sum of x^(e + k) over the tail, so each bit takes every high bit that
  // stands 19937 - e above it, all final by then. The exponents whose windows touch the high part
  // are [begin, end) of the tail.
  HighPart high;
  size_t begin = 0;
  size_t end = 0;
  for (size_t word = kSquareWords; word != 0;) {
    word -= kChunk;
    const uint64_t top = word * 64 + kDegree;
    while (end < kTail.size() && top - kTail[end] < HighPart::kEndBit) {
      ++end;
    }
    while (begin < end && top - kTail[begin] < HighPart::kFirstBit) {
      ++begin;
    }
    Chunk<kBytes> sum;
    sum.load(square.data() + word);
    for (size_t i = begin; i < end; ++i) {
      sum.add(high.window(top - kTail[i]));
    }
    if (word <= kBoundaryWord) {
      sum.store(polynomial.data() + word);
    }
    if (word == kBoundaryWord) {
      std::array<uint64_t, kChunk> boundary{};
      boundary.back() = polynomial.back() & ~kTopWordMask;
      polynomial.back() &= kTopWordMask;
      sum.load(boundary.data());
    }
    if (word >= kBoundaryWord) {
      high.store(word, sum);
    }
  }
}

void multiply_by_x(Polynomial& polynomial) {
  for (size_t i = kPolynomialWords - 1; i != 0; --i) {
    polynomial[i] = polynomial[i] << 1 | polynomial[i - 1] >> 63;
  }
  polynomial[0] <<= 1;
  if (polynomial.back() & ~kTopWordMask) {
    polynomial.back() &= kTopWordMask;
    for (const uint64_t e : kTail) {
      polynomial[e / 64] ^= uint64_t{1} << (e % 64);
    }
  }
}

#if defined(__x86_64__)
[[gnu::target("avx2")]] void square_avx2(Polynomial& polynomial) { square_generic<32>(polynomial); }
[[gnu::target("avx512f")]] void square_avx512(Polynomial& polynomial) {
  square_generic<64>(polynomial);
}
#endif

void square(Polynomial& polynomial, simd::Level level) {
#if defined(__x86_64__)
  if (level == simd::Level::avx512) {
    return square_avx512(polynomial);
  }
  if (level == simd::Level::avx2) {
    return square_avx2(polynomial);
  }
#endif
  static_cast<void>(level);
  square_generic<16>(polynomial);
}

// x^steps modulo the characteristic polynomial.
Polynomial power(uint64_t steps, simd::Level level) {
  // The leading bits of the exponent that stay below the degree need no arithmetic.
  constexpr int kFreeBits = static_cast<int>(std::bit_width(kDegree)) - 1;
  int pending = std::max(0, static_cast<int>(std::bit_width(steps)) - kFreeBits);
  Polynomial result{};
  const uint64_t start = steps >> pending;
  result[start / 64] = uint64_t{1} << (start % 64);
  while (pending != 0) {
    --pending;
    square(result, level);
    if (steps >> pending & 1U) {
      multiply_by_x(result);
    }
  }
  return result;
}

// The powers used last, most recent first. Small enough to search from the front; a power is 2.5
// KB.
class PowerCache {
 public:
  std::shared_ptr<const Polynomial> get(uint64_t steps, simd::Level level) {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      const auto found = std::find_if(entries_.begin(), entries_.end(),
                                      [&](const Entry& entry) { return entry.first == steps; });
      if (found != entries_.end()) {
        std::rotate(entries_.begin(), found, found + 1);
        return entries_.front().second;
      }
    }
    // Not under the lock: two threads may both compute a power, which is harmless, but none waits
    // for another.
    auto polynomial = std::make_shared<const Polynomial>(power(steps, level));
    const std::lock_guard<std::mutex> lock(mutex_);
    if (entries_.size() == kCapacity) {
      entries_.pop_back();
    }
    entries_.emplace(entries_.begin(), steps, polynomial);
    return polynomial;
  }

 private:
  using Entry = std::pair<uint64_t, std::shared_ptr<const Polynomial>>;
  static constexpr size_t kCapacity = 64;

  std::mutex mutex_;
  std::vector<Entry> entries_;
};

}  // namespace

void jump(Words& words, uint64_t blocks, simd::Level level) {
  TORCH_CHECK_VALUE(blocks <= kMaxJumpBlocks, "jump: ", blocks,
                    " blocks of 624 draws asked for; expected at most ", kMaxJumpBlocks,
                    ", for the count of draws must fit 64 bits. Jump in parts.");
  if (blocks == 0) {
    return;
  }
  // The recurrence never reads the low 31 bits of the first word, so they may be anything, and the
  // polynomial, which takes whole words, holds only from the second block on.
  twist(words, level);
  if (blocks > 1) {
    static PowerCache cache;
    apply(*cache.get((blocks - 1) * kN, level), words, level);
  }
}

std::span<const uint16_t> characteristic_tail() { return kTail; }

}  // namespace dormant::random
