"""The public operations, each as something that one thread does to a small model."""

from __future__ import annotations

import copy
import io
import itertools
import pickle
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import nn

import dormant

sys.path.insert(0, str(Path(__file__).parents[1] / "lib"))

from every_format import EXPERTS, FORMATS, LINEAR, Formats, Packable

Bits = dict[str, bytes]


class Model(Packable):
    """Some kilobytes with ties, views, buffers and draws from a generator of its own."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.embedding = nn.Embedding(16, 8)
        self.hidden = nn.Linear(8, 64)
        self.norm = nn.LayerNorm(64)
        self.back = nn.Linear(64, 8)
        self.head = nn.Linear(8, 16, bias=False)
        self.head.weight = self.embedding.weight
        self.register_buffer("mask", torch.ones(8, 8).tril())
        self.register_buffer("positions", torch.arange(32)[16:])
        with torch.no_grad():
            # Their own initialization drew from the generator that all threads share.
            for parameter in (self.experts, *self.linear.parameters()):
                nn.init.normal_(parameter, generator=generator)
            nn.init.normal_(self.embedding.weight, generator=generator)
            nn.init.kaiming_uniform_(self.hidden.weight, generator=generator)
            nn.init.uniform_(self.hidden.bias, generator=generator)
            nn.init.trunc_normal_(self.back.weight, std=0.1, generator=generator)
            self.back.bias.copy_(self.hidden.bias[::8] * 2)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        hidden = self.norm(self.hidden(self.embedding(tokens)).relu())
        out: torch.Tensor = self.head(self.back(hidden) @ self.mask)
        return out


SEED, LOADED_SEED = 1, 2


def build_lazily(seed: int = SEED) -> Model:
    with dormant.lazy_init():
        return Model(seed)


def bits_of(state: dict[str, torch.Tensor]) -> Bits:
    """The bytes of each tensor of a real state dict."""
    return {
        name: tensor.detach().contiguous().flatten().view(torch.uint8).numpy().tobytes()
        for name, tensor in state.items()
        if isinstance(tensor, torch.Tensor)
    }


def materialized_bits(model: nn.Module) -> Bits:
    dormant.materialize(model, progress=False)
    return bits_of(model.state_dict())


@dataclass
class Subject:
    """What an operation works on.

    Attributes:
      model: lazy at first; on a shared one another thread works, too.
      files: the folder with the checkpoints "loaded.safetensors" and "loaded.pt".
      folder: where this thread may write.
      formats: the same checkpoint in other formats.
    """

    model: nn.Module
    files: Path
    folder: Path
    formats: Formats


def write_checkpoints(files: Path) -> Formats:
    """The state of the model with another seed."""
    state = {name: t.detach().clone() for name, t in Model(LOADED_SEED).state_dict().items()}
    safetensors.torch.save_file(state, files / "loaded.safetensors")
    torch.save(state, files / "loaded.pt")
    return Formats(files, state)


def _build(subject: Subject) -> nn.Module:
    model = build_lazily()
    assert dormant.is_lazy(model)
    return model


def _load(subject: Subject) -> nn.Module:
    dormant.load(subject.model, subject.files / "loaded.safetensors", progress=False)
    return subject.model


def _load_with_other_options(subject: Subject) -> nn.Module:
    dormant.load(
        subject.model,
        subject.files / "loaded.pt",
        mmap="never",
        memory_budget=1 << 30,
        progress=lambda done, total: None,
    )
    return subject.model


def _load_from(name: str) -> Callable[[Subject], nn.Module]:
    def load(subject: Subject) -> nn.Module:
        dormant.load(subject.model, subject.formats[name].path, missing="init", progress=False)
        return subject.model

    return load


def _open_formats(subject: Subject) -> tuple[Any, ...]:
    found: list[Any] = []
    for name in FORMATS:
        checkpoint = dormant.open_checkpoint(subject.formats[name].path)
        found.append(len(checkpoint))
        found.append(checkpoint[LINEAR][3:5, 7:].float().sum().item())
        found.append(checkpoint[EXPERTS][1].float().numpy().tobytes())
    return tuple(found)


def _load_lazily(subject: Subject) -> nn.Module:
    dormant.load(subject.model, subject.files / "loaded.safetensors", materialize=False)
    return subject.model


def _save(subject: Subject) -> Bits:
    path = subject.folder / "saved.safetensors"
    dormant.save(subject.model, path, progress=False)
    return bits_of(safetensors.torch.load_file(path))


def _save_parts(subject: Subject) -> Bits:
    folder = subject.folder / "parts"
    dormant.save(subject.model, folder, format="dcp", progress=False)
    saved = dormant.open_checkpoint(folder)
    return bits_of({name: tensor.clone() for name, tensor in saved.items()})


def _materialize(subject: Subject) -> nn.Module:
    dormant.materialize(subject.model, progress=False)
    return subject.model


def _materialize_parts(subject: Subject) -> nn.Module:
    tensors = list(subject.model.state_dict().values())
    dormant.materialize(subject.model.hidden, progress=lambda done, total: None)
    dormant.materialize(tensors[::2])
    for tensor in reversed(tensors):
        dormant.materialize(tensor)
    return subject.model


def _quantize(subject: Subject) -> nn.Module:
    # It changes which modules there are, which eager, too, allows one thread at a time only.
    model = copy.deepcopy(subject.model)
    dormant.quantize(model, "nf4", skip=["head"])
    return model


def _deepcopy(subject: Subject) -> nn.Module:
    return copy.deepcopy(subject.model)


def _pickle(subject: Subject) -> nn.Module:
    model: nn.Module = pickle.loads(pickle.dumps(subject.model))
    return model


def _torch_save(subject: Subject) -> dict[str, torch.Tensor]:
    file = io.BytesIO()
    torch.save(subject.model.state_dict(), file)
    file.seek(0)
    state: dict[str, torch.Tensor] = torch.load(file, weights_only=False)
    return state


def _summary(subject: Subject) -> tuple[Any, ...]:
    found = dormant.summary(subject.model)
    assert str(found)
    return len(found.tensors), found.bytes_after


def _is_lazy(subject: Subject) -> None:
    for tensor in subject.model.state_dict().values():
        dormant.is_lazy(tensor)
    dormant.is_lazy(subject.model)


def _open_and_read(subject: Subject) -> tuple[Any, ...]:
    checkpoint = dormant.open_checkpoint(subject.files / "loaded.safetensors")
    other = dormant.open_checkpoint(subject.files / "loaded.pt")
    return (
        checkpoint["hidden.weight"].numpy().tobytes(),
        other["mask"].tolist(),
        (checkpoint["back.weight"][1:3] + other["back.bias"][1]).sum().item(),
    )


def _state_dict_of_checkpoint(subject: Subject) -> nn.Module:
    model = build_lazily()
    model.load_state_dict(dormant.open_checkpoint(subject.files / "loaded.pt"), assign=True)
    return model


_TOKENS = torch.arange(12)


def _forward(subject: Subject) -> torch.Tensor:
    out: torch.Tensor = subject.model(_TOKENS)
    return out.detach()


def _compile(subject: Subject) -> torch.Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        out: torch.Tensor = torch.compile(subject.model, backend="eager")(_TOKENS)
    return out.detach()


@dataclass(frozen=True)
class Operation:
    """One public operation.

    Attributes:
      run: does it and returns what came out.
      loads: the model may have the checkpoint's values afterwards.
      is_slow: takes so long that few rounds must do.
      reads_memory: may be refused where another thread loads the same model, whose real tensors are
        reads of held memory meanwhile: no recipe can keep these, and their memory is not there.
      partners: the operations beside which it runs, besides itself; None: all that say nothing.
    """

    run: Callable[[Subject], Any]
    loads: bool = False
    is_slow: bool = False
    reads_memory: bool = False
    partners: tuple[str, ...] | None = None


# Formats differ in how bytes become elements; what a thread may meet meanwhile is in these.
_FEW = ("load", "save", "materialize")


OPERATIONS: dict[str, Operation] = {
    "build": Operation(_build),
    "load": Operation(_load, loads=True),
    "load with other options": Operation(_load_with_other_options, loads=True),
    "load lazily": Operation(_load_lazily, loads=True),
    "save": Operation(_save),
    "save parts": Operation(_save_parts),
    "materialize": Operation(_materialize),
    "materialize parts": Operation(_materialize_parts),
    "quantize": Operation(_quantize, is_slow=True),
    "deepcopy": Operation(_deepcopy),
    "pickle": Operation(_pickle, reads_memory=True),
    "torch.save": Operation(_torch_save, reads_memory=True),
    "summary": Operation(_summary),
    "is_lazy": Operation(_is_lazy),
    "open_checkpoint": Operation(_open_and_read),
    "load_state_dict": Operation(_state_dict_of_checkpoint),
    "forward": Operation(_forward, reads_memory=True),
    "compile": Operation(_compile, is_slow=True, reads_memory=True),
    "open formats": Operation(_open_formats, partners=_FEW),
    **{f"load {name}": Operation(_load_from(name), loads=True, partners=_FEW) for name in FORMATS},
}


def pairs() -> list[tuple[str, str]]:
    """The operations that are to run beside each other."""
    return [
        (first, second)
        for first, second in itertools.combinations_with_replacement(OPERATIONS, 2)
        if first == second or _may_meet(first, second) or _may_meet(second, first)
    ]


def _may_meet(first: str, second: str) -> bool:
    partners = OPERATIONS[first].partners
    if partners is None:
        return OPERATIONS[second].partners is None
    return second in partners


def settled(result: Any) -> Any:
    """What an operation returned, its lazy tensors materialized, as something to compare."""
    if isinstance(result, nn.Module):
        return materialized_bits(result)
    if isinstance(result, torch.Tensor):
        return bits_of({"": result})[""]
    if isinstance(result, dict):
        tensors = [value for value in result.values() if isinstance(value, torch.Tensor)]
        dormant.materialize(tensors, progress=False)
        return bits_of(result) if tensors else result
    return result
