"""The releases of torch that a wheel requires: just those that it holds binaries for.

scikit-build-core asks `TorchRequirement` (pyproject.toml, `tool.dynamic-metadata`): an ordinary
build is for the torch that it is compiled with. build_wheel.py names several, in
DORMANT_TORCH_RELEASES.
"""

from __future__ import annotations

import importlib.metadata
import os
from collections.abc import Iterable, Mapping
from typing import Any

# No minor release of torch has had a patch above .2; this leaves room for two more.
_PATCHES = 5


class TorchRequirement:
    """A provider of dynamic metadata: narrows the range of torch that pyproject.toml gives."""

    def __init__(self) -> None:
        self._state = ""

    def build_state(self, state: str) -> None:
        """Notes what is built; a source distribution is for every release."""
        self._state = state

    def dynamic_wheel(self, settings: Mapping[str, Any]) -> dict[str, bool]:
        """Says that a wheel's dependencies may differ from those of the source distribution."""
        return {"dependencies": True}

    def dynamic_metadata(
        self, settings: Mapping[str, Any], project: Mapping[str, Any]
    ) -> dict[str, list[str]]:
        """Gives the dependencies that come in addition to those of pyproject.toml."""
        releases = os.environ.get("DORMANT_TORCH_RELEASES", "").split()
        if self._state == "sdist":
            return {"dependencies": []}
        if releases:
            return {"dependencies": [requirement(releases)]}
        try:
            installed = importlib.metadata.version("torch").partition("+")[0]
        except importlib.metadata.PackageNotFoundError:  # CMake will say so, if it is to compile
            return {"dependencies": []}
        return {"dependencies": [f"torch=={installed}"]}


def requirement(releases: Iterable[str]) -> str:
    """The requirement that allows these releases of torch, and none before, between and after them.

    Version specifiers have no "or", so what lies between the releases is excluded by name.

    Args:
        releases: such as "2.13.0", of one major release.
    """
    allowed = {tuple(int(part) for part in release.split(".")) for release in releases}
    first, last = min(allowed), max(allowed)
    if first == last:
        return f"torch=={'.'.join(map(str, first))}"
    minors = {minor for _, minor, _ in allowed}
    excluded = []
    for minor in range(first[1], last[1] + 1):
        if minor not in minors:
            excluded.append(f"!={first[0]}.{minor}.*")
            continue
        patches = [(first[0], minor, patch) for patch in range(_PATCHES)]
        excluded += [
            f"!={'.'.join(map(str, version))}"
            for version in patches
            if first < version < last and version not in allowed
        ]
    bounds = [f">={'.'.join(map(str, first))}", f"<={'.'.join(map(str, last))}"]
    return "torch" + ",".join(bounds + excluded)
