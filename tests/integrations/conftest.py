"""The catalogs of models, and libraries kept off the network before any is imported."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parent.parent / "models"))
sys.path.insert(0, str(Path(__file__).parent.parent / "load"))

from libraries import prepare

prepare()


@pytest.fixture(autouse=True)
def libraries_deprecate_quietly() -> Iterator[None]:
    """Deprecations inside the model libraries say nothing about loading."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        warnings.simplefilter("ignore", DeprecationWarning)
        yield
