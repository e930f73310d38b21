"""Lazy versions of other libraries' functions for models; each module is imported when it is used.

Example:
    >>> from dormant import integrations
    >>> integrations.llama2_accessory.__name__
    'dormant.integrations.llama2_accessory'
"""

from __future__ import annotations

import importlib
from types import ModuleType

__all__ = [
    "accelerate",
    "diffusers",
    "llama2_accessory",
    "peft",
    "timm",
    "torchvision",
    "transformers",
]


def __getattr__(name: str) -> ModuleType:
    if name in __all__:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}.")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
