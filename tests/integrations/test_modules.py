"""Each integration is imported only when it is used, and says what to install."""

from __future__ import annotations

import doctest
import importlib
import subprocess
import sys

import pytest

from dormant import integrations
from dormant.integrations.library import imported


@pytest.mark.parametrize("name", integrations.__all__)
def test_the_examples_run(name: str) -> None:
    result = doctest.testmod(importlib.import_module(f"dormant.integrations.{name}"))
    assert result.attempted >= 3
    assert result.failed == 0


def test_no_library_is_imported_before_it_is_used() -> None:
    code = """if True:
        import sys, dormant, dormant.integrations
        for name in dormant.integrations.__all__:
            getattr(dormant.integrations, name)
        libraries = {"transformers", "diffusers", "timm", "torchvision", "peft", "accelerate"}
        print(*sorted(libraries & set(sys.modules)))
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == ""
    assert set(integrations.__all__) <= set(dir(integrations))


def test_a_missing_library_is_named_with_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ImportError, match="pip install not_installed_anywhere"):
        imported("not_installed_anywhere.part")
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ImportError, match="pip install peft"):
        imported("peft")


def test_an_unknown_integration_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="keras"):
        integrations.keras  # noqa: B018
