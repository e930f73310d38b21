"""Every example in the package's documentation runs and gives what it says."""

from __future__ import annotations

import doctest
import importlib
import pkgutil

import pytest
import torch

import dormant

MODULES = ["dormant"] + [
    module.name
    for module in pkgutil.walk_packages(dormant.__path__, "dormant.")
    # Those of other libraries have tests of their own.
    if not module.name.startswith(("dormant.cli", "dormant.integrations", "dormant.__main__"))
]


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_of(name: str) -> None:
    torch.manual_seed(0)  # a generator in a state that no seed leads to makes recipes longer
    failed, _ = doctest.testmod(importlib.import_module(name))
    assert failed == 0


def test_there_are_examples() -> None:
    attempted = sum(doctest.testmod(importlib.import_module(name)).attempted for name in MODULES)
    assert attempted >= 25
