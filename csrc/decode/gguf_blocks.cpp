#include "decode/gguf_blocks.h"

#include <c10/util/Exception.h>

#include <algorithm>

#include "simd/kernels.h"

namespace dormant::decode {

using record::Geometry;

GgufBlocks::GgufBlocks(const GgufType& type, c10::IntArrayRef sizes) : type_(type) {
  TORCH_CHECK_VALUE(type.packed() && !sizes.empty() && sizes.back() % type.elements == 0,
                    "GgufBlocks: a tensor of shape ", sizes,
                    ", expected rows of whole "
                    "blocks of ",
                    type.name, ", ", type.elements, " elements each");
  output_ = Geometry::contiguous(sizes, c10::ScalarType::Float);
  std::vector<int64_t> bytes(sizes.begin(), sizes.end());
  bytes.back() = bytes.back() / type.elements * type.bytes;
  part_ = Geometry::contiguous(bytes, c10::ScalarType::Byte);
  // Both count in 64 bits, or nothing of it does.
  output_.nbytes_needed();
  part_.nbytes_needed();
}

void GgufBlocks::wanted(size_t /*part*/, int64_t begin, int64_t count,
                        c10::ArrayRef<const void*> /*earlier*/,
                        std::vector<record::ElementRun>& runs) const {
  check_decoded();
  runs.push_back({begin / type_.elements * type_.bytes, count / type_.elements * type_.bytes});
}

void GgufBlocks::run(int64_t /*begin*/, int64_t count, c10::ArrayRef<const void*> parts,
                     void* out) const {
  check_decoded();
  const auto decode = simd::kernels<GgufKernels>().decode[static_cast<size_t>(*type_.code)];
  decode(static_cast<const uint8_t*>(parts[0]), static_cast<size_t>(count / type_.elements),
         static_cast<float*>(out));
}

void GgufBlocks::check_decoded() const {
  TORCH_CHECK_NOT_IMPLEMENTED(
      type_.code.has_value(), "dormant: a tensor of GGUF's type ", type_.name, ", of shape ",
      c10::IntArrayRef(output_.sizes),
      ", cannot be decoded: dormant knows the blocks of Q4_0 to "
      "Q8_0, Q2_K to Q6_K, IQ4_NL, IQ4_XS, TQ1_0, TQ2_0, MXFP4 and NVFP4. Next: get the checkpoint "
      "in one of these, or convert it with llama-quantize.");
}

std::string GgufBlocks::name() const { return gguf_encoding(type_); }

}  // namespace dormant::decode
