"""Calls a function in another Python process, so that its memory and its caches are its own."""

from __future__ import annotations

import importlib
import json
import multiprocessing
import os
import subprocess
import sys
import traceback
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

_MARK = "benchmark result: "
_ROOT = Path(__file__).parent.parent
_TIMEOUT = 900  # seconds
_ENVIRONMENT = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}
_PRELOADED = ["torch", "dormant", "bitsandbytes", "transformers.models.llama.modeling_llama"]


class Unavailable(Exception):
    """The function does not apply here; the message says why."""


def call(function: str, *, timeout: float = _TIMEOUT, **arguments: Any) -> Any:
    """Calls `package.module:name` with keyword arguments in a new process.

    Args:
        function: where it is.
        timeout: seconds it may take.
        arguments: values that JSON can hold.

    Returns:
        What it returned, through JSON.

    Raises:
        Unavailable: it raised NotImplementedError.
        RuntimeError: it failed in another way; the message ends with what it printed.
    """
    process = subprocess.run(
        [sys.executable, "-m", "benchmarks.child", function, json.dumps(arguments)],
        cwd=_ROOT,
        env={**os.environ, **_ENVIRONMENT},
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    for line in reversed(process.stdout.splitlines()):
        if line.startswith(_MARK):
            return _value(json.loads(line.removeprefix(_MARK)))
    raise RuntimeError(
        f"benchmarks: {function}({arguments}) ended with {process.returncode} and without a "
        f"result:\n{process.stderr[-2000:]}"
    )


def call_forked(function: str, *, timeout: float = _TIMEOUT, **arguments: Any) -> Any:
    """As `call`, in the fork of a process that has imported the libraries: sooner, less exact.

    Pages that the fork shares count otherwise.
    """
    os.environ.update(_ENVIRONMENT)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOADED)
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=_send_answer, args=(there, function, json.dumps(arguments)))
    process.start()
    there.close()
    try:
        answer = here.recv() if here.poll(timeout) else json.dumps({"failed": "it took too long"})
    except EOFError:
        answer = json.dumps({"failed": "it ended without a result"})
    finally:
        process.join(1)
        process.kill()
        process.join()
    answer = json.loads(answer)
    if "failed" in answer:
        raise RuntimeError(f"benchmarks: {function}({arguments}): {answer['failed']}")
    return _value(answer)


def _value(answer: dict[str, Any]) -> Any:
    if "unavailable" in answer:
        raise Unavailable(answer["unavailable"])
    return answer["value"]


def _send_answer(connection: Connection, function: str, arguments: str) -> None:
    try:
        answer = _answer(function, arguments)
    except Exception:
        answer = {"failed": traceback.format_exc()}
    connection.send(json.dumps(answer))


def _answer(function: str, arguments: str) -> dict[str, Any]:
    module, name = function.split(":")
    try:
        return {"value": getattr(importlib.import_module(module), name)(**json.loads(arguments))}
    except NotImplementedError as reason:
        return {"unavailable": str(reason)}


def main() -> None:
    print(_MARK + json.dumps(_answer(*sys.argv[1:3])), flush=True)


if __name__ == "__main__":
    main()
