// Weights of float8 and the like with a scale for each block: what their encodings share.
#pragma once

#include <c10/core/ScalarType.h>
#include <c10/util/ArrayRef.h>

#include <cstdint>
#include <optional>
#include <utility>

#include "checkpoint/encodings/encoding.h"

namespace dormant::checkpoint {

bool is_float8(c10::ScalarType dtype) noexcept;

/// Rows and columns that share a scale.
using Blocks = std::pair<int64_t, int64_t>;

/// What a configuration states under `key`; std::nullopt where that is null or missing.
/// c10::ValueError where it is not two positive integers.
std::optional<Blocks> configured_blocks(const Scan& scan, const nlohmann::json& object,
                                        const char* key);

/// The blocks of a weight of these sizes, a matrix or a stack of them. Where `configured` fits the
/// scales, that is it, for blocks at the edges may be smaller; else the library derives it from the
/// number of scales, which has to divide the weight's. Without a configuration, c10::ValueError
/// where both are possible; in any case where nothing is.
Blocks blocks_for(const Scan& scan, const RawTensor& weight, c10::IntArrayRef sizes,
                  const RawTensor& scales, const std::optional<Blocks>& configured);

/// Where weights of float8 are encoded, or config.json says so: c10::ValueError for one that no
/// encoding has taken, in no module that config.json leaves out. Without its scale it would pass
/// for one that needs none. After all encodings.
void refuse_unscaled(const Scan& scan);

}  // namespace dormant::checkpoint
