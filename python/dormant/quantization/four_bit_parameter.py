"""Parameters in 4 bits, such as the stacked matrices of experts, as bitsandbytes keeps them.

`bitsandbytes.nn.parametrize.replace_parameter_4bit` packs a parameter of any module, and adds a
parametrization that unpacks it when it is accessed. Dormant calls this function on a parameter of
one block, and then exchanges its packed bytes and its QuantState for lazy ones of the whole
parameter. Class, hooks and names are therefore those of the library, in any installed version.
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from dormant.quantization import statistics
from dormant.quantization.four_bit import FourBit, statistics_in
from dormant.tensors.shards import replace_values
from dormant.tensors.storage import unrecorded

_SUFFIXES = (
    "",
    ".absmax",
    ".quant_map",
    ".nested_absmax",
    ".nested_quant_map",
    ".quant_state.bitsandbytes__nf4",
    ".quant_state.bitsandbytes__fp4",
)


def parametrization_of(module: torch.nn.Module, attribute: str) -> Any:
    """What unpacks the parameter `attribute` of `module`; None if something else changes it, too.

    peft adds its own parametrization while a LoRA of the parameter is active.
    """
    lists: Any = module._modules.get("parametrizations")
    found = lists._modules.get(attribute) if lists is not None else None
    if found is None or len(found) != 1:
        return None
    first = found[0]
    return first if type(first).__name__ == "Bnb4bitParametrization" else None


@dataclass(frozen=True)
class FourBitParameter:
    """The 4-bit format of one parameter.

    Attributes:
        scheme: how it is packed.
        attribute: the name of the parameter in its module.
    """

    codes_per_byte: ClassVar[int] = FourBit.codes_per_byte

    scheme: FourBit
    attribute: str

    def __str__(self) -> str:
        return str(self.scheme)

    @property
    def held_as(self) -> str:
        """Where torch.nn.utils.parametrize keeps the original that is unpacked."""
        return f"parametrizations.{self.attribute}.original"

    @property
    def parts(self) -> tuple[str, ...]:
        """The names that the library's hook gives the packed bytes and statistics."""
        return tuple(self.attribute + suffix for suffix in _SUFFIXES)

    @contextlib.contextmanager
    def showing(self, module: torch.nn.Module, parameter: torch.nn.Parameter) -> Iterator[None]:
        """Puts `parameter` in place of the parametrization, also for attribute access."""
        lists = module._modules["parametrizations"]
        assert lists is not None
        before, kind = dict(lists._modules), type(module)
        del lists._modules[self.attribute]
        module._parameters[self.attribute] = parameter
        module.__class__ = _without_property(kind, self.attribute)
        try:
            yield
        finally:
            module.__class__ = kind
            module._parameters.pop(self.attribute, None)
            lists._modules.clear()
            lists._modules.update(before)

    def check(self, weight: torch.Tensor, name: str) -> None:
        """Raises ValueError if `weight` cannot be quantized."""
        self.scheme.check(weight, name)

    def install(self, module: torch.nn.Module, weight: torch.Tensor) -> None:
        """Replaces the parameter by the packed `weight` and what unpacks it."""
        packed, state = self.scheme.quantized(weight)
        parameter = torch.nn.Parameter(packed, requires_grad=False)
        with _unchanged_after_an_error(module, self.attribute):
            self._make_parametrization(module)
            lists: Any = module._modules["parametrizations"]
            lists[self.attribute]._parameters["original"] = parameter
            lists[self.attribute][0].quant_state = state
            statistics.watch(lists[self.attribute][0])

    def _make_parametrization(self, module: torch.nn.Module) -> None:
        with unrecorded(), torch.inference_mode(False), torch.device("cpu"):
            block = torch.zeros(self.scheme.block_size, dtype=torch.float32)
            module._parameters[self.attribute] = torch.nn.Parameter(block, requires_grad=False)
            importlib.import_module("bitsandbytes.nn.parametrize").replace_parameter_4bit(
                module,
                self.attribute,
                compress_statistics=self.scheme.nested,
                quant_type=self.scheme.kind,
                blocksize=self.scheme.block_size,
            )

    def refresh(self, module: torch.nn.Module, weight: torch.Tensor) -> None:
        """Quantizes `weight` again into the packed parameter."""
        self._put(module, *self.scheme.quantized(weight))

    def exchange(
        self,
        module: torch.nn.Module,
        make: Callable[[torch.Tensor, Any], tuple[torch.Tensor, Any]],
    ) -> None:
        """Replaces packed bytes and QuantState by what `make` makes of them."""
        lists: Any = module._modules["parametrizations"]
        packed = lists[self.attribute]._parameters["original"].data
        with torch.no_grad():
            self._put(module, *make(packed, self._unpacks(module).quant_state))

    def follow(
        self, module: torch.nn.Module, duplicate: torch.nn.Module, memo: Mapping[int, Any]
    ) -> None:
        """Does nothing: a copied parametrization has a copied state."""

    def finish(self, module: torch.nn.Module) -> None:
        """Removes everything of Dormant from `module`: its parameter is real."""
        statistics.forget(self._unpacks(module))

    def move_statistics(self, module: torch.nn.Module, place: torch.device) -> None:
        """Moves the QuantState, which the library leaves where it is."""
        self._unpacks(module).quant_state.to(place)

    def accept(
        self, module: torch.nn.Module, entries: Mapping[str, torch.Tensor], shape: torch.Size
    ) -> None:
        """Takes packed bytes and statistics as bitsandbytes saves them."""
        self._put(module, *self.scheme.prequantized(entries, self.attribute, shape))

    def attributes(
        self, module: torch.nn.Module
    ) -> list[tuple[dict[str, object], dict[str, object]]]:
        """The attributes of the parametrization, with their values."""
        unpacks = self._unpacks(module)
        return [(vars(unpacks), dict(vars(unpacks)))]

    def adopt_part(self, module: torch.nn.Module) -> None:
        """Does nothing: the parametrization unpacks what was gathered."""

    def elements_per_scale(self, shape: torch.Size) -> int:
        """The number of elements in a block."""
        return self.scheme.elements_per_scale(shape)

    def quantized_part(
        self, elements: torch.Tensor, shape: torch.Size
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Packed bytes and scales of whole blocks."""
        return self.scheme.quantized_part(elements, shape)

    def statistics(self, module: torch.nn.Module) -> list[torch.Tensor]:
        """The statistics of the parametrization's QuantState."""
        return statistics_in(self._unpacks(module).quant_state)

    def statistics_of(self, scales: torch.Tensor, threads: int) -> list[torch.Tensor]:
        """The scales, quantized if they are nested."""
        return self.scheme.statistics_of(scales, threads)

    def _unpacks(self, module: torch.nn.Module) -> Any:
        lists: Any = module._modules["parametrizations"]
        return lists[self.attribute][0]

    def _put(self, module: torch.nn.Module, packed: torch.Tensor, state: Any) -> None:
        lists: Any = module._modules["parametrizations"]
        replace_values(lists[self.attribute]._parameters["original"], packed)
        unpacks = self._unpacks(module)
        unpacks.quant_state = state
        statistics.watch(unpacks)


def _without_property(kind: type[torch.nn.Module], attribute: str) -> type[torch.nn.Module]:
    """A class like `kind` in which `attribute` returns what is registered under that name."""

    def registered(module: torch.nn.Module) -> torch.nn.Parameter | None:
        return module._parameters[attribute]

    namespace = {attribute: property(registered), "__module__": kind.__module__}
    metaclass: Any = type(kind)
    shown: type[torch.nn.Module] = metaclass(kind.__name__, (kind,), namespace)
    return shown


@contextlib.contextmanager
def _unchanged_after_an_error(module: torch.nn.Module, attribute: str) -> Iterator[None]:
    """Undoes what was done to `module` and its class if the context ends in an exception."""
    kind, before = type(module), dict(vars(module))
    had_property = attribute in vars(kind)
    lists = module._modules.get("parametrizations")
    registries = [value for value in before.values() if isinstance(value, dict)]
    if lists is not None:
        registries.append(lists._modules)
    contents = [dict(registry) for registry in registries]
    try:
        yield
    except BaseException:
        # The class of a module that is already parametrized gets a property.
        if attribute in vars(kind) and not had_property:
            delattr(kind, attribute)
        module.__class__ = kind
        vars(module).clear()
        vars(module).update(before)
        for registry, content in zip(registries, contents, strict=True):
            registry.clear()
            registry.update(content)
        raise
