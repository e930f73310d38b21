#include "random/polynomial.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <memory>
#include <span>
#include <vector>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace dormant::random {
namespace {

constexpr uint64_t kN = at::MERSENNE_STATE_N;

// For processors that cannot multiply polynomials: coefficients are looked up four at a time. They
// choose one of 15 precombined sequences, which halves the words that are added up.
constexpr size_t kGroup = 4;
constexpr size_t kGroups = (kDegree + kGroup - 1) / kGroup;
// Groups per segment, so that a segment of the sequence and of a combination stay in the
// first-level cache.
constexpr size_t kSegment = 512;
constexpr size_t kBlocks = (kGroups * kGroup + kN + kGroup + kN - 1) / kN;

void apply_by_table(const Polynomial& polynomial, Words& words) {
  std::vector<uint32_t> sequence(kBlocks * kN);
  std::copy(words.begin(), words.end(), sequence.begin());
  for (size_t block = 1; block < kBlocks; ++block) {
    const std::span<uint32_t, kN> target(sequence.data() + block * kN, kN);
    std::copy_n(target.data() - kN, kN, target.data());
    twist(target, simd::Level::portable);
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

#if defined(__x86_64__)
// With an instruction that multiplies polynomials. Bit b of the words of the sequence is itself a
// sequence of bits, its plane. In each of the 32 planes, bit k of the result is the sum of g_i
// s_(i+k): bit 19967 + k of the product of the plane and the coefficients g in reversed order. Only
// the words of the product that hold these 624 bits are computed.

constexpr size_t kPlanes = 32;
constexpr size_t kResultRows = (kN + 63) / 64;
constexpr size_t kRows = kPolynomialWords + kResultRows;

// Bits 64r to 64r + 63 of every plane are row r.
struct Planes {
  alignas(64) uint64_t rows[kRows][kPlanes];
};

// Of each plane, the sums of the products of row r with word kPolynomialWords - 2 + d - r of the
// reversed coefficients, for each diagonal d: 128 bits that begin at bit 64 (kPolynomialWords - 2 +
// d) of the product.
constexpr size_t kDiagonals = kResultRows + 2;
struct Sums {
  uint64_t low[kDiagonals][kPlanes];
  uint64_t high[kDiagonals][kPlanes];
};

// The coefficients in reversed order.
class Reversed {
 public:
  explicit Reversed(const Polynomial& polynomial) {
    for (size_t i = 0; i < kPolynomialWords; ++i) {
      words_[kMargin + i] = reverse(polynomial[kPolynomialWords - 1 - i]);
    }
  }
  // What the row is multiplied with, for diagonal 0 and those after it.
  const uint64_t* of_diagonals(size_t row) const {
    return words_ + kMargin + kPolynomialWords - 2 - row;
  }

 private:
  static constexpr size_t kMargin = kDiagonals;  // zeros where a diagonal reaches over an end
  static uint64_t reverse(uint64_t bits) {
    bits = __builtin_bswap64(bits);
    bits = (bits >> 4 & 0x0f0f0f0f0f0f0f0fU) | (bits & 0x0f0f0f0f0f0f0f0fU) << 4;
    bits = (bits >> 2 & 0x3333333333333333U) | (bits & 0x3333333333333333U) << 2;
    return (bits >> 1 & 0x5555555555555555U) | (bits & 0x5555555555555555U) << 1;
  }

  uint64_t words_[kMargin + kPolynomialWords + kMargin] = {};
};

// Twenty squares of 32 x 32 bits, bit j of row i of square k in rows[i][k].
constexpr size_t kSquares = 2 * kResultRows;
struct Squares {
  alignas(64) uint32_t rows[32][kSquares];

  [[gnu::always_inline]] void transpose() {
    uint32_t mask = 0x0000ffff;
    for (size_t size = 16; size != 0; size >>= 1, mask ^= mask << size) {
      for (size_t row = 0; row < 32; row = ((row | size) + 1) & ~size) {
        for (size_t k = 0; k < kSquares; ++k) {
          const uint32_t swapped = (rows[row][k] >> size ^ rows[row | size][k]) & mask;
          rows[row][k] ^= swapped << size;
          rows[row | size][k] ^= swapped;
        }
      }
    }
  }
};

// The planes of `words` and of what follows them, in vectors of kBytes.
template <size_t kBytes>
[[gnu::always_inline]] inline void fill(Planes& planes, const Words& words) {
  using Vector [[gnu::vector_size(kBytes)]] = uint64_t;
  constexpr size_t kLanes = kBytes / sizeof(uint64_t);
  constexpr size_t kVectors = kPlanes / kLanes;

  std::array<uint32_t, kResultRows * 64> start;
  std::copy(words.begin(), words.end(), start.begin());
  for (size_t i = kN; i < start.size(); ++i) {
    start[i] = next_word(start[i - kN], start[i - kN + 1], start[i - kN + at::MERSENNE_STATE_M]);
  }
  Squares squares;
  for (size_t i = 0; i < start.size(); ++i) {
    squares.rows[i % 32][i / 32] = start[i];
  }
  squares.transpose();
  for (size_t row = 0; row < kResultRows; ++row) {
    for (size_t plane = 0; plane < kPlanes; ++plane) {
      const uint32_t* const halves = squares.rows[plane] + 2 * row;
      planes.rows[row][plane] = halves[0] | uint64_t{halves[1]} << 32;
    }
  }

  // next_word() in planes: bit b of word k + 624 is the sum of bit b of word k + 397, bit b + 1 of
  // word k + 1 (of word k where that is the highest bit) and, where MATRIX_A has bit b, bit 0 of
  // word k + 1. Row r begins 227 after word k + 397 and 623 after word k + 1.
  Vector matrix[kVectors];
  Vector has_next[kVectors];
  Vector shift[kVectors];
  for (size_t plane = 0; plane < kPlanes; ++plane) {
    const size_t v = plane / kLanes;
    matrix[v][plane % kLanes] = 0 - uint64_t{at::MATRIX_A >> plane & 1U};
    has_next[v][plane % kLanes] = plane + 1 < kPlanes ? ~uint64_t{0} : 0;
    shift[v][plane % kLanes] = 10 * 64 - (plane + 1 == kPlanes - 1 ? 624 : 623);
  }
  for (size_t row = kResultRows; row < kRows; ++row) {
    // From plane 1 on, the last one is that of plane 0 of the next row, which is not wanted.
    const auto load = [&](Vector& vector, size_t rows_before, size_t plane) {
      std::memcpy(&vector, &planes.rows[0][0] + (row - rows_before) * kPlanes + plane,
                  sizeof vector);
    };
    const uint64_t lowest = planes.rows[row - 10][0] >> 17 | planes.rows[row - 9][0] << 47;
    for (size_t v = 0; v < kVectors; ++v) {
      const size_t plane = v * kLanes;
      Vector middle, after_middle, next, after_next;
      load(middle, 4, plane);
      load(after_middle, 3, plane);
      load(next, 10, plane + 1);
      load(after_next, 9, plane + 1);
      next = (next >> shift[v] | after_next << (64 - shift[v])) & has_next[v];
      const Vector sum = (middle >> 29 | after_middle << 35) ^ next ^ (lowest & matrix[v]);
      std::memcpy(planes.rows[row] + plane, &sum, sizeof sum);
    }
  }
}

// What each instruction set does otherwise: a row of planes in one register, two products for each
// of `kTogether` diagonals. The low and the high half of each 128 bits belong to two planes.
template <class Row, size_t kTogether>
[[gnu::always_inline]] inline void store(Sums& sums, size_t diagonal, size_t plane,
                                         const Row (&even)[kTogether],
                                         const Row (&odd)[kTogether]) {
  constexpr size_t kLanes = sizeof(Row) / sizeof(uint64_t);
  for (size_t d = 0; d < kTogether; ++d) {
    uint64_t products[2][kLanes];
    std::memcpy(products[0], &even[d], sizeof(Row));
    std::memcpy(products[1], &odd[d], sizeof(Row));
    for (size_t lane = 0; lane < kLanes; ++lane) {
      sums.low[diagonal + d][plane + lane] = products[lane % 2][lane / 2 * 2];
      sums.high[diagonal + d][plane + lane] = products[lane % 2][lane / 2 * 2 + 1];
    }
  }
}

[[gnu::target("avx2,pclmul")]] void multiply_128(const Planes& planes, const Reversed& reversed,
                                                 Sums& sums) {
  constexpr size_t kTogether = kDiagonals / 2;  // their sums stay in registers
  for (size_t diagonal = 0; diagonal < kDiagonals; diagonal += kTogether) {
    for (size_t plane = 0; plane < kPlanes; plane += 2) {
      __m128i even[kTogether] = {};
      __m128i odd[kTogether] = {};
      for (size_t row = 0; row < kRows; ++row) {
        const __m128i bits =
            _mm_load_si128(reinterpret_cast<const __m128i*>(&planes.rows[row][plane]));
        const uint64_t* const word = reversed.of_diagonals(row) + diagonal;
#pragma GCC unroll 6
        for (size_t d = 0; d < kTogether; ++d) {
          const __m128i factor = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(word + d));
          even[d] = _mm_xor_si128(even[d], _mm_clmulepi64_si128(bits, factor, 0x00));
          odd[d] = _mm_xor_si128(odd[d], _mm_clmulepi64_si128(bits, factor, 0x01));
        }
      }
      store(sums, diagonal, plane, even, odd);
    }
  }
}

[[gnu::target("avx512f,vpclmulqdq")]] void multiply_512(const Planes& planes,
                                                        const Reversed& reversed, Sums& sums) {
  for (size_t plane = 0; plane < kPlanes; plane += 8) {
    __m512i even[kDiagonals] = {};
    __m512i odd[kDiagonals] = {};
    for (size_t row = 0; row < kRows; ++row) {
      const __m512i bits = _mm512_load_si512(&planes.rows[row][plane]);
      const uint64_t* const word = reversed.of_diagonals(row);
#pragma GCC unroll 12
      for (size_t d = 0; d < kDiagonals; ++d) {
        const __m512i factor = _mm512_set1_epi64(static_cast<long long>(word[d]));
        even[d] = _mm512_xor_si512(even[d], _mm512_clmulepi64_epi128(bits, factor, 0x00));
        odd[d] = _mm512_xor_si512(odd[d], _mm512_clmulepi64_epi128(bits, factor, 0x01));
      }
    }
    store(sums, 0, plane, even, odd);
  }
}

template <size_t kBytes>
[[gnu::always_inline]] inline void apply_in_planes(const Polynomial& polynomial, Words& words,
                                                   void (*multiply)(const Planes&, const Reversed&,
                                                                    Sums&)) {
  const auto planes = std::make_unique_for_overwrite<Planes>();
  fill<kBytes>(*planes, words);
  Sums sums;
  multiply(*planes, Reversed(polynomial), sums);
  // Word kPolynomialWords - 1 + i of the product, which takes the low half of one diagonal and the
  // high half of the one before; the result begins with its last bit.
  Squares squares;
  for (size_t plane = 0; plane < kPlanes; ++plane) {
    uint64_t word = sums.low[1][plane] ^ sums.high[0][plane];
    for (size_t row = 0; row < kResultRows; ++row) {
      const uint64_t next = sums.low[row + 2][plane] ^ sums.high[row + 1][plane];
      const uint64_t bits = word >> 63 | next << 1;
      squares.rows[plane][2 * row] = static_cast<uint32_t>(bits);
      squares.rows[plane][2 * row + 1] = static_cast<uint32_t>(bits >> 32);
      word = next;
    }
  }
  squares.transpose();
  for (size_t i = 0; i < kN; ++i) {
    words[i] = squares.rows[i % 32][i / 32];
  }
}

[[gnu::target("avx2")]] void apply_avx2(const Polynomial& polynomial, Words& words) {
  apply_in_planes<32>(polynomial, words, multiply_128);
}
[[gnu::target("avx512f")]] void apply_avx512(const Polynomial& polynomial, Words& words) {
  apply_in_planes<64>(polynomial, words,
                      __builtin_cpu_supports("vpclmulqdq") ? multiply_512 : multiply_128);
}
#endif

}  // namespace

void apply(const Polynomial& polynomial, Words& words, simd::Level level) {
#if defined(__x86_64__)
  if (level == simd::Level::avx512) {
    return apply_avx512(polynomial, words);
  }
  if (level == simd::Level::avx2) {
    return apply_avx2(polynomial, words);
  }
#endif
  static_cast<void>(level);
  apply_by_table(polynomial, words);
}

}  // namespace dormant::random
