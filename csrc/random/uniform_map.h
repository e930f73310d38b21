// 24 random bits to a number in [from, to), with the bits of ATen's uniform_
// (ATen/core/TransformationHelper.h, uniform_real; ATen/native/cpu/DistributionTemplates.h,
// uniform_kernel).
#pragma once

#include <cstdint>

#include "random/stream_kernels.h"

namespace dormant::random {

template <class Lanes, Format kFormat>
class UniformMap {
 public:
  UniformMap(double from, double to)
      : scale_(Lanes::set_float(static_cast<float>(to) - static_cast<float>(from))),
        offset_(Lanes::set_float(static_cast<float>(from))),
        excluded_(Lanes::template round<kFormat>(Lanes::set_float(static_cast<float>(to)))),
        instead_(Lanes::template round<kFormat>(offset_)) {}

  // Elements of two vectors from as many words.
  void operator()(const uint32_t* words, typename Lanes::Float& low,
                  typename Lanes::Float& high) const {
    low = map(Lanes::load(words));
    high = map(Lanes::load(words + Lanes::kCount));
  }

 private:
  // Uses the low 24 bits of each lane.
  typename Lanes::Float map(typename Lanes::Int draw) const {
    const auto low24 = Lanes::bit_and(draw, Lanes::set(0xffffff));
    const auto u = Lanes::mul(Lanes::to_float(low24), Lanes::set_float(0x1p-24f));
    const auto value = Lanes::template round<kFormat>(Lanes::affine(u, scale_, offset_));
    // Rounding may reach the excluded bound; ATen then gives the lower one.
    return Lanes::select(Lanes::equal(value, excluded_), instead_, value);
  }

  typename Lanes::Float scale_;
  typename Lanes::Float offset_;
  typename Lanes::Float excluded_;
  typename Lanes::Float instead_;
};

// The same of 53 random bits.
template <class Lanes>
class UniformMap<Lanes, Format::float64> {
 public:
  UniformMap(double from, double to)
      : scale_(Lanes::set_double(to - from)),
        offset_(Lanes::set_double(from)),
        excluded_(Lanes::set_double(to)) {}

  // Lanes::kDoubles elements from twice as many words.
  typename Lanes::Double operator()(const uint32_t* words) const {
    const auto value = Lanes::affine(Lanes::load_uniform53(words), scale_, offset_);
    return Lanes::select_equal(value, excluded_, offset_);
  }

 private:
  typename Lanes::Double scale_;
  typename Lanes::Double offset_;
  typename Lanes::Double excluded_;
};

}  // namespace dormant::random
