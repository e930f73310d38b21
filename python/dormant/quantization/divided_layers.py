"""Layers of bitsandbytes that hold some rows or columns of a weight, for tensor parallelism.

This module imports bitsandbytes, so it is imported only when such a layer exists. The hooks of
ColwiseParallel and RowwiseParallel turn inputs into DTensors, and outputs back. Between them, a
layer computes with this rank's part of input and weight, as the library's own layer.
"""

from __future__ import annotations

from typing import Any, ClassVar

import bitsandbytes
import torch
from torch.distributed.tensor import DTensor, Partial, Shard

from dormant.quantization.tensor_parallel import text_of_whole
from dormant.tensors.division import divisions_of

_nn: Any = bitsandbytes.nn


class _Divided(torch.nn.Module):
    """What both kinds have in common.

    The weight is an ordinary parameter: this rank's part, as the library packs it. The bias is a
    DTensor, as in other parallel layers. The divided tensors of a state dict are DTensors, too.
    """

    _library_kind: ClassVar[Any]
    _divided_names: ClassVar[tuple[str, ...]]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The product, as a DTensor.

        Args:
            x: replicated if the rows of the weight are divided; divided in its last dimension if
                the columns are.
        """
        division = divisions_of(self).get("weight")
        assert division is not None
        bias = self._parameters["bias"]
        if vars(self).get("_hf_quantized_needs_local_tp"):  # transformers' hooks do the rest
            return self._multiply(x, bias)
        if not isinstance(x, DTensor):
            raise RuntimeError(
                f"dormant: the input of a parallel {self._library_kind.__name__} is not a DTensor. "
                "Next: call the module itself, not its forward, so that the hooks of "
                "parallelize_module run."
            )
        if division.dim == 0:
            own = x.to_local(grad_placements=[Partial()])
            own_bias = bias.to_local() if isinstance(bias, DTensor) else bias
            output = self._multiply(own, own_bias)
            return DTensor.from_local(output, division.mesh, [Shard(-1)], run_check=False)
        output = self._multiply(x.to_local(), None)
        product = DTensor.from_local(output, division.mesh, [Partial()], run_check=False)
        return product if bias is None else product + bias.to(product.dtype)

    def _multiply(self, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """The library's forward."""
        # A layer for this call only, because another thread may call this one.
        layer = object.__new__(self._library_kind)
        vars(layer).update(vars(self))
        vars(layer)["_parameters"] = {**self._parameters, "bias": bias}
        output: torch.Tensor = self._library_kind.forward(layer, x)
        for name in ("compute_dtype", "compute_type_is_set"):  # set by its first input
            if name in vars(layer):
                vars(self)[name] = vars(layer)[name]
        return output

    def _save_to_state_dict(
        self, destination: dict[str, Any], prefix: str, keep_vars: bool
    ) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        division = divisions_of(self).get("weight")
        assert division is not None
        for name in self._divided_names:
            part = destination.get(prefix + name)
            if part is not None:
                if not isinstance(part, DTensor):
                    with torch.no_grad(), torch._C.DisableTorchFunctionSubclass():
                        part = part.detach().as_subclass(torch.Tensor)
                destination[prefix + name] = division.whole(part)


class DividedLinear4bit(_Divided, _nn.Linear4bit):  # type: ignore[misc]
    """A Linear4bit with a part of its weight."""

    _library_kind: ClassVar[Any] = _nn.Linear4bit
    _divided_names: ClassVar[tuple[str, ...]] = (
        "weight",
        "weight.absmax",
        "weight.nested_absmax",
    )

    def _save_to_state_dict(
        self, destination: dict[str, Any], prefix: str, keep_vars: bool
    ) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        weight: Any = self._parameters["weight"]
        state = getattr(weight, "quant_state", None)
        division = divisions_of(self).get("weight")
        if state is not None and division is not None:
            destination.update(text_of_whole(state, division, f"{prefix}weight"))


class DividedLinear8bitLt(_Divided, _nn.Linear8bitLt):  # type: ignore[misc]
    """A Linear8bitLt with a part of the rows of its weight."""

    _library_kind: ClassVar[Any] = _nn.Linear8bitLt
    _divided_names: ClassVar[tuple[str, ...]] = ("weight", "SCB")
