"""What importing the package checks and does."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

import dormant
from dormant import _C, _extension
from dormant._build_info import TORCH_VERSION


def run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False
    )


def test_another_torch_is_refused_with_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "__version__", "9.8.7+cpu")
    with pytest.raises(ImportError, match=rf"built for torch {TORCH_VERSION}, running torch 9.8.7"):
        _extension.check_torch()


def test_a_build_variant_of_the_same_torch_is_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    for suffix in ("", "+cu130", "a0+git1234567"):
        monkeypatch.setattr(torch, "__version__", TORCH_VERSION + suffix)
        _extension.check_torch()


def test_the_check_comes_before_the_extension_is_loaded() -> None:
    result = run(
        "import torch, sys\n"
        "torch.__version__ = '9.8.7'\n"
        "try:\n    import dormant\n"
        "except ImportError as error:\n"
        "    assert 'built for torch' in str(error), error\n"
        "    assert 'dormant._C' not in sys.modules\n"
        "    print('refused')"
    )
    assert result.stdout.strip() == "refused", result.stderr


def test_the_extension_says_which_torch_it_was_built_for() -> None:
    assert _C.torch_version().split("+")[0] == TORCH_VERSION


def test_importing_changes_nothing_in_torch() -> None:
    result = run(
        "import torch, torch.utils.dlpack\n"
        "owners = (torch.Tensor, torch.UntypedStorage, torch.nn.init, torch)\n"
        "before = [dict(vars(owner)) for owner in owners]\n"
        "import dormant\n"
        "assert before == [dict(vars(owner)) for owner in owners]\n"
        "print('unchanged')"
    )
    assert result.stdout.strip() == "unchanged", result.stderr


def test_the_cmake_package_lies_where_it_says() -> None:
    prefix = Path(dormant.cmake_prefix_path)
    assert (prefix / "share" / "cmake" / "dormant" / "dormantConfig.cmake").is_file()


def test_every_public_name_exists_and_is_documented() -> None:
    assert set(dormant.__all__) <= set(dir(dormant))
    for name in dormant.__all__:
        if name != "cmake_prefix_path":
            assert getattr(dormant, name).__doc__
