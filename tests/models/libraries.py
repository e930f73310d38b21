"""The catalogues by library, and what has to happen before those libraries are imported."""

from __future__ import annotations

import importlib
import os

from catalogue import Model

CATALOGUES = {
    "transformers": (
        "catalogue_transformers_text",
        "catalogue_transformers_vision",
        "catalogue_transformers_audio",
        "catalogue_transformers_multimodal",
    ),
    "timm": ("catalogue_timm",),
    "torchvision": ("catalogue_torchvision",),
    "diffusers": ("catalogue_diffusers",),
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
    rows = [row for module in CATALOGUES[library] for row in importlib.import_module(module).MODELS]
    names = [row.name for row in rows]
    repeated = {name for name in names if names.count(name) > 1}
    if repeated:
        raise ValueError(f"{library}: several rows are named {sorted(repeated)}")
    return rows
