// What autograd keeps of a leaf: the node that accumulates its gradient, made for its shape.
#pragma once

#include <ATen/core/Tensor.h>

namespace dormant::record {

/// Has autograd make the node anew, as its own kernel for set_ does (RESET_GRAD_ACCUMULATOR in
/// PyTorch's tools/autograd/gen_variable_type.py).
void reset_grad_accumulator(const at::Tensor& tensor);

}  // namespace dormant::record
