"""What every test relies on: markers, a poisoned allocator, and process-wide state put back."""

from __future__ import annotations

import gc
import os
import random
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy
import pytest
import torch

# A shell that runs in the background, or nohup, has its children ignore these; tests send them.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)

# `from compare import compare` works from every folder below, whatever the import mode.
sys.path.insert(0, str(Path(__file__).parent / "lib"))


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "core: a fast, representative part, run under sanitizers")
    config.addinivalue_line("markers", "threads: builds or materializes from several threads")


def pytest_report_header() -> str:
    poison = os.environ.get("MALLOC_PERTURB_")
    if not poison or poison == "0":
        return (
            "WARNING: MALLOC_PERTURB_ is not set: a read of freed or unwritten memory may pass "
            "unseen. Run `make test`, or set MALLOC_PERTURB_=165."
        )
    return f"poisoned allocator: MALLOC_PERTURB_={poison}"


def pytest_collection_finish() -> None:
    """Takes what collecting imported out of garbage collection, which the tests ask for often."""
    gc.collect()
    gc.freeze()


@pytest.fixture
def interrupts() -> Iterator[None]:
    """Ctrl-C raises here as in a terminal, and is not swallowed.

    Python ignores what is raised in a callback of the garbage collector, and hypothesis has one.
    """
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    gc.disable()
    yield
    gc.enable()
    signal.signal(signal.SIGINT, before)


@pytest.fixture(autouse=True)
def process_state() -> Iterator[None]:
    """Puts back what tests change process-wide, and fails one that leaves recording on."""
    dtype = torch.get_default_dtype()
    states = torch.get_rng_state(), numpy.random.get_state(), random.getstate()
    threads, grad = torch.get_num_threads(), torch.is_grad_enabled()
    yield
    torch.set_default_dtype(dtype)
    torch.set_default_device(None)
    torch.set_rng_state(states[0])
    numpy.random.set_state(states[1])
    random.setstate(states[2])
    torch.set_num_threads(threads)
    torch.set_grad_enabled(grad)
    if "dormant" in sys.modules:
        core = sys.modules["dormant"]._C
        left_on = core.recording()
        core.set_recording(False)
        assert not left_on, "the test left recording on in this thread"
