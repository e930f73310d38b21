"""What importing the package checks and does."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import dormant
from dormant import _C, _extension

TORCH_VERSION = torch.__version__.partition("+")[0]


def run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False
    )


def fake_builds(folder: Path, *releases: str) -> Path:
    for release in releases:
        (folder / release).mkdir(parents=True)
        (folder / release / "_C.cpython-27-none.so").touch()
    return folder


def test_another_torch_is_refused_with_what_to_do(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(torch, "__version__", "9.8.7+cpu")
    builds = fake_builds(tmp_path, "2.13.0", "2.9.1", "10.0.0")
    with pytest.raises(
        ImportError,
        match=r"built for torch 2.9.1, 2.13.0, 10.0.0, running torch 9.8.7.* torch==10.0.0",
    ):
        _extension.load_extension(builds)


@pytest.mark.parametrize("suffix", ["", "+cu130", "a0+git1234567"])
def test_another_python_is_refused_and_a_variant_of_the_same_torch_is_not(
    suffix: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(torch, "__version__", TORCH_VERSION + suffix)
    builds = fake_builds(tmp_path, TORCH_VERSION)
    with pytest.raises(ImportError, match="built for another Python"):
        _extension.load_extension(builds)


def test_a_checkout_that_was_not_built_says_so(tmp_path: Path) -> None:
    with pytest.raises(ImportError, match=r"extension is missing.*make build"):
        _extension.load_extension(tmp_path)


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


def test_what_users_name_is_there_after_a_plain_import() -> None:
    result = run(
        "import dormant\n"
        "dormant.integrations.accelerate.init_empty_weights\n"
        "dormant.recipes.safe_globals, dormant.tensor_parallel.merge\n"
        "print(dormant.__version__)"
    )
    header = Path(__file__).parents[1] / "include" / "dormant" / "version.h"
    numbers = re.findall(r"_VERSION_[A-Z]+ (\d+)", header.read_text())
    assert result.stdout.strip() == ".".join(numbers), result.stderr


def test_every_public_name_exists_and_is_documented() -> None:
    assert set(dormant.__all__) <= set(dir(dormant))
    for name in dormant.__all__:
        if name != "cmake_prefix_path":
            assert getattr(dormant, name).__doc__
