// The kernels of PhiloxKernels, written once over lanes (lanes_*.h).
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "random/box_muller.h"
#include "random/philox_kernels.h"
#include "random/philox_schedule.h"
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

  using Schedule = PhiloxSchedule<Lanes>;

  static void words(const PhiloxKey& key, uint64_t first_unit, size_t units, uint32_t* out) {
    const Schedule schedule(key);
    for (size_t i = 0; i < units; ++i) {
      schedule.unit(first_unit + i, out + i * kPhiloxWords);
    }
  }

  // Writes elements [begin, begin + n) of `kBytes` bytes: fill(words, out) makes the elements of a
  // unit, with the store as a template argument.
  template <size_t kElements, size_t kBytes, class Fill>
  static void fill_units(const PhiloxKey& key, void* out, uint64_t begin, size_t n, Store store,
                         Fill&& fill) {
    // Words are made a few units ahead, in cache: the chain of rounds is long, and so is that of
    // Box-Muller; each loop alone overlaps more units than both in one.
    constexpr size_t kAhead = 16;
    const Schedule schedule(key);
    for_units<kElements, kBytes>(begin, n, out, [&](uint64_t first, size_t units, void* to) {
      with_store<Lanes>(store, to, [&]<Store kStore>() {
        alignas(64) uint32_t words[kAhead * kPhiloxWords];
        auto* at = static_cast<unsigned char*>(to);
        for (size_t done = 0; done < units;) {
          const size_t count = units - done < kAhead ? units - done : kAhead;
          for (size_t i = 0; i < count; ++i) {
            schedule.unit(first + done + i, words + i * kPhiloxWords);
          }
          for (size_t i = 0; i < count; ++i) {
            fill.template operator()<kStore>(words + i * kPhiloxWords, at);
            at += kElements * kBytes;
          }
          done += count;
        }
      });
    });
  }

  template <Format kFormat>
  static constexpr size_t kBytesOf = kFormat == Format::float32 ? 4 : 2;

  template <Format kFormat>
  static void uniform_as(const PhiloxKey& key, void* out, uint64_t begin, size_t n, double from,
                         double to, Store store) {
    constexpr size_t kBytes = kBytesOf<kFormat>;
    const UniformMap<Lanes, kFormat> map(from, to);
    const auto fill = [&]<Store kStore>(const uint32_t* words, unsigned char* at) {
      for (size_t i = 0; i < kPhiloxWords; i += 2 * Lanes::kCount) {
        const Float low = map(Lanes::load(words + i));
        const Float high = map(Lanes::load(words + i + Lanes::kCount));
        Lanes::template store<kFormat, kStore>(at + i * kBytes, low, high);
      }
    };
    fill_units<kPhiloxWords, kBytes>(key, out, begin, n, store, fill);
  }

  static void uniform_double(const PhiloxKey& key, void* out, uint64_t begin, size_t n, double from,
                             double to, Store store) {
    const auto scale = Lanes::set_double(to - from);
    const auto offset = Lanes::set_double(from);
    const auto excluded = Lanes::set_double(to);
    const auto fill = [&]<Store kStore>(const uint32_t* words, unsigned char* at) {
      auto* element = reinterpret_cast<double*>(at);
      for (size_t i = 0; i < kPhiloxWords; i += 2 * Lanes::kDoubles) {
        const auto value = Lanes::affine(Lanes::load_uniform53(words + i), scale, offset);
        Lanes::template store<kStore>(element, Lanes::select_equal(value, excluded, offset));
        element += Lanes::kDoubles;
      }
    };
    fill_units<kPhiloxWords / 2, sizeof(double)>(key, out, begin, n, store, fill);
  }

  template <Format kFormat>
  static void normal_as(const PhiloxKey& key, void* out, uint64_t begin, size_t n, double mean,
                        double std, Store store) {
    constexpr size_t kBytes = kBytesOf<kFormat>;
    const Float offset = Lanes::set_float(static_cast<float>(mean));
    const Float scale = Lanes::set_float(static_cast<float>(std));
    const auto fill = [&]<Store kStore>(const uint32_t* words, unsigned char* at) {
      // Blocks of 16 words make 16 elements, as in PyTorch's normal_.
      for (size_t i = 0; i < kPhiloxWords; i += 2 * Lanes::kCount) {
        Int radius_word, angle_word;
        Lanes::load_pairs(words + i, radius_word, angle_word);
        Float low, high;
        BoxMuller<Lanes>::pair(radius_word, angle_word, low, high);
        low = Lanes::template round<kFormat>(Lanes::fma(low, scale, offset));
        high = Lanes::template round<kFormat>(Lanes::fma(high, scale, offset));
        Lanes::restore_order(low, high);
        Lanes::template store<kFormat, kStore>(at + i * kBytes, low, high);
      }
    };
    fill_units<kPhiloxWords, kBytes>(key, out, begin, n, store, fill);
  }

  template <size_t kWidth>
  static void bernoulli_as(const PhiloxKey& key, uint64_t one, void* out, uint64_t begin, size_t n,
                           uint32_t last, Store store) {
    constexpr size_t kElements = 32;  // of one store_bits()
    const auto fill = [&]<Store kStore>(const uint32_t* words, unsigned char* at) {
      for (size_t i = 0; i < kPhiloxWords; i += kElements) {
        uint32_t bits = 0;
        for (size_t lane = 0; lane < kElements; lane += Lanes::kCount) {
          const Int word = Lanes::load(words + i + lane);
          bits |= Lanes::at_most(word, Lanes::set(last)) << lane;
        }
        Lanes::template store_bits<kWidth, kStore>(at + i * kWidth, bits, one);
      }
    };
    fill_units<kPhiloxWords, kWidth>(key, out, begin, n, store, fill);
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
