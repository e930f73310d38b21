// The kernels of PhiloxKernels, written once over lanes (lanes_*.h).
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "random/normal_map.h"
#include "random/philox_kernels.h"
#include "random/philox_schedule.h"
#include "random/static_choice.h"
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

  using Schedule = PhiloxSchedule<Lanes>;

  static void words(const PhiloxKey& key, uint64_t first_unit, size_t units, uint32_t* out) {
    const Schedule schedule(key);
    for (size_t i = 0; i < units; ++i) {
      schedule.unit(first_unit + i, out + i * kPhiloxWords);
    }
  }

  // Writes elements [begin, begin + n) of `kBytes` bytes: fill(words, out) makes the elements of a
  // unit.
  template <size_t kElements, size_t kBytes, class Fill>
  static void fill_units(const PhiloxKey& key, void* out, uint64_t begin, size_t n, Fill&& fill) {
    // Words are made a few units ahead, in cache: the chain of rounds is long, and so is that of
    // Box-Muller; each loop alone overlaps more units than both in one.
    constexpr size_t kAhead = 16;
    const Schedule schedule(key);
    for_units<kElements, kBytes>(begin, n, out, [&](uint64_t first, size_t units, void* to) {
      alignas(64) uint32_t words[kAhead * kPhiloxWords];
      auto* at = static_cast<unsigned char*>(to);
      for (size_t done = 0; done < units;) {
        const size_t count = units - done < kAhead ? units - done : kAhead;
        for (size_t i = 0; i < count; ++i) {
          schedule.unit(first + done + i, words + i * kPhiloxWords);
        }
        for (size_t i = 0; i < count; ++i) {
          fill(words + i * kPhiloxWords, at);
          at += kElements * kBytes;
        }
        done += count;
      }
    });
  }

  template <Format kFormat>
  static constexpr size_t kBytesOf = kFormat == Format::float32 ? 4 : 2;

  // `map` makes two vectors of elements from as many words.
  template <Format kFormat, class Map>
  static void map_words(const PhiloxKey& key, void* out, uint64_t begin, size_t n, const Map& map) {
    constexpr size_t kBytes = kBytesOf<kFormat>;
    const auto fill = [&](const uint32_t* words, unsigned char* at) {
      for (size_t i = 0; i < kPhiloxWords; i += 2 * Lanes::kCount) {
        Float low, high;
        map(words + i, low, high);
        Lanes::template store<kFormat>(at + i * kBytes, low, high);
      }
    };
    fill_units<kPhiloxWords, kBytes>(key, out, begin, n, fill);
  }

  static void uniform_double(const PhiloxKey& key, void* out, uint64_t begin, size_t n, double from,
                             double to) {
    const UniformMap<Lanes, Format::float64> map(from, to);
    const auto fill = [&](const uint32_t* words, unsigned char* at) {
      auto* element = reinterpret_cast<double*>(at);
      for (size_t i = 0; i < kPhiloxWords; i += 2 * Lanes::kDoubles) {
        Lanes::store(element, map(words + i));
        element += Lanes::kDoubles;
      }
    };
    fill_units<kPhiloxWords / 2, sizeof(double)>(key, out, begin, n, fill);
  }

  template <size_t kWidth>
  static void bernoulli_as(const PhiloxKey& key, uint64_t one, void* out, uint64_t begin, size_t n,
                           uint32_t last) {
    constexpr size_t kElements = 32;  // of one store_bits()
    const auto fill = [&](const uint32_t* words, unsigned char* at) {
      for (size_t i = 0; i < kPhiloxWords; i += kElements) {
        uint32_t bits = 0;
        for (size_t lane = 0; lane < kElements; lane += Lanes::kCount) {
          const Int word = Lanes::load(words + i + lane);
          bits |= Lanes::at_most(word, Lanes::set(last)) << lane;
        }
        Lanes::template store_bits<kWidth>(at + i * kWidth, bits, one);
      }
    };
    fill_units<kPhiloxWords, kWidth>(key, out, begin, n, fill);
  }

  static void uniform(const PhiloxKey& key, Format format, void* out, uint64_t begin, size_t n,
                      double from, double to) {
    with_format(format, [&]<Format kFormat>() {
      if constexpr (kFormat == Format::float64) {
        uniform_double(key, out, begin, n, from, to);
      } else {
        map_words<kFormat>(key, out, begin, n, UniformMap<Lanes, kFormat>(from, to));
      }
    });
  }

  // Blocks of 16 words make 16 elements, as in PyTorch's normal_.
  static void normal(const PhiloxKey& key, Format format, void* out, uint64_t begin, size_t n,
                     double mean, double std) {
    with_format(format, [&]<Format kFormat>() {
      if constexpr (kFormat != Format::float64) {  // excluded by the contract
        map_words<kFormat>(key, out, begin, n, NormalMap<Lanes, kFormat>(mean, std));
      }
    });
  }

  static void bernoulli(const PhiloxKey& key, size_t width, uint64_t one, void* out, uint64_t begin,
                        size_t n, uint32_t last) {
    with_width(width,
               [&]<size_t kWidth>() { bernoulli_as<kWidth>(key, one, out, begin, n, last); });
  }
};

}  // namespace dormant::random
