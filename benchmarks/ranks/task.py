"""Processor time of each rank that fills its part of a model under fully_shard, or all of it.

Not time on the clock: the ranks of this machine share its processors, those of a cluster do not.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from benchmarks.options import Options
from benchmarks.outcome import Outcome, Sheet, aim
from benchmarks.ranks.ways import BLOCK, REPLICAS, WAYS
from benchmarks.sample import median
from dormant.text.table import format_bytes

NAME = "ranks"
TITLE = "ranks that fill their parts of one model"
_WORLDS = (1, 2, 4)
_KINDS = {"bfloat16": False, "bfloat16 to nf4": True, "fp8 to nf4": True}
_TIMEOUT = 300  # seconds


def run(options: Options) -> Outcome:
    outcome = Outcome(NAME)
    layers, size = (2, 512) if options.quick else (6, 4096)
    with tempfile.TemporaryDirectory() as folder:
        for kind, packed in _KINDS.items():
            if options.quick and kind == "bfloat16 to nf4":
                continue  # what fp8 does, too
            path = write(Path(folder, f"{kind}.{size}"), kind, layers, size)
            small = write(Path(folder, f"{kind}.small"), kind, 1, 256)
            case = {
                "path": str(path),
                "small": str(small),
                "packed": packed,
                "layers": layers,
                "size": size,
            }
            outcome.sheets.append(_sheet(outcome, options, kind, case, Path(folder)))
            if kind == "bfloat16":
                outcome.sheets.append(_replicas(outcome, options, case, Path(folder)))
            path.unlink()
    return outcome


def _sheet(
    outcome: Outcome, options: Options, kind: str, case: dict[str, Any], folder: Path
) -> Sheet:
    sheet = Sheet(
        f"{case['layers']} layers of {case['size']} x {case['size']}, {kind}",
        ("", "ranks", "processor, each rank", "share of one rank", "peak above the part"),
    )
    ways = [way for way in WAYS if not (case["packed"] and way.startswith("rank 0"))]
    alone: dict[str, float] = {}
    shares = {}
    worlds = _WORLDS[:2] if options.quick else _WORLDS
    for world in worlds:
        results = {
            way: [_run(way, world, case, folder, i) for i in range(options.repeat)] for way in ways
        }
        expected = [rank["digest"] for rank in results["every rank loads all"][0]]
        for way, runs in results.items():
            same = all([rank["digest"] for rank in ranks] == expected for ranks in runs)
            outcome.check(f"{kind}, {way}, {world} ranks", [] if same else ["bits"])
            ranks = [rank for ranks in runs for rank in ranks]
            # The slowest rank is waited for.
            seconds = median(
                [max(each, key=lambda rank: rank["processor"]) for each in runs], "processor"
            )
            alone.setdefault(way, seconds)
            shares[way, world] = seconds / alone[way]
            above = median(ranks, "peak") - median(ranks, "part")
            sheet.rows.append(
                [
                    way,
                    str(world),
                    f"{seconds:.3f} s",
                    f"{shares[way, world]:.2f}",
                    format_bytes(max(0, int(above))),
                ]
            )
            outcome.measurements.append(
                {"contestant": way, "ranks": world, **case, "samples": runs}
            )
    sheet.notes += [
        f"median of {options.repeat} runs, the rank that takes most; one thread for each rank",
        aim(f"share with {worlds[-1]} ranks", shares["dormant", worlds[-1]], 1 / worlds[-1], ""),
    ]
    return sheet


def _replicas(outcome: Outcome, options: Options, case: dict[str, Any], folder: Path) -> Sheet:
    sheet = Sheet(
        f"{case['layers']} layers of {case['size']} x {case['size']}, bfloat16, all of them on "
        "each rank",
        ("", "ranks", "read by each rank", "processor, each rank", "peak above the model"),
    )
    expected = ""
    for world in _WORLDS[1:2] if options.quick else _WORLDS[1:]:
        for way in REPLICAS:
            runs = [_run(way, world, case, folder, i) for i in range(options.repeat)]
            ranks = [rank for ranks in runs for rank in ranks]
            expected = expected or ranks[0]["digest"]
            same = all(rank["digest"] == expected for rank in ranks)
            outcome.check(f"{way}, {world} ranks", [] if same else ["bits"])
            seconds = median(
                [max(each, key=lambda rank: rank["processor"]) for each in runs], "processor"
            )
            above = median(ranks, "peak") - median(ranks, "part")
            sheet.rows.append(
                [
                    way,
                    str(world),
                    format_bytes(int(median(ranks, "read"))),
                    f"{seconds:.3f} s",
                    format_bytes(max(0, int(above))),
                ]
            )
            outcome.measurements.append(
                {"contestant": way, "ranks": world, **case, "samples": runs}
            )
    sheet.notes.append(f"median of {options.repeat} runs; one thread for each rank; nothing mapped")
    return sheet


def _run(way: str, world: int, case: dict[str, Any], folder: Path, i: int) -> list[dict[str, Any]]:
    """What each rank measured."""
    rendezvous = folder / f"rendezvous.{way.replace(' ', '_')}.{world}.{i}"
    rendezvous.unlink(missing_ok=True)
    job = {"way": way, "world": world, "rendezvous": str(rendezvous), **case}
    ranks = [
        subprocess.Popen(
            [
                *(sys.executable, "-m", "benchmarks.ranks.job"),
                json.dumps({**job, "rank": rank}),
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[2],
            env={**os.environ, "GLOO_SOCKET_IFNAME": "lo"},
        )
        for rank in range(world)
    ]
    found = []
    for process in ranks:
        output, errors = process.communicate(timeout=_TIMEOUT)
        if process.returncode != 0:
            raise RuntimeError(f"benchmarks: {way} on {world} ranks failed:\n{errors[-2000:]}")
        found.append(json.loads(output.splitlines()[-1]))
    rendezvous.unlink(missing_ok=True)
    return found


def write(path: Path, kind: str, layers: int, size: int) -> Path:
    """A checkpoint of a model, and what says how it is encoded."""
    path.mkdir()
    torch.manual_seed(0)
    state: dict[str, torch.Tensor] = {}
    for i in range(layers):
        weight = torch.empty(size, size, dtype=torch.bfloat16).normal_()
        if kind.startswith("fp8"):
            blocks = -(-size // BLOCK)
            scales = torch.rand(blocks, blocks) + 0.5
            state[f"{i}.weight"] = weight.to(torch.float8_e4m3fn)
            state[f"{i}.weight_scale_inv"] = scales
        else:
            state[f"{i}.weight"] = weight
    file = path / "model.safetensors"
    safetensors.torch.save_file(state, file)
    if kind.startswith("fp8"):
        configuration = {"quant_method": "fp8", "weight_block_size": [BLOCK, BLOCK]}
        text = json.dumps({"quantization_config": configuration, "torch_dtype": "bfloat16"})
        (path / "config.json").write_text(text)
    return file
