"""Which architectures `from_pretrained` gives wrong values: in transformers itself, and in Dormant.

Each model of the catalog is saved, parameters are taken out of the file, and what the three ways
load is compared with plain eager PyTorch: construction under the seed, then every tensor that the
file has, then the rules of the library for those that it lacks. Memory that the allocator returns
is poisoned, so that a tensor which nobody writes is seen. The figures of docs/transformers_v5.md:

    python tests/models/pretrained_values.py          # all; NAME ... for some
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import subprocess
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from catalog import Model
from libraries import models, prepare

import dormant

SEED = 17
MARK = "_is_hf_initialized"


@dataclass
class Verdict:
    """What was loaded of one architecture, and which tensors came out wrong, by way."""

    name: str
    checkpoints: int = 0
    refused: int = 0
    tensors: int = 0
    wrong: dict[str, dict[str, str]] = field(default_factory=dict)

    def note(self, way: str, tensor: str, text: str) -> None:
        self.wrong.setdefault(way, {})[tensor] = text


def checkpoints(state: dict[str, torch.Tensor], singles: int) -> Iterator[list[str]]:
    """The names that a file lacks: none, of each module the smallest, and single ones in turn."""
    yield []
    of_module: dict[str, list[str]] = {}
    for name in state:
        of_module.setdefault(name.rpartition(".")[0], []).append(name)
    smallest = [
        min(names, key=lambda name: (state[name].numel(), name)) for names in of_module.values()
    ]
    yield [
        name
        for name in smallest
        if len(of_module[name.rpartition(".")[0]]) > 1 or state[name].dim() < 2
    ]
    # In turn: the smallest of all, and some of those that differ in more than their number.
    kinds = {re.sub(r"\d+", "0", name): name for name in reversed(smallest)}
    first = min(smallest, key=lambda name: (state[name].numel(), name))
    others = sorted(set(kinds.values()) - {first})
    for name in [first, *random.Random(SEED).sample(others, min(singles, len(others)))]:
        yield [name]


def judge(row: Model, folder: Path, *, singles: int = 1) -> Verdict:
    """Saves a model of other random values, and loads it in all three ways."""
    torch.manual_seed(1234)
    source: Any = row.build()
    for parameter in source.parameters():
        if parameter.is_floating_point():  # no value that an initializer would give as well
            parameter.data.add_(torch.rand_like(parameter), alpha=0.01)
    source.save_pretrained(folder)
    (file,) = folder.glob("*.safetensors")
    with safetensors.safe_open(file, "pt") as opened:
        metadata = opened.metadata()
    state = safetensors.torch.load_file(file)
    verdict = Verdict(row.name)
    for without in checkpoints(state, singles):
        safetensors.torch.save_file(
            {name: tensor for name, tensor in state.items() if name not in without},
            file,
            metadata=metadata,
        )
        _compare(source, folder, verdict)
    return verdict


def _compare(source: Any, folder: Path, verdict: Verdict) -> None:
    kind, config = type(source), type(source).config_class.from_pretrained(folder)

    states: list[torch.Tensor] = []

    def outside() -> Any:
        initialize = kind._initialize_missing_keys

        def noting(*args: Any) -> Any:
            states.append(torch.get_rng_state())
            return initialize(*args)

        kind._initialize_missing_keys = noting
        try:
            return kind.from_pretrained(folder)
        finally:
            del kind._initialize_missing_keys

    def inside() -> Any:
        with dormant.lazy_init():
            model = kind.from_pretrained(folder)
        dormant.materialize(model)
        return model

    def integration() -> Any:
        return dormant.integrations.transformers.from_pretrained(kind, folder)

    try:
        theirs = seeded(outside)
    except RuntimeError:  # one of several experts, which make one parameter, is missing
        verdict.refused += 1
        for way, build in (("inside", inside), ("ours", integration)):
            with contextlib.suppress(RuntimeError):
                build()
                verdict.note(way, "the file", "loads, expected an error")
        return
    loaded = {name for name, tensor in tensors(theirs).items() if getattr(tensor, MARK, False)}
    expected, constructed = reference(kind, config, source, loaded, states[0])
    other: dict[str, torch.Tensor] = {}
    verdict.checkpoints += 1
    verdict.tensors += len(expected)
    for way, model in (
        ("library", theirs),
        ("inside", seeded(inside)),
        ("ours", seeded(integration)),
    ):
        found = tensors(model)
        for name, wanted in expected.items():
            got = found.get(name)
            if got is None or got.is_meta or got.shape != wanted.shape:
                verdict.note(way, name, f"is {None if got is None else got.device}")
            elif not same(got, wanted) and not same(got, constructed[name]):
                if way == "library":
                    if not other:
                        torch.manual_seed(SEED + 1)
                        state = torch.get_rng_state()
                        other, _ = reference(kind, config, source, loaded, state)
                    if not same(wanted, other[name]) and plausible(got, wanted):
                        continue  # drawn from other random numbers
                verdict.note(way, name, f"{sample(got)}, expected {sample(wanted)}")


def reference(
    kind: Any, config: Any, source: Any, loaded: set[str], state: torch.Tensor
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """What plain eager PyTorch makes of it, with the rules of the library and without them.

    `state` is where the library's generator is when it initializes what the file lacks.
    """
    torch.manual_seed(SEED)
    model = kind(config)
    saved = tensors(source)

    def load() -> None:
        for name, tensor in tensors(model).items():
            if name in loaded:
                tensor.data.copy_(saved[name].data)
                setattr(tensor, MARK, True)

    ties = model.all_tied_weights_keys
    for name in ties:  # the library ties again at the end, to what the file has
        own = model.get_parameter(name)
        setattr(parent(model, name), name.rpartition(".")[2], torch.nn.Parameter(own.data.clone()))
    load()
    for name in ties:
        setattr(model.get_parameter(name), MARK, True)
    constructed = {name: tensor.detach().clone() for name, tensor in tensors(model).items()}
    for module in model.modules():
        module.__dict__.pop(MARK, None)
    torch.set_rng_state(state)
    model.initialize_weights()
    load()
    values = {name: tensor.detach() for name, tensor in tensors(model).items()}
    values |= {name: constructed[name] for name, _ in model.named_non_persistent_buffers()}
    for name, source_name in ties.items():
        has_it = source_name in loaded or name not in loaded
        for each in (values, constructed):
            each[name] = each[source_name] = each[source_name if has_it else name]
    return values, constructed


def parent(model: torch.nn.Module, name: str) -> torch.nn.Module:
    return model.get_submodule(name.rpartition(".")[0])


def seeded(build: Callable[[], Any]) -> Any:
    torch.manual_seed(SEED)
    # Memory that nobody writes should not be that of the values which it had before.
    del [torch.full((1 << size,), 1e30) for size in range(3, 18)][:]
    return build()


def tensors(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    named = [
        *model.named_parameters(remove_duplicate=False),
        *model.named_buffers(remove_duplicate=False),
    ]
    return dict(named)


def same(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether all bits are."""
    return one.dtype is other.dtype and torch.equal(_bytes(one), _bytes(other))


def _bytes(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8)


def plausible(got: torch.Tensor, wanted: torch.Tensor) -> bool:
    """Whether random values could be of the distribution of others."""
    bound = 4 * wanted.abs().max()
    return bool(torch.isfinite(got).all() and (got.abs() <= bound).all())


def sample(tensor: torch.Tensor) -> str:
    return str([f"{value:.4g}" for value in tensor.detach().reshape(-1)[:3].tolist()])


def main(names: list[str]) -> int:
    """Judges some at a time in a process of its own, and prints what is wrong, then the figures."""
    rows = [row.name for row in models("transformers") if not names or row.name in names]
    verdicts = []
    for start in range(0, len(rows), 8):
        done = subprocess.run(
            [sys.executable, __file__, "--these", *rows[start : start + 8]],
            env={**os.environ, "MALLOC_PERTURB_": "165"},
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            check=False,
        )
        for line in done.stdout.splitlines():
            if line.startswith("{"):
                verdicts.append(Verdict(**json.loads(line)))
                for way, wrong in verdicts[-1].wrong.items():
                    name, text = next(iter(wrong.items()))
                    print(f"{verdicts[-1].name}: {way}: {len(wrong)}: {name} {text}", flush=True)
    checked = sum(verdict.checkpoints for verdict in verdicts)
    refused = sum(verdict.refused for verdict in verdicts)
    compared = sum(verdict.tensors for verdict in verdicts)
    print(
        f"{len(verdicts)} architectures, {checked} checkpoints ({refused} more are refused), "
        f"{compared} tensors compared"
    )
    for way in ("library", "inside", "ours"):
        wrong_ones = [verdict.name for verdict in verdicts if way in verdict.wrong]
        print(f"wrong, {way}: {len(wrong_ones)} of {len(verdicts)}: {', '.join(wrong_ones)}")
    lost = sorted(set(rows) - {verdict.name for verdict in verdicts})
    print(f"not judged: {', '.join(lost) or 'none'}")
    return bool(lost)


def these(names: list[str]) -> None:
    torch.set_num_threads(1)
    for row in models("transformers"):
        if row.name in names:
            with tempfile.TemporaryDirectory() as folder:
                try:
                    verdict = judge(row, Path(folder))
                except Exception:
                    traceback.print_exc()
                    continue
                print(json.dumps(vars(verdict)), flush=True)


if __name__ == "__main__":
    prepare()
    warnings.simplefilter("ignore")
    if sys.argv[1:2] == ["--these"]:
        these(sys.argv[2:])
    else:
        raise SystemExit(main(sys.argv[1:]))
