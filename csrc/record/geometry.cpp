#include "record/geometry.h"

#include <ATen/ops/empty.h>
#include <c10/core/DispatchKeySet.h>
#include <c10/core/TensorImpl.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <numeric>

namespace dormant::record {

Geometry Geometry::of(const at::Tensor& tensor) {
  const auto* impl = tensor.unsafeGetTensorImpl();
  Geometry geometry;
  const auto sizes = impl->sizes();
  const auto strides = impl->strides();
  geometry.sizes.assign(sizes.begin(), sizes.end());
  geometry.strides.assign(strides.begin(), strides.end());
  geometry.offset = impl->storage_offset();
  geometry.dtype = c10::typeMetaToScalarType(impl->dtype());
  geometry.wrapped_number = impl->is_wrapped_number();
  geometry.conjugate = impl->key_set().has(c10::DispatchKey::Conjugate);
  geometry.negative = impl->key_set().has(c10::DispatchKey::Negative);
  return geometry;
}

Geometry Geometry::bytes(size_t nbytes) {
  Geometry geometry;
  geometry.sizes.push_back(static_cast<int64_t>(nbytes));
  geometry.strides.push_back(1);
  geometry.dtype = c10::ScalarType::Byte;
  return geometry;
}

Geometry Geometry::contiguous(c10::IntArrayRef sizes, c10::ScalarType dtype) {
  Geometry geometry;
  geometry.sizes.assign(sizes.begin(), sizes.end());
  geometry.strides.resize(sizes.size());
  geometry.dtype = dtype;
  int64_t stride = 1;
  for (size_t i = sizes.size(); i-- > 0;) {
    geometry.strides[i] = stride;
    TORCH_CHECK_VALUE(!__builtin_mul_overflow(stride, std::max<int64_t>(sizes[i], 1), &stride),
                      "dormant: sizes ", sizes, " have a number of elements that overflows");
  }
  return geometry;
}

at::Tensor Geometry::over(const c10::Storage& storage) const {
  // A key of another device than the storage's would let the CPU's kernels loose on its memory.
  const auto key = storage.device_type() == c10::DeviceType::CPU
                       ? c10::DispatchKey::CPU
                       : c10::computeDispatchKey(dtype, c10::kStrided, storage.device());
  auto tensor = at::detail::make_tensor<c10::TensorImpl>(
      c10::Storage(storage), c10::DispatchKeySet(key), c10::scalarTypeToTypeMeta(dtype));
  auto* impl = tensor.unsafeGetTensorImpl();
  impl->set_sizes_and_strides(sizes, strides, offset);
  if (wrapped_number) {
    impl->set_wrapped_number(true);
  }
  if (conjugate) {
    impl->_set_conj(true);
  }
  if (negative) {
    impl->_set_neg(true);
  }
  return tensor;
}

int64_t Geometry::numel() const {
  return std::accumulate(sizes.begin(), sizes.end(), int64_t{1}, std::multiplies<>());
}

size_t Geometry::nbytes_needed() const {
  TORCH_CHECK_VALUE(sizes.size() == strides.size(), "dormant: a geometry of ", sizes.size(),
                    " sizes has ", strides.size(), " strides");
  TORCH_CHECK_VALUE(offset >= 0, "dormant: negative storage offset ", offset);
  int64_t last = offset;
  bool empty = false;
  bool overflow = false;
  for (size_t i = 0; i < sizes.size(); ++i) {
    TORCH_CHECK_VALUE(sizes[i] >= 0 && strides[i] >= 0, "dormant: dimension ", i, " has size ",
                      sizes[i], " and stride ", strides[i], "; neither may be negative");
    empty = empty || sizes[i] == 0;
    int64_t reach = 0;
    overflow =
        overflow || __builtin_mul_overflow(std::max<int64_t>(sizes[i] - 1, 0), strides[i], &reach);
    overflow = overflow || __builtin_add_overflow(last, reach, &last);
  }
  if (empty) {
    return 0;
  }
  int64_t bytes = 0;
  overflow = overflow || __builtin_add_overflow(last, 1, &last);
  overflow = overflow ||
             __builtin_mul_overflow(last, static_cast<int64_t>(c10::elementSize(dtype)), &bytes);
  TORCH_CHECK_VALUE(!overflow, "dormant: a geometry of sizes ", at::IntArrayRef(sizes),
                    " and strides ", at::IntArrayRef(strides), " does not fit 64-bit offsets");
  return static_cast<size_t>(bytes);
}

bool Geometry::dense() const {
  // Sorted by stride, each stride is the product of the sizes below it.
  c10::SmallVector<size_t, 5> order;
  for (size_t i = 0; i < sizes.size(); ++i) {
    if (sizes[i] == 0) {
      return true;
    }
    if (sizes[i] != 1) {
      order.push_back(i);
    }
  }
  std::sort(order.begin(), order.end(),
            [&](size_t a, size_t b) { return strides[a] < strides[b]; });
  int64_t expected = 1;
  for (const auto i : order) {
    if (strides[i] != expected) {
      return false;
    }
    expected *= sizes[i];
  }
  return true;
}

bool Geometry::covers(size_t nbytes) const {
  return offset == 0 && static_cast<size_t>(numel()) * c10::elementSize(dtype) == nbytes && dense();
}

}  // namespace dormant::record
