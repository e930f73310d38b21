"""The tensors of GGUF files under the names and in the layouts of transformers' models.

llama.cpp's converters rename tensors and change some: they permute the rows of queries and keys,
stack experts, and add one to norms. The installed transformers has two kinds of tables that undo
this. For newer architectures, they are rules like those for its own checkpoints
(transformers/integrations/gguf/gguf_conversion_mapping.py). For the others, they are names, which
it finds with the package gguf, and "processors", which are functions of numpy arrays
(transformers/modeling_gguf_pytorch_utils.py). The processors run here unchanged on lazy tensors, in
a copy of their module whose `np` and `torch` are the few functions below.
"""

from __future__ import annotations

import importlib
import importlib.util
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch

from dormant.checkpoint.pretrained import Step, listing
from dormant.recording.context import lazy_init
from dormant.tensors.exhausted_memory import is_exhausted_memory
from dormant.text.printable import printable

_ARCHITECTURE = "general.architecture"
_TABLES = "transformers.modeling_gguf_pytorch_utils"
# Tensors that a model computes from its configuration, and that transformers leaves out.
_COMPUTED = ("rope_freqs.", "rope_factors_long.", "rope_factors_short.", "attn_rot_embd.")
# How many nested modules are searched for names: a model's base model, and its base model.
_DEEP = 2


class GgufNames:
    """How the tensors of one GGUF file become those of a model.

    Attributes:
        architecture: the architecture that the file names; "" if it names none.
    """

    def __init__(self, metadata: Mapping[str, Any]) -> None:
        self._metadata = metadata
        self.architecture = str(metadata.get(_ARCHITECTURE, ""))

    def transforms(self, model: Any) -> list[Any] | None:
        """The rules of transformers for the architecture; None if it has no rules for it."""
        try:
            library: Any = importlib.import_module("transformers.integrations.gguf")
            known = library.GGUF_ARCHS
        except (ImportError, AttributeError):  # before transformers 5.22
            return None
        if self.architecture not in known:
            return None
        rules: list[Any] = known[self.architecture](model.config)
        return rules

    def steps(
        self, model: Any, own: Mapping[str, Any], shapes: Mapping[str, Sequence[int] | None]
    ) -> list[Step]:
        """How each tensor of a model is made, according to the tables of names and processors.

        Args:
            model: a model of transformers.
            own: its tensors by name.
            shapes: of the checkpoint's tensors by name.

        Raises:
            NotImplementedError: transformers has no tables for the architecture.
            ImportError: the package gguf, which has part of them, is not installed.
            ValueError: a processor cannot be applied.
        """
        tables = _tables()
        processing = _Processing(self._processor(tables, model), self._names(tables, model, own))
        targets: dict[str, list[str]] = {}
        changed: set[str] = set()
        steps: list[Step] = []
        for name, shape in shapes.items():
            if shape is None:
                steps.append(Step(name, ((name, ""),)))
                continue
            made, same = processing.targets(name, shape)
            if not made and not any(each in name for each in _COMPUTED):
                steps.append(Step(name, ((name, ""),)))  # unexpected under its own name
            for target in made:
                targets.setdefault(target, []).append(name)
                if not same:
                    changed.add(target)
        for target, sources in targets.items():
            pairs = tuple((source, "") for source in sources)
            if target in changed or len(sources) > 1:
                steps.append(_Processed(target, pairs, processing))
            else:
                steps.append(Step(target, pairs))
        return steps

    def _processor(self, tables: Any, model: Any) -> Any:
        config = _configuration(tables, self.architecture, model.config.model_type, self._metadata)
        kind = tables.TENSOR_PROCESSORS.get(self.architecture, tables.TensorProcessor)
        if config is None:
            raise NotImplementedError(
                f"the installed transformers has no table for GGUF files of architecture "
                f"{self.architecture!r} and models of type {model.config.model_type!r}. Give the "
                "tensors the model's names with load(..., rename=...), or upgrade transformers."
            )
        return kind(config=config)

    def _names(self, tables: Any, model: Any, own: Mapping[str, Any]) -> dict[str, str]:
        if importlib.util.find_spec("gguf") is None:
            raise ImportError(
                "the table of names for GGUF files of architecture "
                f"{self.architecture!r} is in the Python package gguf. Run `pip install gguf`."
            )
        processor = tables.TensorProcessor()
        processor = tables.TENSOR_PROCESSORS.get(self.architecture, type(processor))()
        shown = _Shown(model.config, list(own), _DEEP)
        layers = _layers(model.config)
        try:
            found: dict[str, str] = tables.get_gguf_hf_weights_map(
                shown, processor, num_layers=layers
            )
        except NotImplementedError:  # no table of the model's name: that of the file's
            found = tables.get_gguf_hf_weights_map(
                shown, processor, model_type=self.architecture, num_layers=layers
            )
        return found


@dataclass(frozen=True)
class _Processing:
    """A processor of transformers, and the table in which it looks up names."""

    processor: Any
    names: dict[str, str]

    def run(self, name: str, value: torch.Tensor) -> tuple[dict[str, torch.Tensor], bool]:
        """The results for a tensor, by the model's names, and whether it is only renamed."""
        made: dict[str, torch.Tensor] = {}
        self.add(name, value, made)
        return made, len(made) == 1 and next(iter(made.values())) is value

    def add(self, name: str, value: torch.Tensor, made: dict[str, torch.Tensor]) -> None:
        """Calls the processor, which adds to `made` or to a tensor in it."""
        with lazy_init(), torch.no_grad():
            result = self.processor.process(
                weights=value,
                name=name,
                tensor_key_mapping=self.names,
                parsed_parameters={"tensors": made},
            )
        if result.name in self.names:
            made[self.names[result.name]] = result.weights

    def targets(self, name: str, shape: Sequence[int]) -> tuple[list[str], bool]:
        """The model's names that a tensor becomes part of, and whether it is only renamed."""
        with lazy_init(), _tracing():
            stand_in = torch.empty(tuple(shape), dtype=torch.float32)
            try:
                made, same = self.run(name, stand_in)
            except Exception as error:
                raise self.failure(name, stand_in, error) from error
        return list(made), same

    def failure(self, name: str, value: torch.Tensor, error: Exception) -> Exception:
        """The error of a processor, with our message."""
        if is_exhausted_memory(error):
            return error
        return ValueError(
            f"{name!r} of the GGUF file, of shape {list(value.shape)}, is converted by "
            f"{type(self.processor).__name__} of transformers, which failed: "
            f"{type(error).__name__}: {printable(str(error))}. Check that the file "
            "belongs to this model."
        )


class _Processed(Step):
    """A tensor that a processor makes from one or several."""

    def apply(self, model: Any, values: Mapping[str, Any], operation: str) -> dict[str, Any]:
        processing: _Processing = self.rule
        made: dict[str, torch.Tensor] = {}
        for name in self.origins:
            # As transformers' own values are, before anything is computed.
            value = values[name].to(torch.float32)
            try:
                processing.add(name, value, made)
            except Exception as error:
                failure = processing.failure(name, value, error)
                if failure is error:
                    raise
                raise type(failure)(f"{operation}: {failure}") from error
        if self.target not in made:
            raise ValueError(
                f"{operation}: transformers makes {self.target!r} of {type(model).__name__} from "
                f"{listing(self.origins)} of the checkpoint, but these gave {listing(list(made))}. "
                "Get the whole checkpoint of this model."
            )
        return {self.target: made[self.target]}


class _Shown:
    """The part of a model that the tables use: its configuration, and the names of its modules."""

    def __init__(self, config: Any, names: Sequence[str], deep: int) -> None:
        self.config = config
        self._names = names
        self._deep = deep

    def state_dict(self) -> dict[str, None]:
        """Names alone."""
        return dict.fromkeys(self._names)

    def named_children(self) -> list[tuple[str, _Shown]]:
        """The modules that have tensors."""
        children: dict[str, list[str]] = {}
        for name in self._names:
            child, dot, rest = name.partition(".")
            if dot:
                children.setdefault(child, []).append(rest)
        if self._deep == 0:
            return []
        return [
            (child, _Shown(self.config, names, self._deep - 1)) for child, names in children.items()
        ]


def _layers(config: Any) -> int:
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    return int(text.num_hidden_layers)


def _configuration(
    tables: Any, architecture: str, model_type: str, metadata: Mapping[str, Any]
) -> dict[str, Any] | None:
    """The values that a processor uses; None if there is no table for the architecture.

    The names of the values depend on the model's type; the keys depend on the file's architecture.
    """
    all_keys: Mapping[str, Mapping[str, str | None]] = tables.GGUF_TO_TRANSFORMERS_MAPPING["config"]
    names = (model_type, model_type.removesuffix("_text"), architecture)
    section = next((name for name in names if name in all_keys), None)
    if section is None:
        return None
    config: dict[str, Any] = dict(tables.GGUF_CONFIG_DEFAULTS_MAPPING.get(section) or {})
    for key, name in all_keys[section].items():
        value = metadata.get(f"{architecture}.{key}")
        if name is None or value is None:
            continue
        if isinstance(value, Sequence) and not isinstance(value, str) and len(value) == 1:
            value = value[0]
        config[name] = value
    return config


_TRACING: ContextVar[bool] = ContextVar("tracing", default=False)


@contextmanager
def _tracing() -> Iterator[None]:
    """Makes processors run on tensors without values."""
    token = _TRACING.set(True)
    try:
        yield
    finally:
        _TRACING.reset(token)


class _Arrays:
    """The functions of numpy that processors use, for lazy tensors."""

    def __getattr__(self, name: str) -> Any:
        raise NotImplementedError(
            f"numpy.{name} of a lazy tensor is not supported by this release of dormant"
        )

    @staticmethod
    def expand_dims(array: torch.Tensor, axis: int) -> torch.Tensor:
        """As of numpy."""
        return array.unsqueeze(axis)

    @staticmethod
    def array_split(array: torch.Tensor, count: int, axis: int = 0) -> tuple[torch.Tensor, ...]:
        """As of numpy."""
        return torch.tensor_split(array, count, dim=axis)

    @staticmethod
    def stack(arrays: Sequence[torch.Tensor], axis: int = 0) -> torch.Tensor:
        """As of numpy."""
        return torch.stack(list(arrays), dim=axis)

    @staticmethod
    def copy(array: torch.Tensor) -> torch.Tensor:
        """The tensor itself, since nothing writes to it."""
        return array

    @staticmethod
    def log(array: torch.Tensor) -> torch.Tensor:
        """Computed by numpy on values, since torch's last bits differ. Such tensors are small."""
        if _TRACING.get():
            return torch.empty_like(array)
        import numpy

        return torch.from_numpy(numpy.log(array.detach().numpy()))


class _Tensors:
    """The functions of torch that processors call on arrays."""

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)

    @staticmethod
    def from_numpy(array: torch.Tensor) -> torch.Tensor:
        """The argument, which already is a tensor."""
        return array

    @staticmethod
    def tensor(array: torch.Tensor, **_: Any) -> torch.Tensor:
        """A copy."""
        return array.clone()


_lock = threading.Lock()
_copies: dict[str, ModuleType] = {}


def _tables() -> Any:
    """A copy of the module of transformers with the tables, which works on lazy tensors."""
    with _lock:
        copy = _copies.get(_TABLES)
        if copy is None:
            spec = importlib.util.find_spec(_TABLES)
            if spec is None or spec.loader is None or spec.origin is None:
                raise NotImplementedError(
                    "the installed transformers has no tables for GGUF files. Upgrade it."
                )
            name = f"{_TABLES}_of_dormant"  # in its package, from which it imports
            spec = importlib.util.spec_from_file_location(name, spec.origin)
            assert spec is not None
            assert spec.loader is not None
            copy = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(copy)
            vars(copy).update(np=_Arrays(), torch=_Tensors())
            _copies[_TABLES] = copy
    return copy
