// "pack-quantized" of compressed-tensors: layers of weight_packed, weight_scale and weight_shape.
#pragma once

#include "checkpoint/encodings/encoding.h"

namespace dormant::checkpoint {

void find_packed_integers(Scan& scan);

}  // namespace dormant::checkpoint
