"""Prepares the model libraries before any test module imports them."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

# The catalogs are modules beside this file, whatever the import mode.
sys.path.insert(0, str(Path(__file__).parent))

from libraries import prepare

prepare()


@pytest.fixture(autouse=True)
def libraries_deprecate_quietly() -> Iterator[None]:
    """Deprecations inside the model libraries say nothing about recording."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        warnings.simplefilter("ignore", DeprecationWarning)
        yield
