// Tensors of GGUF files in blocks of ggml, as floats: the values of `gguf.quants.dequantize`.
#pragma once

#include <c10/util/ArrayRef.h>

#include <cstdint>
#include <string>
#include <vector>

#include "decode/gguf_types.h"
#include "record/decoder.h"
#include "system/export.h"

namespace dormant::decode {

/// Its one part are the bytes of the blocks, whose rows are the tensor's; the result is float32.
class DORMANT_BINDINGS_API GgufBlocks final : public record::Decoder {
 public:
  /// For a tensor of `sizes`. ValueError where its rows are no whole blocks of the type, or where
  /// the sizes overflow. Where nobody here decodes the type (`GgufType::code`), everything but
  /// `wanted` and `run` works; they are NotImplementedError.
  GgufBlocks(const GgufType& type, c10::IntArrayRef sizes);

  record::Geometry output() const override { return output_; }
  std::vector<record::Geometry> parts() const override { return {part_}; }
  int64_t unit() const override { return type_.elements; }
  void wanted(size_t part, int64_t begin, int64_t count, c10::ArrayRef<const void*> earlier,
              std::vector<record::ElementRun>& runs) const override;
  void run(int64_t begin, int64_t count, c10::ArrayRef<const void*> parts,
           void* out) const override;
  std::string name() const override;

 private:
  void check_decoded() const;

  const GgufType& type_;
  record::Geometry output_;
  record::Geometry part_;
};

}  // namespace dormant::decode
