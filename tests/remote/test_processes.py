"""Waiting for a server that does not answer: signals, the end of the process, forks; and memory."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import safetensors.torch
import torch

import dormant
from child import in_child
from compare import assert_same_bits
from dormant.cli.main import main
from range_server import Answer, RangeServer, Request, serving

NAME = "model.safetensors"
STATE = {"a": torch.randn(1000, 1000), "b": torch.randn(2000, 2000)}
DATA = safetensors.torch.save(STATE)


@pytest.fixture
def server() -> Iterator[RangeServer]:
    with serving({NAME: DATA}) as server:
        yield server


def _wait_for_requests(server: RangeServer, count: int) -> None:
    end = time.monotonic() + 60
    while len(server.requests) < count:
        assert time.monotonic() < end
        time.sleep(0.01)


def _stall_after_opening(request: Request) -> Answer | None:
    return Answer(stall=True) if request.begin > 0 else None


_START = """
import sys, time, torch, dormant
tensors = dict(dormant.open_checkpoint(sys.argv[1]))
"""


def _run(code: str, server: RangeServer) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", _START + code, f"{server.url}/{NAME}"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_an_interrupt_ends_waiting_and_then_the_process(server: RangeServer) -> None:
    server.misbehave = _stall_after_opening
    process = _run(
        """
try:
    dormant.materialize(tensors)
except KeyboardInterrupt:
    print("interrupted", all(map(dormant.is_lazy, tensors.values())), flush=True)
""",
        server,
    )
    _wait_for_requests(server, 2)
    time.sleep(0.3)
    begin = time.monotonic()
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=20)
    assert out == "interrupted True\n", err
    assert process.returncode == 0, err
    assert time.monotonic() - begin < 10  # a request alone would wait for 30 s


def test_python_runs_while_others_wait(server: RangeServer) -> None:
    server.latency = 0.5
    process = _run(
        """
import threading
thread = threading.Thread(target=dormant.materialize, args=(tensors,))
thread.start()
steps = 0
while thread.is_alive():
    time.sleep(0.01)
    steps += 1
print(steps > 20, not any(map(dormant.is_lazy, tensors.values())))
""",
        server,
    )
    out, err = process.communicate(timeout=60)
    assert out == "True True\n", err


def test_a_process_made_by_fork_reads_for_itself(server: RangeServer) -> None:
    checkpoint = dormant.open_checkpoint(f"{server.url}/{NAME}")
    first = checkpoint["a"]
    dormant.materialize(first)  # there are connections and threads now
    second = checkpoint["b"]
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            dormant.materialize(second)
            # Not torch.equal: it waits for threads of OpenMP, which a fork has not.
            status = 0 if second.numpy().tobytes() == STATE["b"].numpy().tobytes() else 2
        finally:
            os._exit(status)
    end = time.monotonic() + 60
    while (found := os.waitpid(pid, os.WNOHANG)) == (0, 0):
        assert time.monotonic() < end, "the child hangs"
        time.sleep(0.05)
    assert os.waitstatus_to_exitcode(found[1]) == 0
    dormant.materialize(second)
    assert_same_bits(STATE["b"], second)


def test_values_are_read_where_python_asks_for_them(server: RangeServer) -> None:
    tensor = dormant.open_checkpoint(f"{server.url}/{NAME}")["a"]
    assert tensor[3, 5].item() == STATE["a"][3, 5].item()
    assert (dormant.open_checkpoint(f"{server.url}/{NAME}")["b"] + 1).sum().isfinite()


def test_memory_is_what_is_read_ahead_at_most() -> None:
    # 300 MB to 32 MB: the reads ahead are all that is large.
    state = {f"layers.{i}": torch.zeros(5_000_000) for i in range(15)}
    with serving({NAME: safetensors.torch.save(state)}) as server:
        found = in_child(
            """
            import json, resource, torch, dormant
            def peak():
                return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
            """,
            f"""
            checkpoint = dormant.open_checkpoint("{server.url}/{NAME}")
            small = dormant.open_checkpoint("{server.url}/{NAME}")
            first = small["layers.0"][:100].to(torch.int8)
            dormant.materialize(first)
            before = peak()
            tensors = {{name: checkpoint[name].to(torch.int8) for name in checkpoint}}
            dormant.materialize(tensors, memory_budget=24 << 20)
            budgeted = peak() - before
            del tensors
            tensors = {{name: checkpoint[name].to(torch.int8) for name in checkpoint}}
            dormant.materialize(tensors)
            print(json.dumps({{"budgeted": budgeted, "unbudgeted": peak() - before}}))
            """,
        )
    final = 75_000_000
    assert found["budgeted"] < final + (24 << 20) + (24 << 20)
    assert found["unbudgeted"] < final + (128 << 20) + (40 << 20)


def test_inspect_reads_headers_only(
    server: RangeServer, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["inspect", f"{server.url}/{NAME}", "--json"]) == 0
    about = json.loads(capsys.readouterr().out)
    assert about["totals"]["tensors"] == 2
    assert about["files"] == [f"{server.url}/{NAME}"]
    assert len(server.requests) == 1
    assert server.nbytes(NAME) <= 1 << 16


def test_convert_streams_from_a_url(server: RangeServer, tmp_path: Path) -> None:
    out = tmp_path / "out.safetensors"
    assert main(["convert", f"{server.url}/{NAME}", str(out), "--dtype", "bfloat16"]) == 0
    found = safetensors.torch.load_file(out)
    for name, tensor in STATE.items():
        assert_same_bits(tensor.bfloat16(), found[name], name)
    assert server.most_often(NAME) == 1


def test_convert_takes_configurations_along(tmp_path: Path) -> None:
    config = json.dumps({"dtype": "float32"}).encode()
    with serving({NAME: DATA, "config.json": config, "vocab.json": b"{}"}) as server:
        assert main(["convert", server.url, str(tmp_path / "out"), "--dtype", "bfloat16"]) == 0
    assert json.loads((tmp_path / "out" / "config.json").read_bytes()) == {"dtype": "bfloat16"}
    assert (tmp_path / "out" / "vocab.json").read_bytes() == b"{}"


def test_convert_does_not_cast_what_a_url_has_quantized(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = json.dumps({"quantization_config": {"quant_method": "fp8"}}).encode()
    with serving({NAME: DATA, "config.json": config}) as server:
        assert main(["convert", server.url, str(tmp_path / "out"), "--dtype", "bfloat16"]) != 0
    assert "the checkpoint is quantized" in capsys.readouterr().err


def test_the_command_says_what_is_wrong(
    server: RangeServer, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["inspect", f"{server.url}/absent.safetensors"]) != 0
    assert "404 Not Found" in capsys.readouterr().err


def test_saving_and_quantizing_work_from_a_url(server: RangeServer, tmp_path: Path) -> None:
    checkpoint = dormant.open_checkpoint(f"{server.url}/{NAME}")
    dormant.save({name: checkpoint[name].t() for name in checkpoint}, tmp_path / "t.safetensors")
    found = safetensors.torch.load_file(tmp_path / "t.safetensors")
    for name, tensor in STATE.items():
        assert_same_bits(tensor.t().contiguous(), found[name], name)
    assert server.most_often(NAME) == 1
