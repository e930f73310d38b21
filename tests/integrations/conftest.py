"""The catalogues of models, and libraries kept off the network before any is imported."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

_TESTS = Path(__file__).parent.parent
sys.path[:0] = [str(Path(__file__).parent), str(_TESTS / "models"), str(_TESTS / "load")]

from libraries import prepare

prepare()


@pytest.fixture(autouse=True)
def libraries_deprecate_quietly() -> Iterator[None]:
    """Deprecations inside the model libraries say nothing about loading."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        warnings.simplefilter("ignore", DeprecationWarning)
        yield
