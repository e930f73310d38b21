// Weights of four bits, mxfp4 and nvfp4, as compressed-tensors packs them.
#pragma once

#include "checkpoint/encodings/encoding.h"

namespace dormant::checkpoint {

/// X.weight_packed, uint8 [rows, columns / 2], with X.weight_scale: exponents (uint8) for 32
/// numbers, or float8_e4m3fn for 16 with X.weight_global_scale, are X.weight.
void find_compressed_fp4(Scan& scan);

}  // namespace dormant::checkpoint
