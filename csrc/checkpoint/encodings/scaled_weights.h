// Weights of float8 or int8 called X.weight, and their scales X.weight_scale: compressed-tensors'
// float-quantized, int-quantized and mxfp8, FBGEMM's rows, and fp8 with one scale for a tensor.
#pragma once

#include "checkpoint/encodings/encoding.h"

namespace dormant::checkpoint {

void find_scaled_weights(Scan& scan);

}  // namespace dormant::checkpoint
