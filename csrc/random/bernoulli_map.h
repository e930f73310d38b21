// Random bits to zeros and ones. For kernels only (simd/vector.h).
#pragma once

#include <cstddef>
#include <cstdint>

#include "random/number53.h"

namespace dormant::random {
namespace {

// Masks of lanes of kWidth bytes from lane `first` of `success` on, which gives those of at least
// Success::kNarrowest bytes; narrower ones are made of them.
template <size_t kWidth, class Success>
auto masks(const Success& success, const uint32_t* words, size_t first) {
  if constexpr (kWidth >= Success::kNarrowest) {
    return success.template at<kWidth>(words, first);
  } else {
    using Narrow = simd::Vector<simd::Unsigned<kWidth>>;
    constexpr size_t kWideLanes = simd::kBytes / (2 * kWidth);
    const auto low = masks<2 * kWidth>(success, words, first);
    const auto high = masks<2 * kWidth>(success, words, first + kWideLanes);
    return simd::permute(simd::bits<Narrow>(low), simd::bits<Narrow>(high),
                         [](size_t lane) { return 2 * lane; });
  }
}

// A map as those of uniform_map.h: the low bytes of `one` where Success says so, else zero.
template <size_t kElementWidth, class Success>
class BernoulliMap {
 public:
  static constexpr size_t kElements = 64;
  static constexpr size_t kWords = kElements * Success::kWordsEach;
  static constexpr size_t kWidth = kElementWidth;

  BernoulliMap(Success success, uint64_t one)
      : success_(success), one_(simd::set<Elements>(static_cast<Element>(one))) {}

  void operator()(const uint32_t* words, unsigned char* out) const {
    for (size_t i = 0; i < kElements; i += simd::kBytes / kWidth) {
      const auto mask = simd::bits<Elements>(masks<kWidth>(success_, words, i));
      simd::store(out + i * kWidth, mask & one_);
    }
  }

 private:
  using Element = simd::Unsigned<kWidth>;
  using Elements = simd::Vector<Element>;

  Success success_;
  Elements one_;
};

// The 53-bit number of two words is below `threshold`.
struct Below53 {
  static constexpr size_t kWordsEach = 2;
  static constexpr size_t kNarrowest = sizeof(uint64_t);

  uint64_t threshold;

  template <size_t kWidth>
  auto at(const uint32_t* words, size_t first) const {
    using Signed = simd::Vector<int64_t>;  // which is quicker to compare
    return simd::bits<Signed>(number53(words + 2 * first)) < static_cast<int64_t>(threshold);
  }
};

// A word is at most `last`.
struct AtMost32 {
  static constexpr size_t kWordsEach = 1;
  static constexpr size_t kNarrowest = sizeof(uint32_t);

  uint32_t last;

  template <size_t kWidth>
  auto at(const uint32_t* words, size_t first) const {
    if constexpr (kWidth == sizeof(uint32_t)) {
      return simd::load<simd::Int>(words + first) <= last;
    } else {
      using Words = simd::Vector<uint32_t, simd::kBytes / kWidth>;
      const auto narrow = simd::load<Words>(words + first);
      const auto twice = [&]<size_t... lane>(std::index_sequence<lane...>) {
        return __builtin_shufflevector(narrow, narrow, (lane / 2)...);
      }(std::make_index_sequence<simd::kCount>());
      return twice <= last;
    }
  }
};

// Calls function.operator()<width>() for an element of 1, 2, 4 or 8 bytes.
template <class Function>
void with_width(size_t width, Function&& function) {
  switch (width) {
    case 1:
      return function.template operator()<1>();
    case 2:
      return function.template operator()<2>();
    case 4:
      return function.template operator()<4>();
    default:
      return function.template operator()<8>();
  }
}

}  // namespace
}  // namespace dormant::random
