"""`parse_bytes` and `printable` of `dormant.text`.

They are taken from their files, because an import would also import `dormant` and thereby torch.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Any

__all__ = ["parse_bytes", "printable"]

_TEXT = Path(__file__).resolve().parents[1] / "dormant" / "text"


def _module(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(f"{__package__}.{name}", _TEXT / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


if TYPE_CHECKING:
    from dormant.text.byte_count import parse_bytes
    from dormant.text.printable import printable
else:
    parse_bytes = _module("byte_count").parse_bytes
    printable = _module("printable").printable
