// The codes of a FourBitTable by bisection. For kernels only (simd/vector.h).
#pragma once

#include <cstddef>
#include <cstdint>

#include "quantize/kernels.h"
#include "simd/lanes.h"

namespace dormant::quantization {
namespace {

// A bucket is four decisions: whether a middle is not below an element, NaN being above all. The
// decisions so far choose the middle of the next.
class Buckets {
  using Int = simd::Int;
  using Float = simd::Float;
  using Bytes = simd::Bytes;

 public:
  explicit Buckets(const FourBitTable& table) {
    Tree tree = {};
    grow<0>(tree, table, 0, 0);
    first_ = simd::set<Float>(tree.middle[0][0]);
    second_ = simd::table(tree.middle[1]);
    third_ = simd::table(tree.middle[2]);
    fourth_ = simd::table(tree.middle[3]);
    codes_ = simd::load<Bytes>(tree.code);
  }

  Int of(Float v) const {
    Int bucket = simd::decide<0>(Int{}, first_, v);
    bucket = simd::decide<1>(bucket, simd::look_up(second_, bucket), v);
    bucket = simd::decide<2>(bucket, simd::look_up(third_, bucket), v);
    return simd::decide<3>(bucket, simd::look_up(fourth_, bucket), v);
  }

  // The codes of four vectors of buckets, two in a byte, the first of them in its high half.
  auto packed(Int a, Int b, Int c, Int d) const {
    return simd::join_pairs(simd::look_up(codes_, simd::narrow(a, b, c, d) & uint8_t{15}));
  }

 private:
  struct Tree {
    float middle[4][8];  // by the number of decisions, then by what they were
    uint8_t code[simd::kBytes];
  };

  // Fills in what follows `index`, which means that the code is one of the 16 >> kDecisions from
  // `first` on.
  template <uint32_t kDecisions>
  static void grow(Tree& tree, const FourBitTable& table, uint32_t index, size_t first) {
    if constexpr (kDecisions == 4) {
      for (size_t i = index % 16; i < simd::kBytes; i += 16) {
        tree.code[i] = table.code[first];
      }
    } else {
      constexpr size_t kHalf = 8 >> kDecisions;
      tree.middle[kDecisions][index % 8] = table.middle[first + kHalf - 1];
      grow<kDecisions + 1>(tree, table, simd::decided<kDecisions>(index, true), first);
      grow<kDecisions + 1>(tree, table, simd::decided<kDecisions>(index, false), first + kHalf);
    }
  }

  Float first_;
  simd::Table second_, third_, fourth_;
  Bytes codes_;
};

}  // namespace
}  // namespace dormant::quantization
