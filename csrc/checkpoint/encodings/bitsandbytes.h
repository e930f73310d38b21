// Weights as bitsandbytes saves them: nf4, fp4 and int8.
#pragma once

#include "checkpoint/encodings/encoding.h"

namespace dormant::checkpoint {

/// X packed, with X.absmax, X.quant_map and X.quant_state.bitsandbytes__nf4 (or __fp4), a text that
/// says what X is; nested with X.nested_absmax and X.nested_quant_map. X.weight of int8 with X.SCB.
void find_bitsandbytes(Scan& scan);

}  // namespace dormant::checkpoint
