// AWQ, as AutoAWQ and GPTQModel write its version "gemm": layers of qweight, qzeros and scales.
#pragma once

#include "checkpoint/encodings/encoding.h"

namespace dormant::checkpoint {

void find_awq(Scan& scan);

}  // namespace dormant::checkpoint
