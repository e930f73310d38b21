"""Models of transformers for `convert --quantize` and `init`, by their configuration."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from dormant.integrations.library import imported
from dormant.quantization.api import Scheme, quantize
from dormant.recording.context import lazy_init
from dormant.tensors.names import NamesError, listed


def model_class(config: Any) -> Any:
    """The class that a configuration names in "architectures", else `AutoModel`.

    Raises:
        NotImplementedError: the installed transformers has no such class.
    """
    library = imported("transformers")
    names = getattr(config, "architectures", None) or ["AutoModel"]
    found = getattr(library, names[0], None)
    if found is None:
        raise NotImplementedError(
            f"the architecture {names[0]!r} of config.json is not part of transformers "
            f"{library.__version__}. Code beside the weights is not run here; build the model in "
            "Python, and use dormant.quantize and dormant.save."
        )
    return found


def read_config(path: str | os.PathLike[str]) -> Any:
    """The configuration in a folder or a file.

    Raises:
        ValueError: it is none.
        OSError: it cannot be read.
        ImportError: transformers is not installed.
    """
    library = imported("transformers")
    # Its bar counts tensors that become lazy; ours counts bytes.
    imported("transformers.utils.logging").disable_progress_bar()
    place = Path(path)
    if place.is_dir():
        place /= "config.json"
        if not place.is_file():
            raise ValueError(f"the folder {path} has no config.json.")
    try:
        read = json.loads(place.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{place} is no JSON, expected a config.json: {error}") from error
    if not isinstance(read, dict):
        raise ValueError(f"{place} holds a {type(read).__name__}, expected a JSON object.")
    return library.AutoConfig.from_pretrained(os.fspath(path), local_files_only=True)


def quantized_model(
    config: Any, state: Mapping[str, torch.Tensor], dtype: torch.dtype | None, scheme: Scheme
) -> tuple[Any, list[str]]:
    """The model of a configuration with the weights of `state`, quantized and lazy.

    Returns:
        The model, and the names in `state` that it does not have.

    Raises:
        ValueError: nothing in the model can be quantized.
        KeyError: names that `state` lacks, all of them listed.
        RuntimeError: tensors have other shapes than the model's.
    """
    imported("transformers.modeling_utils")  # before the context, which patches what is imported
    # The library converts names and layouts of earlier versions.
    with lazy_init():
        model, info = model_class(config).from_pretrained(
            None, config=config, state_dict=dict(state), dtype=dtype, output_loading_info=True
        )
    if info["missing_keys"]:
        raise NamesError(
            "the checkpoint does not fit the model of config.json."
            + listed("missing in the checkpoint", sorted(info["missing_keys"]))
            + listed("not in the model", sorted(info["unexpected_keys"]))
            + "\nRename tensors with --rename."
        )
    quantize(model, scheme)
    return model, sorted(info["unexpected_keys"])
