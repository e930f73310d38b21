#include "checkpoint/encodings/gguf_blocks.h"

#include <c10/util/ArrayRef.h>
#include <c10/util/Exception.h>

#include <memory>
#include <string>
#include <string_view>

#include "decode/gguf_blocks.h"
#include "text/printable.h"

namespace dormant::checkpoint {

void find_gguf_blocks(Scan& scan) {
  for (const auto& tensor : scan.tensors()) {
    const auto* type = decode::find_gguf_type(std::string_view(tensor.format));
    if (type == nullptr || !type->packed()) {
      continue;
    }
    auto sizes = tensor.sizes;
    TORCH_CHECK_VALUE(!sizes.empty() && sizes.back() % type->bytes == 0, scan.about(),
                      text::in_quotes(tensor.name), " has sizes ", c10::IntArrayRef(sizes),
                      ", expected rows of whole blocks of ", type->name, ", ", type->bytes,
                      " bytes each. ", kNextRaw);
    sizes.back() = sizes.back() / type->bytes * type->elements;
    scan.add({tensor.name,
              {tensor.name},
              std::make_shared<const decode::GgufBlocks>(*type, sizes),
              scan.dtype_asked_for().value_or(c10::ScalarType::Float)});
  }
}

}  // namespace dormant::checkpoint
