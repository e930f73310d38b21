// Eight floats as a plain array: what processors without AVX2 use, and a reference for those with
// it.
#pragma once

#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "quantize/kernels.h"

namespace dormant::quantize {
namespace {

class PortableLanes {
 public:
  static constexpr size_t kFloats = 8;

 private:
  template <class T>
  struct Array {
    T lane[kFloats];
  };

  // The array of function(lane).
  template <class Function>
  static auto each(Function&& function) {
    Array<decltype(function(size_t{0}))> v;
    for (size_t i = 0; i < kFloats; ++i) {
      v.lane[i] = function(i);
    }
    return v;
  }
  template <Format kFormat>
  static float element(const unsigned char* from, size_t i) {
    if constexpr (kFormat == Format::float32) {
      return at<float>(from, i);
    } else if constexpr (kFormat == Format::bfloat16) {
      return at<c10::BFloat16>(from, i);
    } else {
      return at<c10::Half>(from, i);
    }
  }
  template <class T>
  static T at(const unsigned char* from, size_t i) {
    T value;
    std::memcpy(&value, from + i * sizeof value, sizeof value);
    return value;
  }

 public:
  using Float = Array<float>;
  using Bucket = Array<int32_t>;

  static Float set(float v) {
    return each([&](size_t) { return v; });
  }
  static Float mul(Float a, Float b) {
    return each([&](size_t i) { return a.lane[i] * b.lane[i]; });
  }
  static Float div(Float a, Float b) {
    return each([&](size_t i) { return a.lane[i] / b.lane[i]; });
  }

  template <Format kFormat>
  static Float load(const unsigned char* from) {
    return each([&](size_t i) { return element<kFormat>(from, i); });
  }

  static Float round_to_half(Float v) {
    return each([&](size_t i) { return round_to_half(v.lane[i]); });
  }
  static float round_to_half(float v) { return c10::Half(v); }

  // The largest magnitude of n elements; NaN if one is.
  template <Format kFormat>
  static float largest(const unsigned char* from, size_t n) {
    float most = 0.0f;
    for (size_t i = 0; i < n; ++i) {
      const float magnitude = std::abs(element<kFormat>(from, i));
      most = magnitude <= most || most != most ? most : magnitude;
    }
    return most;
  }

  // The buckets of a table. Every middle is compared: compilers make vectors of that.
  class Buckets {
   public:
    explicit Buckets(const FourBitTable& table) : table_(table) {}

    Bucket of(Float v) const {
      Bucket k = {};
      for (size_t middle = 0; middle < 15; ++middle) {
        for (size_t i = 0; i < kFloats; ++i) {
          k.lane[i] += table_.middle[middle] >= v.lane[i] ? 0 : 1;
        }
      }
      return k;
    }

    // 32 elements.
    void store(uint8_t* to, Bucket a, Bucket b, Bucket c, Bucket d) const {
      for (const Bucket* k : {&a, &b, &c, &d}) {
        for (size_t i = 0; i < kFloats; i += 2) {
          *to++ = static_cast<uint8_t>(table_.code[k->lane[i]] << 4 | table_.code[k->lane[i + 1]]);
        }
      }
    }

   private:
    const FourBitTable& table_;
  };

  // 32 elements, rounded to nearest even.
  static void store_rounded(int8_t* to, Float a, Float b, Float c, Float d) {
    for (const Float* v : {&a, &b, &c, &d}) {
      for (size_t i = 0; i < kFloats; ++i) {
        // In a float of this size the last bit is worth one.
        constexpr float kMagic = 0x1.8p23f;
        *to++ = static_cast<int8_t>(v->lane[i] + kMagic - kMagic);
      }
    }
  }
};

}  // namespace
}  // namespace dormant::quantize
