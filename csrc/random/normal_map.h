// Pairs of 32-bit words to pairs of normal numbers, with the bits of ATen's normal_fill
// (ATen/native/cpu/DistributionTemplates.h).
#pragma once

#include <cstdint>

#include "random/box_muller.h"
#include "random/stream_kernels.h"

namespace dormant::random {

template <class Lanes, Format kFormat>
class NormalMap {
 public:
  NormalMap(double mean, double std)
      : offset_(Lanes::set_float(static_cast<float>(mean))),
        scale_(Lanes::set_float(static_cast<float>(std))) {}

  // Elements of two vectors from as many words, in the order of blocks of 16.
  void operator()(const uint32_t* words, typename Lanes::Float& low,
                  typename Lanes::Float& high) const {
    typename Lanes::Int radius_word, angle_word;
    Lanes::load_pairs(words, radius_word, angle_word);
    BoxMuller<Lanes>::pair(radius_word, angle_word, low, high);
    low = Lanes::template round<kFormat>(Lanes::fma(low, scale_, offset_));
    high = Lanes::template round<kFormat>(Lanes::fma(high, scale_, offset_));
    Lanes::restore_order(low, high);
  }

 private:
  typename Lanes::Float offset_;
  typename Lanes::Float scale_;
};

}  // namespace dormant::random
