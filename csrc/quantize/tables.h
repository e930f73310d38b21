// The values that codes of bitsandbytes stand for.
#pragma once

#include <array>

namespace dormant::quantization {

/// Levels for normally distributed weights (bitsandbytes.functional.get_4bit_type("nf4")), which
/// are quantiles of the normal distribution (https://arxiv.org/abs/2305.14314).
std::array<float, 16> nf4_values();

/// A floating point number of one sign bit, two of exponent and one of mantissa, divided by the
/// largest (get_4bit_type("fp4")).
std::array<float, 16> fp4_values();

/// The codes of nested statistics, ascending (create_dynamic_map()): for each decimal exponent from
/// -6 to 0 twice as many fractions as for the one before it, with both signs, and 0 and 1. Made by
/// the same operators of PyTorch, because their last bit depends on the processor.
std::array<float, 256> dynamic_map_values();

}  // namespace dormant::quantization
