// The kernels of PhiloxKernels, written once over lanes (lanes_*.h).
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "random/box_muller.h"
#include "random/philox_kernels.h"
#include "random/store_choice.h"
#include "random/uniform_map.h"

namespace dormant::random {

// Cuts elements [begin, begin + n) of `kBytes` bytes into units of `kElements`. Whole ones are
// written by whole(unit, units, out); the first and the last, if incomplete, by way of a buffer.
template <size_t kElements, size_t kBytes, class Whole>
void for_units(uint64_t begin, size_t n, void* out, Whole&& whole) {
  auto* to = static_cast<unsigned char*>(out);
  const auto part = [&](uint64_t unit, size_t first, size_t count) {
    alignas(64) unsigned char values[kElements * kBytes];
    whole(unit, size_t{1}, static_cast<void*>(values));
    std::memcpy(to, values + first * kBytes, count * kBytes);
    to += count * kBytes;
  };
  uint64_t unit = begin / kElements;
  if (const size_t first = begin % kElements; first != 0) {
    const size_t count = n < kElements - first ? n : kElements - first;
    part(unit++, first, count);
    n -= count;
  }
  if (const size_t units = n / kElements; units != 0) {
    whole(unit, units, static_cast<void*>(to));
    to += units * kElements * kBytes;
    unit += units;
    n %= kElements;
  }
  if (n != 0) {
    part(unit, 0, n);
  }
}

template <class Lanes>
class PhiloxLoops {
 public:
  static constexpr PhiloxKernels kernels(const char* name) {
    return {name, words, uniform, normal, bernoulli};
  }

 private:
  using Int = typename Lanes::Int;
  using Float = typename Lanes::Float;

  static constexpr size_t kVectors = kPhiloxWords / Lanes::kCount;
  static constexpr size_t kVectorsOfWord = kPhiloxCounters / Lanes::kCount;
  static constexpr int kRounds = 10;

  struct Unit {
    Int words[kVectors];
  };

  // Counters [first, first + kCount): word w of counter i becomes lane i of result[w * stride].
  static void counters(const PhiloxKey& key, uint64_t first, Int* result) {
    // Two groups, of even and of odd counters, each word in the low half of a 64-bit lane: the
    // products need no shuffles, and what they leave in the high halves is never read.
    struct Group {
      Int word[4];
    };
    const auto group = [&](uint32_t parity) {
      return Group{{Lanes::add(Lanes::iota(), Lanes::set(static_cast<uint32_t>(first) + parity)),
                    Lanes::set(static_cast<uint32_t>(first >> 32)),
                    Lanes::set(static_cast<uint32_t>(key.stream)),
                    Lanes::set(static_cast<uint32_t>(key.stream >> 32))}};
    };
    Group even = group(0);
    Group odd = group(1);
    auto key0 = static_cast<uint32_t>(key.seed);
    auto key1 = static_cast<uint32_t>(key.seed >> 32);
    for (int round = 0; round < kRounds; ++round) {
      const auto mix = [&](Group& group) {
        const Int product0 = Lanes::product_even(group.word[0], Lanes::set(0xd2511f53));
        const Int product1 = Lanes::product_even(group.word[2], Lanes::set(0xcd9e8d57));
        group = {
            {Lanes::xor3(Lanes::high_half(product1), group.word[1], Lanes::set(key0)), product1,
             Lanes::xor3(Lanes::high_half(product0), group.word[3], Lanes::set(key1)), product0}};
      };
      mix(even);
      mix(odd);
      key0 += 0x9e3779b9;
      key1 += 0xbb67ae85;
    }
    for (size_t word = 0; word < 4; ++word) {
      result[word * kVectorsOfWord] = Lanes::interleave_even(even.word[word], odd.word[word]);
    }
  }

  static Unit unit_at(const PhiloxKey& key, uint64_t unit) {
    Unit result;
    for (size_t half = 0; half < kVectorsOfWord; ++half) {
      counters(key, unit * kPhiloxCounters + half * Lanes::kCount, result.words + half);
    }
    return result;
  }

  static void words(const PhiloxKey& key, uint64_t first_unit, size_t units, uint32_t* out) {
    for (size_t i = 0; i < units; ++i) {
      const Unit unit = unit_at(key, first_unit + i);
      for (size_t v = 0; v < kVectors; ++v) {
        Lanes::save(out + i * kPhiloxWords + v * Lanes::kCount, unit.words[v]);
      }
    }
  }

  // 64 elements a unit: map(unit, values) makes kVectors vectors of values.
  template <Format kFormat, class Map>
  static void map_units(const PhiloxKey& key, void* out, uint64_t begin, size_t n, Store store,
                        Map&& map) {
    constexpr size_t kBytes = kFormat == Format::float32 ? 4 : 2;
    for_units<kPhiloxWords, kBytes>(begin, n, out, [&](uint64_t first, size_t units, void* to) {
      with_store<Lanes>(store, to, [&]<Store kStore>() {
        auto* at = static_cast<unsigned char*>(to);
        for (size_t i = 0; i < units; ++i) {
          Float values[kVectors];
          map(unit_at(key, first + i), values);
          for (size_t v = 0; v < kVectors; v += 2) {
            Lanes::template store<kFormat, kStore>(at + v * Lanes::kCount * kBytes, values[v],
                                                   values[v + 1]);
          }
          at += kPhiloxWords * kBytes;
        }
      });
    });
  }

  template <Format kFormat>
  static void uniform_as(const PhiloxKey& key, void* out, uint64_t begin, size_t n, double from,
                         double to, Store store) {
    const UniformMap<Lanes, kFormat> map(from, to);
    map_units<kFormat>(key, out, begin, n, store, [&](const Unit& unit, Float* values) {
      for (size_t v = 0; v < kVectors; ++v) {
        values[v] = map(unit.words[v]);
      }
    });
  }

  static void uniform_double(const PhiloxKey& key, void* out, uint64_t begin, size_t n, double from,
                             double to, Store store) {
    constexpr size_t kElements = kPhiloxWords / 2;
    const auto scale = Lanes::set_double(to - from);
    const auto offset = Lanes::set_double(from);
    const auto excluded = Lanes::set_double(to);
    for_units<kElements, sizeof(double)>(
        begin, n, out, [&](uint64_t first, size_t units, void* at) {
          with_store<Lanes>(store, at, [&]<Store kStore>() {
            auto* element = static_cast<double*>(at);
            for (size_t i = 0; i < units; ++i) {
              alignas(64) uint32_t unit[kPhiloxWords];
              words(key, first + i, 1, unit);
              for (size_t word = 0; word < kPhiloxWords; word += 2 * Lanes::kDoubles) {
                const auto value = Lanes::affine(Lanes::load_uniform53(unit + word), scale, offset);
                Lanes::template store<kStore>(element,
                                              Lanes::select_equal(value, excluded, offset));
                element += Lanes::kDoubles;
              }
            }
          });
        });
  }

  template <Format kFormat>
  static void normal_as(const PhiloxKey& key, void* out, uint64_t begin, size_t n, double mean,
                        double std, Store store) {
    const Float offset = Lanes::set_float(static_cast<float>(mean));
    const Float scale = Lanes::set_float(static_cast<float>(std));
    map_units<kFormat>(key, out, begin, n, store, [&](const Unit& unit, Float* values) {
      // Words 0 and 1 of a counter make a pair, 2 and 3 another.
      for (size_t first = 0; first < kVectors; first += 2 * kVectorsOfWord) {
        for (size_t v = first; v < first + kVectorsOfWord; ++v) {
          Float cosine, sine;
          BoxMuller<Lanes>::pair(unit.words[v], unit.words[v + kVectorsOfWord], cosine, sine);
          values[v] = Lanes::template round<kFormat>(Lanes::fma(cosine, scale, offset));
          values[v + kVectorsOfWord] =
              Lanes::template round<kFormat>(Lanes::fma(sine, scale, offset));
        }
      }
    });
  }

  template <size_t kWidth>
  static void bernoulli_as(const PhiloxKey& key, uint64_t one, void* out, uint64_t begin, size_t n,
                           uint32_t last, Store store) {
    constexpr size_t kElements = 32;  // of one store_bits()
    for_units<kPhiloxWords, kWidth>(begin, n, out, [&](uint64_t first, size_t units, void* to) {
      with_store<Lanes>(store, to, [&]<Store kStore>() {
        auto* at = static_cast<unsigned char*>(to);
        for (size_t i = 0; i < units; ++i) {
          const Unit unit = unit_at(key, first + i);
          for (size_t v = 0; v < kVectors; v += kElements / Lanes::kCount) {
            uint32_t bits = 0;
            for (size_t lane = 0; lane < kElements; lane += Lanes::kCount) {
              bits |= Lanes::at_most(unit.words[v + lane / Lanes::kCount], Lanes::set(last))
                      << lane;
            }
            Lanes::template store_bits<kWidth, kStore>(at, bits, one);
            at += kElements * kWidth;
          }
        }
      });
    });
  }

  static void uniform(const PhiloxKey& key, Format format, void* out, uint64_t begin, size_t n,
                      double from, double to, Store store) {
    switch (format) {
      case Format::float32:
        return uniform_as<Format::float32>(key, out, begin, n, from, to, store);
      case Format::bfloat16:
        return uniform_as<Format::bfloat16>(key, out, begin, n, from, to, store);
      case Format::float16:
        return uniform_as<Format::float16>(key, out, begin, n, from, to, store);
      case Format::float64:
        return uniform_double(key, out, begin, n, from, to, store);
    }
  }

  static void normal(const PhiloxKey& key, Format format, void* out, uint64_t begin, size_t n,
                     double mean, double std, Store store) {
    switch (format) {
      case Format::float32:
        return normal_as<Format::float32>(key, out, begin, n, mean, std, store);
      case Format::bfloat16:
        return normal_as<Format::bfloat16>(key, out, begin, n, mean, std, store);
      case Format::float16:
        return normal_as<Format::float16>(key, out, begin, n, mean, std, store);
      case Format::float64:
        return;  // excluded by the contract
    }
  }

  static void bernoulli(const PhiloxKey& key, size_t width, uint64_t one, void* out, uint64_t begin,
                        size_t n, uint32_t last, Store store) {
    switch (width) {
      case 1:
        return bernoulli_as<1>(key, one, out, begin, n, last, store);
      case 2:
        return bernoulli_as<2>(key, one, out, begin, n, last, store);
      case 4:
        return bernoulli_as<4>(key, one, out, begin, n, last, store);
      default:
        return bernoulli_as<8>(key, one, out, begin, n, last, store);
    }
  }
};

}  // namespace dormant::random
