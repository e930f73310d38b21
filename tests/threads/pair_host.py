"""A process that runs pairs of operations; started by `test_pairs.py`, which it answers.

Each line of its input is a request in JSON, each line of its output the answer: an empty string, or
what went wrong. Where a pair takes too long, the stacks of all threads go to stderr and it ends.
"""

from __future__ import annotations

import contextlib
import faulthandler
import functools
import gc
import json
import sys
import tempfile
import threading
import traceback
from pathlib import Path
from typing import Any

import torch

import dormant
from dormant import _C
from dormant.recording import patches

sys.path.insert(0, str(Path(__file__).parent))

from operations import (
    OPERATIONS,
    SEED,
    Bits,
    Model,
    Subject,
    bits_of,
    build_lazily,
    materialized_bits,
    settled,
    write_checkpoints,
)


def run_together(works: list[Any]) -> tuple[list[Any], list[BaseException]]:
    """The results of all, and what was raised, each called in a thread of its own."""
    start = threading.Barrier(len(works))
    results: list[Any] = [None] * len(works)
    errors: list[BaseException] = []

    def run(i: int) -> None:
        try:
            start.wait()
            results[i] = works[i]()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(i,)) for i in range(len(works))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results, errors


class Pairs:
    """Runs pairs in this process, and knows what each operation gives alone."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._folders = [folder / "first", folder / "second"]
        for each in self._folders:
            each.mkdir()
        self._formats = write_checkpoints(folder)
        self._initial = bits_of(Model(SEED).state_dict())

    def close(self) -> None:
        self._formats.close()

    def run(self, names: list[str], *, shared: bool, rounds: int) -> None:
        for name in names:
            self._alone(name)
        if any(OPERATIONS[name].is_slow for name in names):
            rounds = (rounds + 3) // 4
        for number in range(rounds):
            if shared:
                self._on_one_model(names, with_real_tensors=number % 2 == 1)
            else:
                self._on_separate_models(names)
        self._check_idle()

    @functools.cache  # noqa: B019 (one object as long as the process)
    def _alone(self, name: str) -> Any:
        return settled(OPERATIONS[name].run(self._subject(build_lazily(), 0)))

    def _subject(self, model: torch.nn.Module, place: int) -> Subject:
        return Subject(model, self._folder, self._folders[place], self._formats)

    def _on_separate_models(self, names: list[str]) -> None:
        subjects = [self._subject(build_lazily(), place) for place in range(len(names))]
        works = [
            functools.partial(OPERATIONS[name].run, subject)
            for name, subject in zip(names, subjects, strict=True)
        ]
        results, errors = run_together(works)
        if errors:
            raise errors[0]
        for name, result in zip(names, results, strict=True):
            if settled(result) != self._alone(name):
                raise AssertionError(f"{name} gives something else than alone")

    def _on_one_model(self, names: list[str], *, with_real_tensors: bool) -> None:
        model = build_lazily()
        if with_real_tensors:
            dormant.materialize([model.hidden, model.positions], progress=False)
        works = [
            functools.partial(OPERATIONS[name].run, self._subject(model, place))
            for place, name in enumerate(names)
        ]
        results, errors = run_together(works)
        loads = any(OPERATIONS[name].loads for name in names)
        may_refuse = loads and any(OPERATIONS[name].reads_memory for name in names)
        for error in errors:
            if not (may_refuse and _is_refusal(error)):
                raise error
        states = [self._initial, *(self._alone(name) for name in names if OPERATIONS[name].loads)]
        for name, result in zip(names, results, strict=True):
            found = settled(result)
            if isinstance(found, dict) and name not in ("quantize", "load_state_dict"):
                _check_whole(found, states, f"what {name} gave")
        _check_whole(materialized_bits(model), states, "the model")
        for name, tensor in model.state_dict().items():
            if _C.is_lazy(tensor) or _C.carries_key(tensor):
                raise AssertionError(f"{name} is lazy after materialize")

    def _check_idle(self) -> None:
        torch._dynamo.reset()
        gc.collect()
        patches.uninstall_if_idle()
        if _C.live_storages() or patches.installed():
            raise AssertionError(
                f"{_C.live_storages()} lazy storages and {len(patches.installed())} patches are "
                "left when nothing refers to a model"
            )


def _check_whole(found: Bits, states: list[Bits], what: str) -> None:
    """Fails unless each tensor is that of one of the states; a file has tied ones once."""
    if not found or found.keys() - states[0].keys():
        raise AssertionError(f"{what} has the tensors {sorted(found)}")
    for name, value in found.items():
        if all(value != state[name] for state in states):
            raise AssertionError(f"{what}: {name} is neither the initial nor the loaded tensor")


def _is_refusal(error: BaseException) -> bool:
    return isinstance(error, NotImplementedError) or "raw access to the memory" in str(error)


def main() -> None:
    sys.setswitchinterval(1e-5)  # lets threads meet at more places
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        pairs = Pairs(Path(folder))
        stack.callback(pairs.close)
        gc.collect()
        gc.freeze()  # what importing made is not looked at after each pair
        for line in sys.stdin:
            request = json.loads(line)
            faulthandler.dump_traceback_later(request["seconds"], exit=True)
            problem = ""
            try:
                pairs.run(request["names"], shared=request["shared"], rounds=request["rounds"])
            except BaseException:
                problem = traceback.format_exc()
            faulthandler.cancel_dump_traceback_later()
            print(json.dumps(problem), flush=True)


if __name__ == "__main__":
    faulthandler.enable()
    main()
