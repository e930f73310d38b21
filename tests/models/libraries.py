"""The catalogues by library, and what has to happen before those libraries are imported."""

from __future__ import annotations

import importlib
import importlib.util
import os
from pathlib import Path

import torch
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
# Fragments live as long as the process: an operator library that dies takes its operators along.
_DEFINED: list[torch.library.Library] = []


def prepare() -> None:
    """Makes the model libraries importable without the network and without CUDA's torchvision.

    torchvision's wheel for CUDA cannot load its kernels beside a CPU build of torch, and then its
    Python code stops at the first operator it registers a fake for. The models need none of the
    kernels, only that the operators exist.
    """
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ["TRANSFORMERS_OFFLINE"] = "1"
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    spec = importlib.util.find_spec("torchvision")
    if _DEFINED or spec is None or spec.origin is None:
        return
    try:
        torch.ops.load_library(str(Path(spec.origin).parent / "_C.so"))
    except OSError:
        fragment = torch.library.Library("torchvision", "DEF")
        for operator in ("nms", "qnms"):
            fragment.define(f"{operator}(Tensor dets, Tensor scores, float threshold) -> Tensor")
        _DEFINED.append(fragment)
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
