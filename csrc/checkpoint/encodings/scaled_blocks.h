// Weights of float8 and the like with a scale for each block: what their encodings share.
#pragma once

#include <c10/core/ScalarType.h>
#include <c10/util/ArrayRef.h>

#include <cstdint>
#include <functional>
#include <optional>
#include <string_view>
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

/// c10::ValueError for a weight of float8 that no encoding has taken, in no module that is `plain`:
/// without its scale, called X.weight and then `ending`, it would pass for one that needs none.
void refuse_unscaled(const Scan& scan, const std::string& ending,
                     const std::function<bool(std::string_view module)>& plain);

}  // namespace dormant::checkpoint
