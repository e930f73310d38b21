// Stacks of experts in mxfp4, as gpt-oss has them.
#pragma once

#include "checkpoint/encodings/encoding.h"

namespace dormant::checkpoint {

/// X_blocks [experts, rows, blocks, 16] and X_scales [experts, rows, blocks] of uint8 are X
/// [experts, 32 * blocks, rows]: convert_moe_packed_tensors in transformers/integrations/mxfp4.py.
void find_mxfp4(Scan& scan);

}  // namespace dormant::checkpoint
