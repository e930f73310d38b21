// Blocks of ggml as `gguf.quants.dequantize` decodes them (gguf-py/gguf/quants.py in llama.cpp):
// the same products and sums, each rounded.
//
// A block is decoded in two steps: its codes are unpacked to bytes, which stay in the first-level
// cache, and then widened and scaled a group at a time. The second step is the same for all
// encodings.
#include <cstddef>
#include <cstdint>

#include "decode/gguf_kernels.h"
#include "simd/lanes.h"

namespace dormant::decode {
namespace {

using simd::Float;
using simd::kBytes;
using simd::kCount;

constexpr size_t kSuper = 256;  // elements of what ggml calls a super-block (QK_K)

using Sixteen = simd::Vector<uint8_t, 16>;
// As much of 32 bytes as a vector has room for.
constexpr size_t kRow = kBytes < 32 ? kBytes : 32;
using Row = simd::Vector<uint8_t, kRow>;

uint16_t two_bytes(const uint8_t* from) {
  uint16_t value;
  std::memcpy(&value, from, sizeof value);
  return value;
}

// A float16.
float half(const uint8_t* from) {
  return simd::from_half(simd::Vector<uint16_t, kCount>{} + two_bytes(from))[0];
}

// kCount signed bytes as floats.
Float floats(const uint8_t* codes) {
  return simd::to_float(simd::widen_signed(simd::load<simd::Vector<uint8_t, kCount>>(codes)));
}

// Products of codes and the scale of their group.
template <size_t kGroup, size_t kGroups>
void scaled(const uint8_t* codes, const float* scale, float* out) {
  for (size_t group = 0; group < kGroups; ++group) {
    const auto by = simd::set<Float>(scale[group]);
    for (size_t i = group * kGroup; i < (group + 1) * kGroup; i += kCount) {
      simd::store(out + i, by * floats(codes + i));
    }
  }
}

// The same less the minimum of the group.
template <size_t kGroup, size_t kGroups>
void scaled_less(const uint8_t* codes, const float* scale, const float* minimum, float* out) {
  for (size_t group = 0; group < kGroups; ++group) {
    const auto by = simd::set<Float>(scale[group]);
    const auto less = simd::set<Float>(minimum[group]);
    for (size_t i = group * kGroup; i < (group + 1) * kGroup; i += kCount) {
      simd::store(out + i, by * floats(codes + i) - less);
    }
  }
}

// scale * code + offset for 32 codes.
void affine(const uint8_t* codes, float scale, float offset, float* out) {
  const auto by = simd::set<Float>(scale);
  const auto more = simd::set<Float>(offset);
  for (size_t i = 0; i < 32; i += kCount) {
    const auto product = by * floats(codes + i);
    // Of two NaNs a sum is the first: compilers may exchange them.
    simd::store(out + i, offset == offset     ? product + more
                         : product == product ? product + more
                                              : product);
  }
}

// The low halves of 16 bytes, then the high ones.
void nibbles(const uint8_t* from, uint8_t* codes) {
  const auto both = simd::load<Sixteen>(from);
  simd::store(codes, both & uint8_t{15});
  simd::store(codes + 16, both >> 4);
}

// 32 codes that gain their fifth bit, which is bit i of four bytes, and lose `less`.
void add_fifth_bits(const uint8_t* from, uint8_t less, uint8_t* codes) {
  uint32_t all;
  std::memcpy(&all, from, sizeof all);
  const auto bytes = simd::bits<Sixteen>(simd::Vector<uint32_t, 4>{} + all);
  const auto bit = simd::bits<Sixteen>(simd::Vector<uint64_t, 2>{} + 0x8040201008040201u);
  const auto add = [&](uint8_t* to, Sixteen eight_of_each) {
    const auto set = simd::bits<Sixteen>((eight_of_each & bit) == bit);
    simd::store(to, (simd::load<Sixteen>(to) | (set & uint8_t{16})) - less);
  };
  add(codes, simd::permute(bytes, bytes, [](size_t lane) { return lane / 8; }));
  add(codes + 16, simd::permute(bytes, bytes, [](size_t lane) { return 2 + lane / 8; }));
}

// Calls piece(i) for what a vector takes of 32 bytes, at i.
template <class Piece>
void each_piece(Piece&& piece) {
  for (size_t i = 0; i < 32; i += kRow) {
    piece(i);
  }
}

// Fields of `kBits` bits in rows of 32 bytes: those of the lowest bits of a row, then those above.
template <size_t kBits, size_t kRows>
void fields(const uint8_t* from, uint8_t less, uint8_t* codes) {
  constexpr uint8_t kMask = (1 << kBits) - 1;
  for (size_t row = 0; row < kRows; ++row) {
    each_piece([&](size_t i) {
      auto left = simd::load<Row>(from + 32 * row + i);
      for (size_t field = 0; field < 8 / kBits; ++field) {
        simd::store(codes + (row * (8 / kBits) + field) * 32 + i, (left & kMask) - less);
        left >>= kBits;
      }
    });
  }
}

struct Q4_0 {
  static constexpr size_t kElements = 32, kSize = 18;
  static void decode(const uint8_t* block, float* out) {
    alignas(64) uint8_t codes[32];
    nibbles(block + 2, codes);
    for (size_t i = 0; i < 32; i += 16) {
      simd::store(codes + i, simd::load<Sixteen>(codes + i) - uint8_t{8});
    }
    const float scale = half(block);
    scaled<32, 1>(codes, &scale, out);
  }
};

struct Q4_1 {
  static constexpr size_t kElements = 32, kSize = 20;
  static void decode(const uint8_t* block, float* out) {
    alignas(64) uint8_t codes[32];
    nibbles(block + 4, codes);
    affine(codes, half(block), half(block + 2), out);
  }
};

struct Q5_0 {
  static constexpr size_t kElements = 32, kSize = 22;
  static void decode(const uint8_t* block, float* out) {
    alignas(64) uint8_t codes[32];
    nibbles(block + 6, codes);
    add_fifth_bits(block + 2, 16, codes);
    const float scale = half(block);
    scaled<32, 1>(codes, &scale, out);
  }
};

struct Q5_1 {
  static constexpr size_t kElements = 32, kSize = 24;
  static void decode(const uint8_t* block, float* out) {
    alignas(64) uint8_t codes[32];
    nibbles(block + 8, codes);
    add_fifth_bits(block + 4, 0, codes);
    affine(codes, half(block), half(block + 2), out);
  }
};

struct Q8_0 {
  static constexpr size_t kElements = 32, kSize = 34;
  static void decode(const uint8_t* block, float* out) {
    const float scale = half(block);
    scaled<32, 1>(block + 2, &scale, out);
  }
};

struct Q2_K {
  static constexpr size_t kElements = kSuper, kSize = 84;
  static void decode(const uint8_t* block, float* out) {
    const uint8_t* scales = block;
    const float d = half(block + 80), dmin = half(block + 82);
    float scale[16], minimum[16];
    for (size_t i = 0; i < 16; ++i) {
      scale[i] = d * static_cast<float>(scales[i] & 15);
      minimum[i] = dmin * static_cast<float>(scales[i] >> 4);
    }
    alignas(64) uint8_t codes[kSuper];
    fields<2, 2>(block + 16, 0, codes);
    scaled_less<16, 16>(codes, scale, minimum, out);
  }
};

struct Q3_K {
  static constexpr size_t kElements = kSuper, kSize = 110;
  static void decode(const uint8_t* block, float* out) {
    const uint8_t* packed = block + 96;  // 16 scales: four bits of each, then two
    const float d = half(block + 108);
    float scale[16];
    for (size_t i = 0; i < 16; ++i) {
      const int low = packed[i % 8] >> (4 * (i / 8)) & 15;
      const int high = packed[8 + i % 4] >> (2 * (i / 4)) & 3;
      scale[i] = d * static_cast<float>((low | high << 4) - 32);
    }
    alignas(64) uint8_t codes[kSuper];
    fields<2, 2>(block + 32, 4, codes);
    // A bit that is set takes the four away again.
    each_piece([&](size_t i) {
      auto left = simd::load<Row>(block + i);
      for (size_t row = 0; row < 8; ++row) {
        uint8_t* to = codes + 32 * row + i;
        simd::store(to, simd::load<Row>(to) + ((left & uint8_t{1}) << 2));
        left >>= 1;
      }
    });
    scaled<16, 16>(codes, scale, out);
  }
};

// The scales and minima, six bits each, of the eight groups of Q4_K and Q5_K.
void six_bits(const uint8_t* block, float* scale, float* minimum) {
  const float d = half(block), dmin = half(block + 2);
  const uint8_t* low = block + 4;
  const uint8_t* middle = low + 4;
  const uint8_t* high = low + 8;
  for (size_t i = 0; i < 4; ++i) {
    scale[i] = d * static_cast<float>(low[i] & 63);
    minimum[i] = dmin * static_cast<float>(middle[i] & 63);
    scale[4 + i] = d * static_cast<float>((high[i] & 15) | (low[i] >> 2 & 48));
    minimum[4 + i] = dmin * static_cast<float>((high[i] >> 4) | (middle[i] >> 2 & 48));
  }
}

struct Q4_K {
  static constexpr size_t kElements = kSuper, kSize = 144;
  static void decode(const uint8_t* block, float* out) {
    float scale[8], minimum[8];
    six_bits(block, scale, minimum);
    alignas(64) uint8_t codes[kSuper];
    fields<4, 4>(block + 16, 0, codes);
    scaled_less<32, 8>(codes, scale, minimum, out);
  }
};

struct Q5_K {
  static constexpr size_t kElements = kSuper, kSize = 176;
  static void decode(const uint8_t* block, float* out) {
    float scale[8], minimum[8];
    six_bits(block, scale, minimum);
    alignas(64) uint8_t codes[kSuper];
    fields<4, 4>(block + 48, 0, codes);
    each_piece([&](size_t i) {
      auto left = simd::load<Row>(block + 16 + i);
      for (size_t row = 0; row < 8; ++row) {
        uint8_t* to = codes + 32 * row + i;
        simd::store(to, simd::load<Row>(to) | ((left & uint8_t{1}) << 4));
        left >>= 1;
      }
    });
    scaled_less<32, 8>(codes, scale, minimum, out);
  }
};

struct Q6_K {
  static constexpr size_t kElements = kSuper, kSize = 210;
  static void decode(const uint8_t* block, float* out) {
    const uint8_t* low = block;
    const uint8_t* high = block + 128;
    const auto* scales = reinterpret_cast<const int8_t*>(block + 192);
    const float d = half(block + 208);
    float scale[16];
    for (size_t i = 0; i < 16; ++i) {
      scale[i] = d * static_cast<float>(scales[i]);
    }
    alignas(64) uint8_t codes[kSuper];
    // Each half of the block has 64 bytes of four bits, and 32 of two.
    for (size_t part = 0; part < 2; ++part) {
      each_piece([&](size_t i) {
        auto two = simd::load<Row>(high + 32 * part + i);
        for (size_t row = 0; row < 4; ++row) {
          const auto four = simd::load<Row>(low + 64 * part + 32 * (row % 2) + i);
          const auto nibble = row < 2 ? four & uint8_t{15} : four >> 4;
          simd::store(codes + 128 * part + 32 * row + i,
                      (nibble | ((two & uint8_t{3}) << 4)) - uint8_t{32});
          two >>= 2;
        }
      });
    }
    scaled<16, 16>(codes, scale, out);
  }
};

// Ternary digits: the most significant one of a byte b is that of 3 * b / 256, and three times the
// byte has the next one there.
template <class V>
void digits(V left, size_t count, size_t apart, uint8_t* codes) {
  for (size_t digit = 0; digit < count; ++digit) {
    const auto above_one = simd::bits<V>(left > uint8_t{85});  // all bits: less one
    const auto above_two = simd::bits<V>(left > uint8_t{170});
    simd::store(codes + digit * apart, uint8_t{255} - above_one - above_two);
    left = left + left + left;
  }
}

struct TQ1_0 {
  static constexpr size_t kElements = kSuper, kSize = 54;
  static void decode(const uint8_t* block, float* out) {
    const float scale = half(block + 52);
    alignas(64) uint8_t codes[kSuper];
    each_piece([&](size_t i) { digits(simd::load<Row>(block + i), 5, 32, codes + i); });
    digits(simd::load<Sixteen>(block + 32), 5, 16, codes + 160);
    digits(simd::load<simd::Vector<uint8_t, 4>>(block + 48), 4, 4, codes + 240);
    scaled<kSuper, 1>(codes, &scale, out);
  }
};

struct TQ2_0 {
  static constexpr size_t kElements = kSuper, kSize = 66;
  static void decode(const uint8_t* block, float* out) {
    const float scale = half(block + 64);
    alignas(64) uint8_t codes[kSuper];
    fields<2, 2>(block, 1, codes);
    scaled<kSuper, 1>(codes, &scale, out);
  }
};

constexpr int8_t kNonlinear[16] = {-127, -104, -83, -65, -49, -35, -22, -10,
                                   1,    13,   25,  38,  53,  69,  89,  113};
// Twice the numbers of e2m1.
constexpr int8_t kTwiceFloat4[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};

struct IQ4_NL {
  static constexpr size_t kElements = 32, kSize = 18;
  static void decode(const uint8_t* block, float* out) {
    const auto table = simd::load<Sixteen>(kNonlinear);
    const auto both = simd::load<Sixteen>(block + 2);
    alignas(64) uint8_t codes[32];
    simd::store(codes, simd::look_up(table, both & uint8_t{15}));
    simd::store(codes + 16, simd::look_up(table, both >> 4));
    const float scale = half(block);
    scaled<32, 1>(codes, &scale, out);
  }
};

struct IQ4_XS {
  static constexpr size_t kElements = kSuper, kSize = 136;
  static void decode(const uint8_t* block, float* out) {
    const auto table = simd::load<Sixteen>(kNonlinear);
    const float d = half(block);
    const unsigned high = two_bytes(block + 2);
    float scale[8];
    alignas(64) uint8_t codes[kSuper];
    for (size_t i = 0; i < 8; ++i) {
      const unsigned low = block[4 + i / 2] >> (4 * (i % 2)) & 15u;
      scale[i] = d * static_cast<float>(static_cast<int>(low | (high >> (2 * i) & 3u) << 4) - 32);
      const auto both = simd::load<Sixteen>(block + 8 + 16 * i);
      simd::store(codes + 32 * i, simd::look_up(table, both & uint8_t{15}));
      simd::store(codes + 32 * i + 16, simd::look_up(table, both >> 4));
    }
    scaled<32, 8>(codes, scale, out);
  }
};

struct MXFP4 {
  static constexpr size_t kElements = 32, kSize = 17;
  static void decode(const uint8_t* block, float* out) {
    const uint32_t e = block[0];
    const float scale = simd::bits<float>(e < 2 ? 0x00200000u << e : (e - 1) << 23);  // 2^(e-128)
    const auto table = simd::load<Sixteen>(kTwiceFloat4);
    const auto both = simd::load<Sixteen>(block + 1);
    alignas(64) uint8_t codes[32];
    simd::store(codes, simd::look_up(table, both & uint8_t{15}));
    simd::store(codes + 16, simd::look_up(table, both >> 4));
    scaled<32, 1>(codes, &scale, out);
  }
};

// Half of an unsigned e4m3, whose 127 is zero; the highest bit does not count but there.
float half_of_e4m3(uint8_t x) {
  const uint32_t exponent = x >> 3 & 15, mantissa = x & 7;
  if (x == 0 || x == 127) {
    return 0;
  }
  return exponent == 0 ? static_cast<float>(mantissa) * 0x1p-10f
                       : simd::bits<float>((exponent + 127 - 8) << 23 | mantissa << 20);
}

struct NVFP4 {
  static constexpr size_t kElements = 64, kSize = 36;
  static void decode(const uint8_t* block, float* out) {
    const auto table = simd::load<Sixteen>(kTwiceFloat4);
    float scale[4];
    alignas(64) uint8_t codes[64];
    for (size_t i = 0; i < 4; ++i) {
      scale[i] = half_of_e4m3(block[i]);
      uint64_t both;
      std::memcpy(&both, block + 4 + 8 * i, sizeof both);
      constexpr uint64_t kLow = 0x0f0f0f0f0f0f0f0f;
      const auto index =
          simd::bits<Sixteen>(simd::Vector<uint64_t, 2>{both & kLow, both >> 4 & kLow});
      simd::store(codes + 16 * i, simd::look_up(table, index));
    }
    scaled<16, 4>(codes, scale, out);
  }
};

template <class Block>
void decode(const uint8_t* blocks, size_t count, float* out) {
  for (size_t i = 0; i < count; ++i) {
    Block::decode(blocks + i * Block::kSize, out + i * Block::kElements);
  }
}

constexpr GgufKernels kKernels = {
    simd::kLevelName,
    // In the order of BlockCode.
    {decode<Q4_0>, decode<Q4_1>, decode<Q5_0>, decode<Q5_1>, decode<Q8_0>, decode<Q2_K>,
     decode<Q3_K>, decode<Q4_K>, decode<Q5_K>, decode<Q6_K>, decode<TQ1_0>, decode<TQ2_0>,
     decode<IQ4_NL>, decode<IQ4_XS>, decode<MXFP4>, decode<NVFP4>}};

}  // namespace

const GgufKernels& GgufKernels::at(simd::Compiled) { return kKernels; }

}  // namespace dormant::decode
