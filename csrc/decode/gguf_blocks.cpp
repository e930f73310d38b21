#include "decode/gguf_blocks.h"

#include <c10/util/Exception.h>

#include <algorithm>

#include "simd/kernels.h"

namespace dormant::decode {

using record::Geometry;

GgufBlocks::GgufBlocks(const GgufType& type, c10::IntArrayRef sizes) : type_(type) {
  TORCH_CHECK_NOT_IMPLEMENTED(
      type.packed() && type.code, "dormant: GgufBlocks: tensors of GGUF's type ", type.name,
      " are not decoded",
      type.packed() ? ". Next: convert the file to another type with llama-quantize, or get the "
                      "checkpoint in another one; decode=False shows the bytes of its blocks."
                    : ": their elements are stored as they are.");
  TORCH_CHECK_VALUE(!sizes.empty() && sizes.back() % type.elements == 0,
                    "dormant: GgufBlocks: a tensor of shape ", sizes,
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
  runs.push_back({begin / type_.elements * type_.bytes, count / type_.elements * type_.bytes});
}

void GgufBlocks::run(int64_t /*begin*/, int64_t count, c10::ArrayRef<const void*> parts,
                     void* out) const {
  const auto decode = simd::kernels<GgufKernels>().decode[static_cast<size_t>(*type_.code)];
  decode(static_cast<const uint8_t*>(parts[0]), static_cast<size_t>(count / type_.elements),
         static_cast<float*>(out));
}

std::string GgufBlocks::name() const { return "GGUF " + std::string(type_.name); }

}  // namespace dormant::decode
