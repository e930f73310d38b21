// LLM.int8: rows of int8 with a scale for each, bit for bit as Int8Params of bitsandbytes quantizes
// on a CPU.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "record/quantizer.h"
#include "system/export.h"

namespace dormant::quantization {

/// Outputs for a source of [rows, columns], which is rounded to float16 first: int8 [rows, columns]
/// and the absmax of each row, float32 [rows], which bitsandbytes calls SCB.
class DORMANT_BINDINGS_API Int8Rows final : public record::Quantizer {
 public:
  std::vector<record::Geometry> outputs(c10::IntArrayRef sizes) const override;
  std::vector<record::Geometry> scratch(c10::IntArrayRef sizes) const override;
  int64_t unit(c10::IntArrayRef sizes) const override;
  int64_t packed_bytes(int64_t count) const override { return count; }
  void run(const void* source, c10::ScalarType dtype, c10::IntArrayRef sizes, int64_t begin,
           int64_t count, c10::ArrayRef<void*> memory) const override;
  void finish(c10::IntArrayRef sizes, int threads, c10::ArrayRef<void*> memory) const override;
  std::string name() const override;
};

}  // namespace dormant::quantization
