// 24 random bits to a number in [from, to), with the bits of ATen's uniform_
// (ATen/core/TransformationHelper.h, uniform_real; ATen/native/cpu/DistributionTemplates.h,
// uniform_kernel).
#pragma once

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

  // Uses the low 24 bits of each lane.
  typename Lanes::Float operator()(typename Lanes::Int draw) const {
    const auto low24 = Lanes::bit_and(draw, Lanes::set(0xffffff));
    const auto u = Lanes::mul(Lanes::to_float(low24), Lanes::set_float(0x1p-24f));
    const auto value = Lanes::template round<kFormat>(Lanes::affine(u, scale_, offset_));
    // Rounding may reach the excluded bound; ATen then gives the lower one.
    return Lanes::select(Lanes::equal(value, excluded_), instead_, value);
  }

 private:
  typename Lanes::Float scale_;
  typename Lanes::Float offset_;
  typename Lanes::Float excluded_;
  typename Lanes::Float instead_;
};

}  // namespace dormant::random
