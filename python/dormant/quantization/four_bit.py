"""The 4-bit formats of bitsandbytes: nf4 and fp4."""

from __future__ import annotations

import contextlib
import functools
import operator
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch.overrides import TorchFunctionMode

from dormant._extension import _C
from dormant.quantization import statistics
from dormant.quantization.bitsandbytes import check_is_layer, check_source, library, run, set_option
from dormant.quantization.foreign_layer import become, is_foreign, lend, multiply_through
from dormant.quantization.packed_format import LayerFormat
from dormant.quantization.prequantized import check_parts, check_tensor, read_state
from dormant.tensors.dtensor import is_dtensor
from dormant.tensors.shards import replace_values
from dormant.tensors.storage import unrecorded

_BLOCK_SIZES = (32, 64, 128, 256, 512, 1024, 2048, 4096)
_STORAGE = (
    torch.uint8,
    torch.int8,
    torch.int16,
    torch.int32,
    torch.int64,
    torch.float16,
    torch.bfloat16,
    torch.float32,
    torch.float64,
)
NESTED_BLOCK = 256


@dataclass(frozen=True, kw_only=True)
class FourBit(LayerFormat):
    """The 4-bit formats of bitsandbytes: 4 bits for each element, one scale for each block.

    A layer becomes a `bitsandbytes.nn.Linear4bit`. Any other parameter is packed as by
    `bitsandbytes.nn.parametrize.replace_parameter_4bit`.

    Args:
        kind: "nf4" (levels for normally distributed weights) or "fp4" (a 4-bit floating-point
            format).
        block_size: number of elements that share a scale: 32, 64, 128, 256, 512, 1024, 2048 or
            4096.
        nested: also quantize the scales, to 8 bits ("double quantization").
        compute_dtype: floating-point dtype in which the layer multiplies; None means the dtype of
            its first input. May be a name ("bfloat16"), as in transformers' `BitsAndBytesConfig`.
        storage_dtype: dtype of the tensor that holds the packed bytes, as FSDP needs; the bytes are
            the same. May be a name.

    Raises:
        TypeError: an option has a type that cannot be used.
        ValueError: `kind`, `block_size` or a dtype is not one of these.

    Example:
        >>> import dormant
        >>> dormant.FourBit(kind="nf4", block_size=128).nested
        True
    """

    codes_per_byte: ClassVar[int] = 2

    kind: Literal["nf4", "fp4"] = "nf4"
    block_size: int = 64
    nested: bool = True
    compute_dtype: torch.dtype | None = None
    storage_dtype: torch.dtype = torch.uint8

    def __post_init__(self) -> None:
        if self.kind not in ("nf4", "fp4"):
            raise ValueError(f'FourBit: kind must be "nf4" or "fp4", got {self.kind!r}.')
        if not isinstance(self.nested, bool):
            raise TypeError(f"FourBit: nested must be a bool, got {self.nested!r}.")
        if isinstance(self.block_size, bool) or not hasattr(self.block_size, "__index__"):
            raise TypeError(f"FourBit: block_size must be an int, got {self.block_size!r}.")
        set_option(self, "block_size", operator.index(self.block_size))
        if self.compute_dtype is not None:
            compute_dtype = _dtype_of(self.compute_dtype, "compute_dtype")
            if not compute_dtype.is_floating_point:
                raise ValueError(
                    f"FourBit: compute_dtype must be a floating point dtype, got {compute_dtype}."
                )
            set_option(self, "compute_dtype", compute_dtype)
        set_option(self, "storage_dtype", _dtype_of(self.storage_dtype, "storage_dtype"))
        if self.storage_dtype not in _STORAGE:
            raise ValueError(
                "FourBit: storage_dtype must be a dtype that can view raw bytes, such as "
                f"torch.uint8 or torch.bfloat16; got {self.storage_dtype}."
            )
        if self.block_size not in _BLOCK_SIZES:
            raise ValueError(
                f"FourBit: block_size must be one of {', '.join(map(str, _BLOCK_SIZES))}; got "
                f"{self.block_size!r}."
            )

    def __str__(self) -> str:
        nested = ", double quantized" if self.nested else ""
        return f"{self.kind}, blocks of {self.block_size}{nested}"

    @property
    def of_whole(self) -> FourBit:
        """The same format without a division."""
        return self

    def check(self, weight: torch.Tensor, name: str) -> None:
        """Raises ValueError if `weight` cannot be quantized."""
        check_source(weight, name, "4-bit formats")
        packed = (weight.numel() + 1) // 2
        size = self.storage_dtype.itemsize
        if size > 1 and (packed % size or packed == 1):
            raise ValueError(
                f"quantize: {name} packs into {packed} bytes, which cannot be viewed as "
                f"{self.storage_dtype} ({size} bytes each). Use storage_dtype=torch.uint8, or skip "
                "the layer."
            )

    def nbytes(self, shape: torch.Size) -> int:
        """Bytes of a quantized weight of `shape`, including its statistics."""
        blocks = -(-shape.numel() // self.block_size)
        statistics = blocks + -(-blocks // NESTED_BLOCK) * 4 + 4 if self.nested else blocks * 4
        return (shape.numel() + 1) // 2 + statistics

    def install(self, module: torch.nn.Module, weight: torch.Tensor, *, in_place: bool) -> None:
        """Turns `module` into a Linear4bit; unless `in_place`, it keeps its class and forward."""
        nn = library().nn
        rows, columns = weight.shape
        with torch.device("meta"):
            layer = nn.Linear4bit(
                columns,
                rows,
                bias=False,
                compute_dtype=self.compute_dtype,
                compress_statistics=self.nested,
                quant_type=self.kind,
                quant_storage=self.storage_dtype,
            )
        packed, state = self.quantized(weight)
        if in_place:
            become(module, layer)
            layer = module
        kind = nn.Params4bit if in_place else multiply_through(nn.Params4bit)
        layer.weight = module._parameters["weight"] = kind(
            packed,
            requires_grad=False,
            quant_state=state,
            blocksize=self.block_size,
            compress_statistics=self.nested,
            quant_type=self.kind,
            quant_storage=self.storage_dtype,
            module=layer,
            bnb_quantized=True,
        )
        layer.quant_state = state
        statistics.watch(module)
        if not in_place:
            lend(module, layer)

    def refresh(self, module: torch.nn.Module, weight: torch.Tensor) -> None:
        """Quantizes `weight` into the Params4bit of `module`."""
        self._put(module, *self.quantized(weight))
        statistics.watch(module)

    def follow(
        self, module: torch.nn.Module, duplicate: torch.nn.Module, memo: Mapping[int, Any]
    ) -> None:
        """Gives the copied weight the copied layer and state: bitsandbytes leaves the old layer."""
        weight: Any = module._parameters["weight"]
        copied: Any = memo.get(id(weight))
        if copied is not None and not is_foreign(weight):
            copied.module = duplicate
            copied.quant_state = memo.get(id(weight.quant_state), copied.quant_state)

    def finish(self, module: torch.nn.Module) -> None:
        """Removes everything of Dormant from `module`: its weight is real."""
        statistics.forget(module)

    def move_statistics(self, module: torch.nn.Module, place: torch.device) -> None:
        """Moves the QuantState, which the class of the weight has moved unless it was replaced."""
        weight: Any = module._parameters["weight"]
        weight.quant_state.to(place)

    def accept(
        self, module: torch.nn.Module, entries: Mapping[str, torch.Tensor], shape: torch.Size
    ) -> None:
        """Takes packed bytes and statistics as bitsandbytes saves them."""
        self._put(module, *self.prequantized(entries, self.attribute, shape))

    def prequantized(
        self, entries: Mapping[str, torch.Tensor], name: str, shape: torch.Size
    ) -> tuple[torch.Tensor, Any]:
        """The packed bytes and the QuantState in a checkpoint of bitsandbytes, as in `entries`.

        Args:
            entries: the tensors: "weight", "weight.absmax", ... if `name` is "weight".
            name: the name of the weight in `entries`.
            shape: the shape of the full-precision weight.

        Raises:
            KeyError: a part is missing, or there is an additional one.
            ValueError: a part is not as expected.
        """
        what = "layer" if name == self.attribute else name
        where = f"a {self.kind} {what} of shape {list(shape)}"
        state_name = f"{name}.quant_state.bitsandbytes__{self.kind}"
        check_parts(
            entries,
            required=(name, f"{name}.absmax", f"{name}.quant_map", state_name),
            optional=(f"{name}.nested_absmax", f"{name}.nested_quant_map", "bias"),
            where=where,
        )
        saved = read_state(entries[state_name], self.kind, shape, where)
        # In a layer whose columns were divided, these are matrices (divided_layers.py).
        entries = {**entries, name: entries[name].reshape(-1, 1)}
        entries[f"{name}.absmax"] = entries[f"{name}.absmax"].reshape(-1)
        nested = f"{name}.nested_absmax" in entries
        blocks = -(-shape.numel() // saved.block_size)
        storage = entries[name].dtype
        packed_bytes = (shape.numel() + 1) // 2
        check_tensor(entries, name, storage, (packed_bytes // storage.itemsize, 1), where)
        absmax_dtype = torch.uint8 if nested else torch.float32
        check_tensor(entries, f"{name}.absmax", absmax_dtype, (blocks,), where)
        check_tensor(entries, f"{name}.quant_map", torch.float32, (16,), where)
        state2 = offset = None
        if nested:
            nested_blocks = -(-blocks // saved.nested_block_size)
            nested_absmax = f"{name}.nested_absmax"
            check_tensor(entries, nested_absmax, torch.float32, (nested_blocks,), where)
            check_tensor(entries, f"{name}.nested_quant_map", torch.float32, (256,), where)
            offset = torch.tensor(saved.nested_offset, dtype=torch.float32, device="cpu")
            state2 = library().functional.QuantState(
                absmax=entries[nested_absmax].clone(),
                blocksize=saved.nested_block_size,
                code=entries[f"{name}.nested_quant_map"].clone(),
                dtype=torch.float32,
            )
        state = library().functional.QuantState(
            quant_type=self.kind,
            absmax=entries[f"{name}.absmax"].clone(),
            blocksize=saved.block_size,
            code=entries[f"{name}.quant_map"].clone(),
            dtype=saved.dtype,
            shape=shape,
            offset=offset,
            state2=state2,
        )
        return entries[name].clone(), state

    def attributes(
        self, module: torch.nn.Module
    ) -> list[tuple[dict[str, object], dict[str, object]]]:
        """The attributes of the weight and of the layer that multiplies, with their values."""
        weight: Any = module._parameters["weight"]
        owners = (module,) if is_dtensor(weight) else (weight, weight.module)
        return [(vars(owner), dict(vars(owner))) for owner in owners]

    def _put(self, module: torch.nn.Module, packed: torch.Tensor, state: Any) -> None:
        weight: Any = module._parameters["weight"]
        replace_values(weight, packed)
        if is_dtensor(weight):
            module.quant_state = state  # bitsandbytes looks here if a weight has no state
            statistics.attach(module)
            return
        weight.quant_storage = packed.dtype
        weight.quant_state = weight.module.quant_state = state
        weight.blocksize = state.blocksize
        weight.compress_statistics = state.nested

    def quantizer(self, *, nested: bool = True) -> _C.FourBit:
        """What the core packs with; it leaves the scales as they are unless `nested`."""
        values = nested_map() if self.nested and nested else None
        return _C.FourBit(self.kind, self.block_size, _levels(self.kind), values)

    def adopt_part(self, module: torch.nn.Module) -> None:
        """Makes the module save the statistics; the layer finds those of a gathered weight."""
        check_is_layer(module, "quant_state")
        statistics.attach(module)

    def elements_per_scale(self, shape: torch.Size) -> int:
        """The number of elements in a block."""
        return self.block_size

    def quantized_part(
        self, elements: torch.Tensor, shape: torch.Size
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Packed bytes and scales of whole blocks."""
        codes, scales = _C.quantize(elements, self.quantizer(nested=False))
        return codes.view(-1), scales

    def statistics(self, module: torch.nn.Module) -> list[torch.Tensor]:
        """The statistics of the QuantState that the layer has."""
        return statistics_in(vars(module).get("quant_state"))

    def statistics_of(self, scales: torch.Tensor, threads: int) -> list[torch.Tensor]:
        """The scales, quantized if they are nested."""
        return self.quantizer().nest(scales, threads) if self.nested else [scales]

    def quantized(self, weight: torch.Tensor) -> tuple[torch.Tensor, Any]:
        """The packed bytes of `weight` and their QuantState; lazy if `weight` is lazy."""
        functional = library().functional
        packed, absmax, *nested = run(weight, self.quantizer())
        state2 = offset = None
        if nested:
            nested_absmax, offset = nested
            state2 = functional.QuantState(
                absmax=nested_absmax,
                blocksize=NESTED_BLOCK,
                code=nested_map().clone(),
                dtype=torch.float32,
            )
        state = functional.QuantState(
            absmax=absmax,
            shape=weight.shape,
            code=_levels(self.kind).clone(),
            blocksize=self.block_size,
            quant_type=self.kind,
            dtype=weight.dtype,
            offset=offset,
            state2=state2,
        )
        if self.storage_dtype is not torch.uint8:
            packed = packed.squeeze().view(self.storage_dtype).unsqueeze(1)
        return packed, state


def statistics_in(state: Any) -> list[torch.Tensor]:
    """The tensors of a QuantState that are computed from the scales; none if it is None."""
    if state is None:
        return []
    return [state.absmax, *([state.state2.absmax, state.offset] if state.nested else [])]


def _dtype_of(value: object, option: str) -> torch.dtype:
    if isinstance(value, str):
        found = getattr(torch, value.removeprefix("torch."), None)
        if not isinstance(found, torch.dtype):
            raise ValueError(
                f"FourBit: {option} {value!r} is not the name of a dtype; expected one like "
                '"bfloat16".'
            )
        return found
    if not isinstance(value, torch.dtype):
        raise TypeError(
            f"FourBit: {option} must be a torch.dtype or its name, got {type(value).__name__}: "
            f"{value!r}."
        )
    return value


def nested_map() -> torch.Tensor:
    """The 256 values that bitsandbytes quantizes scales to: its own tensor, made once."""
    functional = library().functional
    if "dynamic" not in functional.name2qmap:
        with _as_if_imported():
            functional.name2qmap["dynamic"] = functional.create_dynamic_map()
    values: torch.Tensor = functional.name2qmap["dynamic"]
    return values


@functools.cache
def _levels(kind: str) -> torch.Tensor:
    """The 16 values of a 4-bit format, as bitsandbytes has them."""
    with _as_if_imported():
        levels: torch.Tensor = library().functional.get_4bit_type(kind, device="cpu")
    return levels


@contextlib.contextmanager
def _as_if_imported() -> Iterator[None]:
    """Makes the tables of a library the same, whatever mode the first call is made in."""
    with unrecorded(), torch.inference_mode(False), torch.device("cpu"), _Float32():
        yield


class _Float32(TorchFunctionMode):
    """Makes `torch.tensor` create float32; the default dtype is global and must not change."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if getattr(func, "__name__", "") == "tensor":
            kwargs.setdefault("dtype", torch.float32)
        return func(*args, **kwargs)
