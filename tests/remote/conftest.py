from __future__ import annotations

import pytest

from dormant.checkpoint import ranges


@pytest.fixture(autouse=True)
def _no_long_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is tried again is tried again soon."""
    monkeypatch.setattr(ranges, "_FIRST_DELAY", 0.001)
