#include "record/grad_accumulator.h"

#include <torch/csrc/autograd/variable.h>

namespace dormant::record {

void reset_grad_accumulator(const at::Tensor& tensor) {
  if (auto* meta = torch::autograd::impl::get_autograd_meta(tensor)) {
    meta->grad_accumulator_.reset();
  }
}

}  // namespace dormant::record
