"""The 8-bit format of bitsandbytes: LLM.int8."""

from __future__ import annotations

import copy
import numbers
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from dormant._extension import _C
from dormant.quantization.bitsandbytes import check_is_layer, check_source, library, run, set_option
from dormant.quantization.foreign_layer import become, is_foreign, lend, multiply_through
from dormant.quantization.packed_format import LayerFormat
from dormant.quantization.prequantized import check_parts, check_tensor
from dormant.tensors.dtensor import is_dtensor
from dormant.tensors.shards import replace_values
from dormant.tensors.storage import unrecorded


@dataclass(frozen=True, kw_only=True)
class Int8(LayerFormat):
    """The LLM.int8 format of bitsandbytes: 8 bits for each element, one scale for each row.

    A layer becomes a `bitsandbytes.nn.Linear8bitLt`.

    Args:
        threshold: columns of the input that contain a value of at least this size are multiplied in
            full precision; 0 multiplies all columns in int8. It does not affect the weights.

    Raises:
        TypeError: `threshold` is not a number.
        ValueError: it is negative.

    Example:
        >>> import dormant
        >>> dormant.Int8(threshold=0.0).threshold
        0.0
    """

    codes_per_byte: ClassVar[int] = 1

    threshold: float = 6.0

    def __post_init__(self) -> None:
        if isinstance(self.threshold, bool) or not isinstance(self.threshold, numbers.Real):
            raise TypeError(f"Int8: threshold must be a number, got {self.threshold!r}.")
        set_option(self, "threshold", float(self.threshold))
        if not self.threshold >= 0:
            raise ValueError(f"Int8: threshold must not be negative, got {self.threshold!r}.")

    def __str__(self) -> str:
        return f"int8, threshold {self.threshold:g}"

    def check(self, weight: torch.Tensor, name: str) -> None:
        """Raises ValueError if `weight` cannot be quantized."""
        check_source(weight, name, "LLM.int8")

    def nbytes(self, shape: torch.Size) -> int:
        """Bytes of a quantized weight of `shape`, including its statistics."""
        return shape.numel() + 4 * shape[0]

    def install(self, module: torch.nn.Module, weight: torch.Tensor, *, in_place: bool) -> None:
        """Turns `module` into a Linear8bitLt; unless `in_place`, it keeps its class and forward."""
        nn = library().nn
        rows, columns = weight.shape
        with torch.device("meta"):
            layer = nn.Linear8bitLt(
                columns, rows, bias=False, has_fp16_weights=False, threshold=self.threshold
            )
        codes, scales = self.quantized(weight)
        if in_place:
            become(module, layer)
            layer = module
        kind = nn.Int8Params if in_place else multiply_through(nn.Int8Params)
        layer.weight = module._parameters["weight"] = kind(
            codes, requires_grad=False, has_fp16_weights=False, CB=codes, SCB=scales
        )
        _LazyScales(scales).attach(module)
        if not in_place:
            lend(module, layer)

    def refresh(self, module: torch.nn.Module, weight: torch.Tensor) -> None:
        """Quantizes `weight` into the Int8Params of `module`."""
        self._put(module, *self.quantized(weight))

    def follow(
        self, module: torch.nn.Module, duplicate: torch.nn.Module, memo: Mapping[int, Any]
    ) -> None:
        """Does nothing: a copied weight has no reference to a layer."""

    def finish(self, module: torch.nn.Module) -> None:
        """Removes everything of Dormant from `module`: its weight is real."""
        _LazyScales.detach(module)

    def move_statistics(self, module: torch.nn.Module, place: torch.device) -> None:
        """Moves the scales, and shares the codes again; the library leaves both where they are."""
        weight: Any = module._parameters["weight"]
        for owner in (weight, self._state(module)):
            if owner.CB is not None:
                owner.CB = weight.data
            if owner.SCB is not None:
                owner.SCB = owner.SCB.to(place)

    def accept(
        self, module: torch.nn.Module, entries: Mapping[str, torch.Tensor], shape: torch.Size
    ) -> None:
        """Takes codes and scales as bitsandbytes saves them."""
        self._put(module, *self.prequantized(entries, shape))

    def quantized(self, weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The codes of `weight` and their scales; lazy if `weight` is lazy."""
        codes, scales = run(weight, _C.Int8Rows())
        return codes, scales

    def prequantized(
        self, entries: Mapping[str, torch.Tensor], shape: torch.Size
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The codes and scales in a checkpoint of bitsandbytes.

        Raises:
            KeyError: a part is missing, or there is an additional one.
            ValueError: a part is not as expected.
        """
        where = f"an int8 layer of shape {list(shape)}"
        check_parts(
            entries,
            required=("weight", "SCB"),
            optional=("weight_format", "bias"),
            where=where,
        )
        check_tensor(entries, "weight", torch.int8, tuple(shape), where)
        check_tensor(entries, "SCB", torch.float32, (shape[0],), where)
        layout = entries.get("weight_format")
        if layout is not None and int(layout) != 0:
            raise ValueError(
                f"accept_prequantized: weight_format of {where} is {int(layout)}; bitsandbytes "
                "writes 0 (rows), and older layouts are not supported. Save the checkpoint again "
                "with a current bitsandbytes."
            )
        return entries["weight"].clone(), entries["SCB"].clone()

    def attributes(
        self, module: torch.nn.Module
    ) -> list[tuple[dict[str, object], dict[str, object]]]:
        """The attributes of the weight and of the state of the layer, with their values."""
        weight: Any = module._parameters["weight"]
        state = self._state(module)
        return [(vars(owner), dict(vars(owner))) for owner in (weight, state, module)]

    def adopt_part(self, module: torch.nn.Module) -> None:
        """Makes the layer compute with the gathered codes, and save its scales."""
        check_is_layer(module, "state")
        weight: Any = module._parameters["weight"]
        lazy = vars(module).get(_LazyScales.ATTRIBUTE)
        if lazy is not None:
            self._state(module).SCB = lazy.scales
        scales = self._state(module).SCB
        if scales is None:
            raise NotImplementedError(
                "dormant: a Linear8bitLt was divided when its weight was real, and its scales are "
                "lost. Next: quantize and shard the lazy model, then load or materialize it."
            )
        weight.CB, weight.SCB = None, scales
        # torch.distributed.checkpoint.state_dict looks up all names of a state dict as attributes.
        with unrecorded():
            vars(module).update(SCB=weight.SCB, weight_format=torch.zeros((), dtype=torch.uint8))
        if _take_gathered not in module._forward_pre_hooks.values():
            module.register_forward_pre_hook(_take_gathered)

    def elements_per_scale(self, shape: torch.Size) -> int:
        """The number of elements in a row."""
        return shape[1]

    def quantized_part(
        self, elements: torch.Tensor, shape: torch.Size
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Codes and scales of whole rows."""
        codes, scales = _C.quantize(elements.view(-1, shape[1]), _C.Int8Rows())
        return codes.view(-1).view(torch.uint8), scales

    def statistics(self, module: torch.nn.Module) -> list[torch.Tensor]:
        """The scales that the state of the layer has."""
        scales = self.scales(module)
        return [] if scales is None else [scales]

    def scales(self, module: torch.nn.Module) -> torch.Tensor | None:
        """The scales of the codes; None if sharding has removed them."""
        # The first forward moves them from the weight to the state.
        own: torch.Tensor | None = getattr(module._parameters["weight"], "SCB", None)
        return self._state(module).SCB if own is None else own

    def statistics_of(self, scales: torch.Tensor, threads: int) -> list[torch.Tensor]:
        """The scales."""
        return [scales]

    def _put(self, module: torch.nn.Module, codes: torch.Tensor, scales: torch.Tensor) -> None:
        weight: Any = module._parameters["weight"]
        replace_values(weight, codes)
        weight.CB, weight.SCB = codes, scales
        state = self._state(module)
        # A forward has moved earlier ones here.
        state.CB = state.SCB = None
        _LazyScales(scales).attach(module)
        if is_dtensor(weight):
            self.adopt_part(module)

    def _state(self, module: torch.nn.Module) -> Any:
        weight: Any = module._parameters["weight"]
        layer: Any = weight.layer if is_foreign(weight) else module
        return layer.state


@dataclass
class _LazyScales:
    """Keeps the scales of a lazy weight, which sharding removes together with the weight."""

    ATTRIBUTE: ClassVar[str] = "_dormant_scales"

    scales: torch.Tensor

    def attach(self, module: torch.nn.Module) -> None:
        """Does nothing if they are real."""
        self.detach(module)
        if _C.is_lazy(self.scales):
            vars(module)[self.ATTRIBUTE] = self
            module.register_state_dict_pre_hook(_adopt_first)  # type: ignore[no-untyped-call]

    @classmethod
    def detach(cls, module: torch.nn.Module) -> None:
        vars(module).pop(cls.ATTRIBUTE, None)
        hooks = module._state_dict_pre_hooks
        for key in [key for key, hook in hooks.items() if hook is _adopt_first]:
            del hooks[key]

    def __reduce__(self) -> tuple[Any, ...]:
        # Only the library's module is pickled.
        return type(None), ()

    def __deepcopy__(self, memo: dict[int, Any]) -> _LazyScales:
        return _LazyScales(copy.deepcopy(self.scales, memo))


def _adopt_first(module: torch.nn.Module, prefix: str, keep_vars: bool) -> None:
    """Runs before a state dict, which would otherwise lack the scales of a sharded lazy weight."""
    if is_dtensor(module._parameters.get("weight")):
        Int8().adopt_part(module)


def _take_gathered(layer: Any, args: object) -> None:
    """Runs before the forward of a Linear8bitLt whose weight FSDP has gathered.

    Raises RuntimeError if nothing has gathered it.
    """
    weight = layer._parameters["weight"]
    if is_dtensor(weight):
        raise RuntimeError(
            "dormant: a Linear8bitLt was called with a part of its weight. Next: shard it by "
            "fully_shard, and call the module that was sharded, which gathers the weight first."
        )
    weight.CB = weight.SCB = None
    layer.state.CB = weight.data
