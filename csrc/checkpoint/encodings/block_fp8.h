// Weights of float8 with a scale for each block, as DeepSeek and transformers' fp8 write them.
#pragma once

#include "checkpoint/encodings/encoding.h"

namespace dormant::checkpoint {

/// X.weight with X.weight_scale_inv (also X.scale and X.qscale_weight), and a parameter X with
/// X_scale_inv, as in stacks of experts. Transformers' Fp8Dequantize is what is followed
/// (transformers/integrations/finegrained_fp8.py).
void find_block_fp8(Scan& scan);

}  // namespace dormant::checkpoint
