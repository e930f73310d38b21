#include "quantize/int8_rows.h"

#include <c10/util/Exception.h>

#include "quantize/kernels.h"
#include "quantize/source_format.h"
#include "simd/kernels.h"

namespace dormant::quantization {

using record::Geometry;

std::vector<Geometry> Int8Rows::outputs(c10::IntArrayRef sizes) const {
  TORCH_CHECK_VALUE(sizes.size() == 2 && sizes[1] > 0, "dormant: int8 quantization: got sizes ",
                    sizes, "; expected a matrix with at least one column");
  return {Geometry::contiguous(sizes, c10::ScalarType::Char),
          Geometry::contiguous(sizes.slice(0, 1), c10::ScalarType::Float)};
}

std::vector<Geometry> Int8Rows::scratch(c10::IntArrayRef /*sizes*/) const { return {}; }

int64_t Int8Rows::unit(c10::IntArrayRef sizes) const { return sizes[1]; }

void Int8Rows::run(const void* source, c10::ScalarType dtype, c10::IntArrayRef sizes, int64_t begin,
                   int64_t count, c10::ArrayRef<void*> memory) const {
  const int64_t columns = sizes[1];
  simd::kernels<Kernels>().int8_rows(source_format(dtype), source, static_cast<size_t>(columns),
                                     static_cast<size_t>(count / columns),
                                     static_cast<int8_t*>(memory[0]),
                                     static_cast<float*>(memory[1]) + begin / columns);
}

void Int8Rows::finish(c10::IntArrayRef /*sizes*/, int /*threads*/,
                      c10::ArrayRef<void*> /*memory*/) const {}

std::string Int8Rows::name() const { return "int8, row by row"; }

}  // namespace dormant::quantization
