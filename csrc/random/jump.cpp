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

#include "simd/kernels.h"

namespace dormant::random {
namespace {

static_assert(std::endian::native == std::endian::little, "bit strings are read at byte offsets");

constexpr uint64_t kN = at::MERSENNE_STATE_N;
constexpr uint64_t kDegree = 19937;

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

// A polynomial over GF(2) of degree below 19937: bit i is the coefficient of x^i.
constexpr size_t kPolynomialWords = (kDegree + 63) / 64;
using Polynomial = std::array<uint64_t, kPolynomialWords>;
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

// How many coefficients are looked up together when a polynomial meets a state: 4 bits choose one
// of 15 precombined sequences, which halves the words that are added up.
constexpr size_t kGroup = 4;
constexpr size_t kGroups = (kDegree + kGroup - 1) / kGroup;
// Groups per segment, so that a segment of the sequence and of a combination stay in the
// first-level cache.
constexpr size_t kSegment = 512;
constexpr size_t kBlocks = (kGroups * kGroup + kN + kGroup + kN - 1) / kN;

// Puts in `words` the words that stand `polynomial` after them: the sum of those i further, over
// its terms x^i.
[[gnu::always_inline]] inline void apply_generic(const Polynomial& polynomial, Words& words) {
  std::vector<uint32_t> sequence(kBlocks * kN);
  std::copy(words.begin(), words.end(), sequence.begin());
  for (size_t block = 1; block < kBlocks; ++block) {
    const std::span<uint32_t, kN> target(sequence.data() + block * kN, kN);
    std::copy_n(target.data() - kN, kN, target.data());
    twist(target);
  }
  words.fill(0);

  std::array<uint32_t, kSegment * kGroup + kN> combination;
  // Where each combination is to be added, by its number: sorted first, for a branch on it would be
  // a coin toss.
  std::array<std::array<uint16_t, kSegment>, 1U << kGroup> offsets;
  for (size_t segment = 0; segment < kGroups; segment += kSegment) {
    const size_t groups = std::min(kSegment, kGroups - segment);
    const uint32_t* const source = sequence.data() + segment * kGroup;
    const size_t length = groups * kGroup + kN;
    std::array<size_t, 1U << kGroup> counts{};
    for (size_t group = 0; group < groups; ++group) {
      const size_t bit = (segment + group) * kGroup;
      const auto pattern = polynomial[bit / 64] >> (bit % 64) & ((1U << kGroup) - 1);
      offsets[pattern][counts[pattern]++] = static_cast<uint16_t>(group * kGroup);
    }
    combination.fill(0);
    // In Gray order each combination differs from the one before by one shifted source.
    for (unsigned step = 1; step < 1U << kGroup; ++step) {
      const unsigned pattern = step ^ (step >> 1);
      const uint32_t* const shifted = source + std::countr_zero(step);
      for (size_t i = 0; i < length; ++i) {
        combination[i] ^= shifted[i];
      }
      const std::span<const uint16_t> at(offsets[pattern].data(), counts[pattern]);
      const uint32_t* const row = combination.data();
      size_t k = 0;
      for (; k + 8 <= at.size(); k += 8) {
        for (size_t i = 0; i < kN; ++i) {
          words[i] ^= row[at[k] + i] ^ row[at[k + 1] + i] ^ row[at[k + 2] + i] ^
                      row[at[k + 3] + i] ^ row[at[k + 4] + i] ^ row[at[k + 5] + i] ^
                      row[at[k + 6] + i] ^ row[at[k + 7] + i];
        }
      }
      for (; k < at.size(); ++k) {
        for (size_t i = 0; i < kN; ++i) {
          words[i] ^= row[at[k] + i];
        }
      }
    }
  }
}

// The two loops that cost anything. They call what may leave inline functions behind, so this file
// is compiled for the baseline and only these functions for more (simd/vector.h).
struct Kernels {
  void (*square)(Polynomial&);
  void (*apply)(const Polynomial&, Words&);

  static const Kernels& at(simd::At<simd::Level::portable>);
  static const Kernels& at(simd::At<simd::Level::avx2>);
  static const Kernels& at(simd::At<simd::Level::avx512>);
};

const Kernels& Kernels::at(simd::At<simd::Level::portable>) {
  static constexpr Kernels kernels = {
      [](Polynomial& polynomial) { square_generic<16>(polynomial); },
      [](const Polynomial& polynomial, Words& words) { apply_generic(polynomial, words); }};
  return kernels;
}

#if defined(__x86_64__)
[[gnu::target("avx2")]] void square_avx2(Polynomial& polynomial) { square_generic<32>(polynomial); }
[[gnu::target("avx2")]] void apply_avx2(const Polynomial& polynomial, Words& words) {
  apply_generic(polynomial, words);
}
const Kernels& Kernels::at(simd::At<simd::Level::avx2>) {
  static constexpr Kernels kernels = {square_avx2, apply_avx2};
  return kernels;
}

[[gnu::target("avx512f")]] void square_avx512(Polynomial& polynomial) {
  square_generic<64>(polynomial);
}
[[gnu::target("avx512f")]] void apply_avx512(const Polynomial& polynomial, Words& words) {
  apply_generic(polynomial, words);
}
const Kernels& Kernels::at(simd::At<simd::Level::avx512>) {
  static constexpr Kernels kernels = {square_avx512, apply_avx512};
  return kernels;
}
#endif

// x^steps modulo the characteristic polynomial.
Polynomial power(uint64_t steps, const Kernels& kernels) {
  // The leading bits of the exponent that stay below the degree need no arithmetic.
  constexpr int kFreeBits = static_cast<int>(std::bit_width(kDegree)) - 1;
  int pending = std::max(0, static_cast<int>(std::bit_width(steps)) - kFreeBits);
  Polynomial result{};
  const uint64_t start = steps >> pending;
  result[start / 64] = uint64_t{1} << (start % 64);
  while (pending != 0) {
    --pending;
    kernels.square(result);
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
  std::shared_ptr<const Polynomial> get(uint64_t steps, const Kernels& kernels) {
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
    auto polynomial = std::make_shared<const Polynomial>(power(steps, kernels));
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
    const auto& kernels = simd::kernels<Kernels>(level);
    kernels.apply(*cache.get((blocks - 1) * kN, kernels), words);
  }
}

std::span<const uint16_t> characteristic_tail() { return kTail; }

}  // namespace dormant::random
