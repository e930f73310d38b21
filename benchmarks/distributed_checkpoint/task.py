"""Loads, converts and saves folders of torch.distributed.checkpoint, in processes of their own."""

from __future__ import annotations

import importlib
import shutil
import tempfile
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from benchmarks.contestants import Contestant, find
from benchmarks.distributed_checkpoint.stored import RANKS, Stored
from benchmarks.fingerprint import bits, differences
from benchmarks.load import page_cache
from benchmarks.options import Options
from benchmarks.outcome import Outcome, Sheet, aim
from benchmarks.sample import median, sample
from dormant.text.table import format_bytes

NAME = "distributed_checkpoint"
TITLE = "folders of torch.distributed.checkpoint: load, make one file of, save"
ACTIONS = {
    "load": f"parts of {RANKS} ranks into one model",
    "convert": f"parts of {RANKS} ranks into one file of torch.save",
    "save": "a model with memory into a folder",
}
_SCRATCH = Path(__file__).parents[1] / "out"


def run(options: Options) -> Outcome:
    outcome = Outcome(NAME)
    everyone = find("benchmarks.distributed_checkpoint")
    _SCRATCH.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="distributed-", dir=_SCRATCH) as scratch:
        stored = Stored(str(Path(scratch, "stored")), "tiny" if options.quick else "1.1B")
        small = Stored(str(Path(scratch, "small")), "tiny")
        for each in (small, stored):
            options.call("benchmarks.distributed_checkpoint.stored:write", **asdict(each))
        for action in ACTIONS:
            _compare(outcome, everyone, action, small, scratch, options)
            outcome.sheets.append(
                _measure(outcome, everyone, action, stored, small, scratch, options)
            )
    return outcome


def _compare(
    outcome: Outcome,
    everyone: list[Contestant],
    action: str,
    stored: Stored,
    scratch: str,
    options: Options,
) -> None:
    digests = {
        contestant.name: options.call(
            "benchmarks.distributed_checkpoint.task:digests",
            module=contestant.module,
            stored=asdict(stored),
            action=action,
            scratch=scratch,
        )
        for contestant in everyone
    }
    first, *others = digests
    for name in others:
        outcome.check(f"{name}, {action}", differences(digests[first], digests[name]))


def _measure(
    outcome: Outcome,
    everyone: list[Contestant],
    action: str,
    stored: Stored,
    small: Stored,
    scratch: str,
    options: Options,
) -> Sheet:
    measured: dict[str, list[dict[str, Any]]] = {}
    for _ in range(options.repeat):  # in turns, so that a busy minute hits all of them
        for contestant in everyone:
            figures = options.call(
                "benchmarks.distributed_checkpoint.task:measure",
                module=contestant.module,
                stored=asdict(stored),
                small=asdict(small),
                action=action,
                scratch=scratch,
            )
            measured.setdefault(contestant.name, []).append(figures)
    nbytes = stored.nbytes()
    sheet = Sheet(f"{action}: {ACTIONS[action]}", ("", "s", "cpu s", "GB/s", "peak"))
    for name, samples in sorted(measured.items(), key=lambda item: median(item[1], "seconds")):
        seconds = median(samples, "seconds")
        sheet.rows.append(
            [
                name,
                f"{seconds:.3f}",
                f"{median(samples, 'processor'):.3f}",
                f"{nbytes / seconds / 1e9:.2f}",
                format_bytes(int(median(samples, "peak"))),
            ]
        )
        outcome.measurements.append(
            {"contestant": name, "action": action, "nbytes": nbytes, "samples": samples}
        )
    ours, theirs = measured["dormant"], measured["torch.distributed.checkpoint"]
    share = median(ours, "processor") / median(theirs, "processor")
    sheet.notes += [
        f"median of {options.repeat} fresh processes, {torch.get_num_threads()} threads; "
        f"{format_bytes(nbytes)} of files, in memory; peak: highest resident memory above that "
        "before",
        aim("processor time beside torch", share, 1, "x"),
    ]
    return sheet


# ---- in the child processes


def digests(module: str, stored: dict[str, str], action: str, scratch: str) -> dict[str, str]:
    """A digest of each tensor of what a contestant makes."""
    import torch.distributed.checkpoint as dcp

    warnings.filterwarnings("ignore", message="torch.distributed is disabled")
    contestant, source = importlib.import_module(module), Stored(**stored)
    with tempfile.TemporaryDirectory(dir=scratch) as out:
        result = contestant.build(source, action, out, contestant.prepare(source, action, out))
        if action == "load":
            state = dict(result.state_dict())
        elif action == "convert":
            state = torch.load(Path(out, "model.pt"))
        else:
            from benchmarks.distributed_checkpoint.stored import meta_model

            state = {
                name: torch.empty_like(tensor, device="cpu")
                for name, tensor in meta_model(source.size).state_dict().items()
            }
            dcp.load(state, checkpoint_id=out)
        return {name: bits(tensor) for name, tensor in state.items()}


def measure(
    module: str, stored: dict[str, str], small: dict[str, str], action: str, scratch: str
) -> dict[str, Any]:
    """One sample, after a small one: imports are not what is compared."""
    contestant = importlib.import_module(module)
    warm, source = Stored(**small), Stored(**stored)
    with tempfile.TemporaryDirectory(dir=scratch) as out:
        contestant.build(warm, action, out, contestant.prepare(warm, action, out))
    page_cache.fill(source.files())
    out = tempfile.mkdtemp(dir=scratch)
    try:
        prepared = contestant.prepare(source, action, out)
        return sample(lambda: contestant.build(source, action, out, prepared))
    finally:
        shutil.rmtree(out)
