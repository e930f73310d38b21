"""The code that runs in the process of one measurement."""

from __future__ import annotations

import gc
import json
import os
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from case import Case, Way, read_once

from dormant.reporting.memory import PeakMemory

_TELL_EVERY = 0.05  # seconds


def find_case(name: str) -> Case:
    """The case of this name."""
    # The child imports torch and transformers, not the parent.
    import llama
    import minilm

    return {**minilm.CASES, **llama.CASES}[name]


def run(connection: Connection, name: str, way: str, folder: str, log: str) -> None:
    """Runs one way of a case and sends messages: pairs of a kind and its contents.

    Args:
        connection: to the parent. After ("ready", None), the child waits for an answer, so that the
            parent can measure its memory from then on.
        name: the name of the case.
        way: "ordinary" or "dormant".
        folder: the folder to read or write.
        log: the file that gets the output of libraries.
    """
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
        os.dup2(descriptor, stream.fileno())
    try:
        _run(connection, find_case(name), way, Path(folder))
    except Exception:
        connection.send(("failed", traceback.format_exc()))


def _run(connection: Connection, case: Case, way: str, folder: Path) -> None:
    _warm_up(case, case.way(way))
    if not case.writes:
        _fill_page_cache(folder)
    gc.collect()
    connection.send(("ready", None))
    connection.recv()
    peak = PeakMemory()
    started, worked = time.perf_counter(), time.process_time()
    result = case.way(way)(folder, _teller(connection))
    loaded = time.perf_counter() - started
    connection.send(("step", "reading every page once"))
    if result is not None:
        read_once(result)
    cost = {
        "seconds": loaded,
        "used": time.perf_counter() - started,
        "processor": time.process_time() - worked,
        "peak": peak.result(),
    }
    connection.send(("used", cost))
    connection.send(("step", "hashing and computing"))
    connection.send(("result", asdict(case.describe(result, folder))))


def _teller(connection: Connection) -> Callable[[int, int], None]:
    last = 0.0

    def tell(done: int, total: int) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= _TELL_EVERY:
            last = now
            connection.send(("progress", (done, total)))

    return tell


def _warm_up(case: Case, way: Way) -> None:
    """Constructs a first model, which pays for imports in either way."""
    import transformers

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        config: dict[str, Any] = dict(case.tiny)
        if case.writes:
            (folder / "config.json").write_text(json.dumps(config))
        else:
            kind = transformers.BertModel if config["model_type"] == "bert" else None
            kind = kind or transformers.LlamaForCausalLM
            kind(transformers.AutoConfig.for_model(**config)).save_pretrained(folder)
        model = way(folder, lambda done, total: None)
        del model
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()


def _fill_page_cache(folder: Path) -> None:
    """Reads the files once, so that neither way has to wait for the disk."""
    buffer = memoryview(bytearray(4 << 20))
    for path in folder.glob("*.safetensors"):
        with path.open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass
