// GPTQ, as AutoGPTQ and GPTQModel write it: layers of qweight, qzeros, scales and g_idx.
#pragma once

#include "checkpoint/encodings/encoding.h"

namespace dormant::checkpoint {

void find_gptq(Scan& scan);

}  // namespace dormant::checkpoint
