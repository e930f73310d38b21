"""The catalogs by library, and what has to happen before those libraries are imported."""

from __future__ import annotations

import importlib
import os

from catalog import Model

CATALOGS = {
    "transformers": (
        "catalog_transformers_text",
        "catalog_transformers_vision",
        "catalog_transformers_audio",
        "catalog_transformers_multimodal",
    ),
    "timm": ("catalog_timm",),
    "torchvision": ("catalog_torchvision",),
    "diffusers": ("catalog_diffusers",),
}


def prepare() -> None:
    """Keeps the model libraries off the network and quiet; call it before importing any."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ["TRANSFORMERS_OFFLINE"] = "1"
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    import transformers

    transformers.logging.set_verbosity_error()


def models(library: str) -> list[Model]:
    """All rows of one library; names are unique."""
    rows = [row for module in CATALOGS[library] for row in importlib.import_module(module).MODELS]
    names = [row.name for row in rows]
    repeated = {name for name in names if names.count(name) > 1}
    if repeated:
        raise ValueError(f"{library}: several rows are named {sorted(repeated)}")
    return rows
