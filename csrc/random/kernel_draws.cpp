// Without it ATen/native/DistributionTemplates.h pulls in every operator.
#define AT_PER_OPERATOR_HEADERS

#include "random/kernel_draws.h"

#include <ATen/core/DistributionsHelper.h>
#include <ATen/native/DistributionTemplates.h>

#include <limits>

#include "random/mt19937.h"
#include "random/normal_elements.h"
#include "random/seed_trace.h"

namespace dormant::random {
namespace {

using at::ScalarType;

bool is_real_or_bool(ScalarType dtype) {
  return is_floating(dtype) || is_plain_integer(dtype) || dtype == ScalarType::Bool;
}

double largest(ScalarType dtype) {
  switch (dtype) {
    case ScalarType::Half:
      return std::numeric_limits<c10::Half>::max();
    case ScalarType::BFloat16:
      return std::numeric_limits<c10::BFloat16>::max();
    case ScalarType::Float:
      return std::numeric_limits<float>::max();
    default:
      return std::numeric_limits<double>::max();
  }
}

// view_as_real: what normal_ and uniform_ fill in place of a complex tensor.
FilledTensor parts_of(FilledTensor target) {
  if (c10::isComplexType(target.dtype)) {
    target.dtype = c10::toRealValueType(target.dtype);
    target.numel *= 2;
  }
  return target;
}

// Draws through the generator itself where that is cheaper than copying the engine (2.5 KB) out and
// in.
void advance_generator(at::CPUGeneratorImpl& generator, uint64_t draws) {
  note_draws(generator, draws);
  constexpr uint64_t kCheapDraws = 64;
  if (draws <= kCheapDraws) {
    for (uint64_t i = 0; i < draws; ++i) {
      generator.random();
    }
    return;
  }
  at::mt19937 engine = generator.engine();
  at::mt19937_data_pod state = engine.data();
  advance(state, draws);
  engine.set_data(state);
  generator.set_engine(engine);
}

// `count` calls of at::normal_distribution<double>: a pair costs four draws, and its second half
// waits in the generator.
Draw take_normals(at::CPUGeneratorImpl& generator, uint64_t count) {
  constexpr uint64_t kPairDraws = 4;
  if (count == 0) {
    return Draw::none;
  }
  if (generator.next_double_normal_sample().has_value()) {
    generator.set_next_double_normal_sample(std::nullopt);
    --count;
  }
  advance_generator(generator, count / 2 * kPairDraws);
  if (count % 2 != 0) {
    // Drawn by ATen's own code, for the half that is kept must have ATen's bits.
    at::normal_distribution<double>(0.0, 1.0)(&generator);
    note_draws(generator, kPairDraws);
  }
  return Draw::skipped;
}

// Kernels that make one double of every two draws, whatever the dtype that they write.
Draw fill_by_doubles(const FilledTensor& target, bool accepted, at::CPUGeneratorImpl& generator) {
  return accepted && !target.overlaps ? take(generator, 2 * target.numel) : Draw::unknown;
}

// How many integers random_(from, to) chooses from, after what rounding to the dtype leaves of the
// bounds; none where eager refuses them. Without `to` the range ends at the last integer up to
// which the dtype tells neighbors apart.
template <typename Scalar>
std::optional<uint64_t> integer_range(int64_t from, std::optional<int64_t> to) {
  using Limits = std::numeric_limits<Scalar>;
  if (to && !(from < *to)) {
    return std::nullopt;
  }
  int64_t last = 0;
  bool within = false;
  if constexpr (Limits::is_integer) {
    last = to ? *to - 1 : static_cast<int64_t>(Limits::max());
    constexpr auto kHighest = static_cast<uint64_t>(Limits::max());
    within = from >= static_cast<int64_t>(Limits::lowest()) &&
             (last < 0 || static_cast<uint64_t>(last) <= kHighest);
  } else {
    from = at::native::templates::update_from<Scalar>(from);
    last = to ? at::native::templates::update_to<Scalar>(*to) - 1 : int64_t{1} << Limits::digits;
    const auto highest = static_cast<double>(Limits::max());
    within = static_cast<double>(from) >= -highest && static_cast<double>(last) <= highest;
  }
  if (!within || from > last) {
    return std::nullopt;
  }
  return static_cast<uint64_t>(last) - static_cast<uint64_t>(from) + 1;
}

}  // namespace

bool is_floating(ScalarType dtype) {
  return dtype == ScalarType::Float || dtype == ScalarType::Double || dtype == ScalarType::Half ||
         dtype == ScalarType::BFloat16;
}

// Signed and unsigned integers up to 64 bits, without the wider unsigned ones, which most kernels
// lack.
bool is_plain_integer(ScalarType dtype) {
  return dtype == ScalarType::Byte || dtype == ScalarType::Char || dtype == ScalarType::Short ||
         dtype == ScalarType::Int || dtype == ScalarType::Long;
}

Draw take(at::CPUGeneratorImpl& generator, uint64_t draws) {
  if (draws == 0) {
    return Draw::none;
  }
  advance_generator(generator, draws);
  return Draw::skipped;
}

Draw fill_normal(const FilledTensor& whole, double std, at::CPUGeneratorImpl& generator) {
  const FilledTensor target = parts_of(whole);
  const uint64_t n = target.numel;
  if (!is_floating(target.dtype) || !(std >= 0.0)) {
    return Draw::unknown;
  }
  if (n < kNormalBlock || !target.contiguous) {
    return target.overlaps ? Draw::unknown : take_normals(generator, n);
  }
  return take(generator, block_normal_draws(target.dtype, n));
}

Draw fill_log_normal(const FilledTensor& target, double std, at::CPUGeneratorImpl& generator) {
  const bool accepted = is_floating(target.dtype) && !target.overlaps && std > 0.0;
  return accepted ? take_normals(generator, target.numel) : Draw::unknown;
}

Draw fill_uniform(const FilledTensor& whole, double from, double to,
                  at::CPUGeneratorImpl& generator) {
  const FilledTensor target = parts_of(whole);
  const double limit = largest(target.dtype);
  if (!is_floating(target.dtype) || target.overlaps ||
      !(from >= -limit && to <= limit && from <= to && to - from <= limit)) {
    return Draw::unknown;
  }
  // at::uniform_real_distribution checks again, in the type that it computes in.
  if (target.dtype != ScalarType::Double &&
      !(static_cast<float>(to) - static_cast<float>(from) <= std::numeric_limits<float>::max())) {
    return Draw::unknown;
  }
  return take(generator, target.dtype == ScalarType::Double ? 2 * target.numel : target.numel);
}

Draw fill_exponential(const FilledTensor& target, double lambda, at::CPUGeneratorImpl& generator) {
  return fill_by_doubles(target, is_floating(target.dtype) && lambda > 0.0, generator);
}

Draw fill_cauchy(const FilledTensor& target, double sigma, at::CPUGeneratorImpl& generator) {
  return fill_by_doubles(target, is_floating(target.dtype) && sigma > 0.0, generator);
}

Draw fill_geometric(const FilledTensor& target, double p, at::CPUGeneratorImpl& generator) {
  const bool accepted = is_floating(target.dtype) || is_plain_integer(target.dtype);
  return fill_by_doubles(target, accepted && p > 0.0 && p < 1.0, generator);
}

Draw fill_bernoulli(const FilledTensor& target, double p, at::CPUGeneratorImpl& generator) {
  return fill_by_doubles(target, is_real_or_bool(target.dtype) && p >= 0.0 && p <= 1.0, generator);
}

Draw fill_bernoulli(const FilledTensor& target, ScalarType probabilities,
                    at::CPUGeneratorImpl& generator) {
  if (!is_real_or_bool(target.dtype) || !is_floating(probabilities) || target.overlaps) {
    return Draw::unknown;
  }
  return take(generator, probabilities == ScalarType::Double ? 2 * target.numel : target.numel);
}

Draw fill_integers(const FilledTensor& target, at::CPUGeneratorImpl& generator) {
  if (!is_real_or_bool(target.dtype) || target.overlaps) {
    return Draw::unknown;
  }
  const bool wide = target.dtype == ScalarType::Long || target.dtype == ScalarType::Double;
  return take(generator, wide ? 2 * target.numel : target.numel);
}

Draw fill_integers(const FilledTensor& target, int64_t from, std::optional<int64_t> to,
                   at::CPUGeneratorImpl& generator) {
  if (target.overlaps) {
    return Draw::unknown;
  }
  if (!to && from == std::numeric_limits<int64_t>::lowest()) {  // all of int64
    const bool accepted = target.dtype == ScalarType::Long || target.dtype == ScalarType::Double ||
                          target.dtype == ScalarType::Float || target.dtype == ScalarType::BFloat16;
    return accepted ? take(generator, 2 * target.numel) : Draw::unknown;
  }
  const std::optional<uint64_t> range = integer_range(target.dtype, from, to);
  if (!range) {
    return Draw::unknown;
  }
  // at::uniform_int_from_to_distribution: below, the skew of a 32-bit draw modulo the range is
  // accepted.
  constexpr uint64_t kNeedsTwoDraws = uint64_t{1} << 28;
  return take(generator, *range >= kNeedsTwoDraws ? 2 * target.numel : target.numel);
}

std::optional<uint64_t> integer_range(ScalarType dtype, int64_t from, std::optional<int64_t> to) {
  switch (dtype) {
    case ScalarType::Bool:
      return integer_range<bool>(from, to);
    case ScalarType::Byte:
      return integer_range<uint8_t>(from, to);
    case ScalarType::Char:
      return integer_range<int8_t>(from, to);
    case ScalarType::Short:
      return integer_range<int16_t>(from, to);
    case ScalarType::UInt16:
      return integer_range<uint16_t>(from, to);
    case ScalarType::Int:
      return integer_range<int32_t>(from, to);
    case ScalarType::UInt32:
      return integer_range<uint32_t>(from, to);
    case ScalarType::Long:
      return integer_range<int64_t>(from, to);
    case ScalarType::UInt64:
      return integer_range<uint64_t>(from, to);
    case ScalarType::Half:
      return integer_range<c10::Half>(from, to);
    case ScalarType::BFloat16:
      return integer_range<c10::BFloat16>(from, to);
    case ScalarType::Float:
      return integer_range<float>(from, to);
    case ScalarType::Double:
      return integer_range<double>(from, to);
    default:
      return std::nullopt;
  }
}

}  // namespace dormant::random
