// How much each of ATen's CPU kernels draws to fill a tensor:
// aten/src/ATen/native/cpu/DistributionTemplates.h, behind the checks of
// aten/src/ATen/native/DistributionTemplates.h.
//
// Each function advances `generator` as the kernel would and returns Draw::skipped, or Draw::none
// where nothing is drawn. It returns Draw::unknown, and leaves the generator alone, for what the
// checks may refuse.
#pragma once

#include <ATen/CPUGeneratorImpl.h>
#include <c10/core/ScalarType.h>

#include <cstdint>
#include <optional>

#include "random/draws.h"

namespace dormant::random {

// What a kernel sees of the tensor that it fills.
struct FilledTensor {
  at::ScalarType dtype;
  uint64_t numel;
  bool contiguous;
  bool overlaps;  // some elements certainly share memory: an element-wise kernel refuses to write
                  // there
};

// float, double and the half types: what AT_DISPATCH_FLOATING_TYPES_AND2 accepts.
bool is_floating(at::ScalarType dtype);

// Integers up to 64 bits; of the unsigned ones only the byte.
bool is_plain_integer(at::ScalarType dtype);

// Takes `draws` 32-bit numbers off the generator and leaves its cached normal alone.
Draw take(at::CPUGeneratorImpl& generator, uint64_t draws);

Draw fill_normal(const FilledTensor& target, double std, at::CPUGeneratorImpl& generator);
Draw fill_log_normal(const FilledTensor& target, double std, at::CPUGeneratorImpl& generator);
Draw fill_uniform(const FilledTensor& target, double from, double to,
                  at::CPUGeneratorImpl& generator);
Draw fill_exponential(const FilledTensor& target, double lambda, at::CPUGeneratorImpl& generator);
Draw fill_cauchy(const FilledTensor& target, double sigma, at::CPUGeneratorImpl& generator);
Draw fill_geometric(const FilledTensor& target, double p, at::CPUGeneratorImpl& generator);

// One probability for all elements; a tensor of probabilities, of which only the dtype matters.
Draw fill_bernoulli(const FilledTensor& target, double p, at::CPUGeneratorImpl& generator);
Draw fill_bernoulli(const FilledTensor& target, at::ScalarType probabilities,
                    at::CPUGeneratorImpl& generator);

// random_(), the full range of the dtype; random_(from, to), with no `to` up to the dtype's last
// exact integer.
Draw fill_integers(const FilledTensor& target, at::CPUGeneratorImpl& generator);
Draw fill_integers(const FilledTensor& target, int64_t from, std::optional<int64_t> to,
                   at::CPUGeneratorImpl& generator);

// How many integers random_(from, to) chooses from in this dtype; none where eager refuses them.
std::optional<uint64_t> integer_range(at::ScalarType dtype, int64_t from,
                                      std::optional<int64_t> to);

}  // namespace dormant::random
