// The parts of dormant._C that have a file of their own.
#pragma once

#include <torch/csrc/utils/pybind.h>

namespace dormant::bindings {

/// Files, and what the formats of checkpoints say about them.
void bind_checkpoint(pybind11::module_& m);

/// Folders of torch.distributed.checkpoint.
void bind_distributed_checkpoint(pybind11::module_& m);

/// Which tensors of a checkpoint are encoded, and how.
void bind_encodings(pybind11::module_& m);

/// Pickles as trees of inert values.
void bind_pickle(pybind11::module_& m);

/// Files of torch.save.
void bind_torch_archive(pybind11::module_& m);

/// What a quantize node may compute.
void bind_quantize(pybind11::module_& m);

/// What a decode node may compute.
void bind_decode(pybind11::module_& m);

/// Where in Python's objects tensors may be.
void bind_holders(pybind11::module_& m);

/// Lets the core tell refusals of Python's Meta kernels from interrupts.
void bind_refusal();

}  // namespace dormant::bindings
