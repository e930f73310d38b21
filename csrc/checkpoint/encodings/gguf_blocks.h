// Tensors of GGUF files in blocks of ggml, of which the file's format says so.
#pragma once

#include "checkpoint/encodings/encoding.h"

namespace dormant::checkpoint {

/// Every tensor whose format is one of ggml's types: by itself, under its own name, in float32.
void find_gguf_blocks(Scan& scan);

}  // namespace dormant::checkpoint
