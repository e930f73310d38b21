// Histories that do not end in an operator: bytes of a file, and what quantizing and decoding give.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/Storage.h>
#include <cstdint>
#include <memory>
#include <vector>

#include "record/decoder.h"
#include "record/lazy_storage.h"
#include "record/quantizer.h"
#include "record/source.h"
#include "system/export.h"

namespace dormant::record {

/// The history of a buffer whose bytes are `source`'s from `offset` on, of which most tensors see
/// elements of `dtype`. ValueError where they are no whole number of elements.
History read_history(std::shared_ptr<const Source> source, uint64_t offset, BufferPtr buffer,
                     c10::ScalarType dtype);

/// A lazy storage whose bytes are `source`'s from `offset` on; `nbytes` is a multiple of the size
/// of `dtype`, the type of most tensors over it.
c10::Storage make_read_storage(std::shared_ptr<const Source> source, uint64_t offset, size_t nbytes,
                               c10::ScalarType dtype);

/// A lazy tensor that fills such a storage, contiguous.
at::Tensor make_read_tensor(std::shared_ptr<const Source> source, uint64_t offset,
                            c10::IntArrayRef sizes, c10::ScalarType dtype);

/// A lazy tensor with the elements of a real contiguous one on any device, which it keeps alive and
/// which must not change until the lazy one and its copies are real. What another thread has made
/// lazy is itself what is returned.
DORMANT_BINDINGS_API at::Tensor read_of(const at::Tensor& tensor);

/// The outputs of quantizing `tensor`: lazy where it is lazy. `outputs`, where given, are such
/// tensors of an earlier call, whose storages lose their histories for the new one. ValueError
/// where the dtype is not float32, bfloat16 or float16, or where the quantizer refuses the sizes.
DORMANT_BINDINGS_API std::vector<at::Tensor> quantize(
    const at::Tensor& tensor, const std::shared_ptr<const Quantizer>& quantizer,
    std::vector<at::Tensor> outputs = {});

/// The tensor that `parts` encode, contiguous: lazy where one of them is. ValueError where sizes or
/// dtypes of the parts are not those that the decoder expects.
DORMANT_BINDINGS_API at::Tensor decode(const std::vector<at::Tensor>& parts,
                                       const std::shared_ptr<const Decoder>& decoder);

/// Whether `tensor` is lazy and an output of `quantize` besides the codes, which come first.
DORMANT_BINDINGS_API bool is_statistic(const at::Tensor& tensor);

}  // namespace dormant::record
