// Calls that no kernel can tell apart but by the values of their tensors.
#pragma once

#include <c10/util/hash.h>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <vector>

#include "record/call.h"

namespace dormant::record {

/// Everything that the geometry of a call's results, and whether the operator accepts the call, may
/// depend on: the operator, the arguments, of tensors sizes, strides, dtype and which share memory,
/// and what PyTorch keeps for the process.
using CallKey = std::vector<int64_t>;

struct CallKeyHash {
  size_t operator()(const CallKey& key) const noexcept {
    size_t hash = key.size();
    for (const auto part : key) {
      hash = c10::hash_combine(hash, static_cast<size_t>(part));
    }
    return hash;
  }
};

/// The key of a call; empty where an argument is of a kind that cannot be compared.
std::optional<CallKey> key_of(const Call& call);

}  // namespace dormant::record
