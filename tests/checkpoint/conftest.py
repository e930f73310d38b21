"""The checkpoint that most tests open."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from written import STATE, write


@pytest.fixture(params=["model.safetensors", "model.pt", "model.bin"])
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return write(STATE, tmp_path / request.param)
