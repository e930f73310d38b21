"""Models of transformers for `convert --quantize`, `merge` and `init`, by their configuration."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch

from dormant.checkpoint.api import open_checkpoint
from dormant.checkpoint.pretrained import Naming, find_conversion
from dormant.integrations.library import imported
from dormant.recording.context import lazy_init
from dormant.tensors.names import NamesError, listed

GGUF_ENDING = ".gguf"


def model_class(config: Any) -> Any:
    """The class that a configuration names in "architectures", otherwise `AutoModel`.

    Raises:
        NotImplementedError: the installed transformers has no such class.
    """
    library = imported("transformers")
    names = getattr(config, "architectures", None) or ["AutoModel"]
    found = getattr(library, names[0], None)
    if found is None:
        raise NotImplementedError(
            f"the architecture {names[0]!r} of config.json is not part of transformers "
            f"{library.__version__}. Code beside the weights is never run. Construct the model in "
            "Python, and use dormant.quantize and dormant.save."
        )
    return found


def read_config(path: str | os.PathLike[str]) -> Any:
    """The configuration in a folder or a file, which may be a GGUF file.

    Raises:
        ValueError: it is not a configuration.
        OSError: it cannot be read.
        ImportError: transformers is not installed.
    """
    library = imported("transformers")
    # The library's bar counts tensors that become lazy; ours counts bytes.
    imported("transformers.utils.logging").disable_progress_bar()
    place = Path(path)
    if place.is_dir():
        place /= "config.json"
        if not place.is_file():
            raise ValueError(f"the folder {path} has no config.json.")
    if place.suffix == GGUF_ENDING:
        return _config_of_gguf(place)
    try:
        read = json.loads(place.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{place} is not JSON, expected a config.json: {error}") from error
    if not isinstance(read, dict):
        raise ValueError(f"{place} contains a {type(read).__name__}, expected a JSON object.")
    return library.AutoConfig.from_pretrained(os.fspath(path), local_files_only=True)


def _config_of_gguf(path: Path) -> Any:
    """The configuration that transformers makes from the metadata of a GGUF file."""
    open_checkpoint(path)  # checks the file, which the library would trust
    imported("gguf")
    config = imported("transformers").AutoConfig.from_pretrained(
        os.fspath(path.parent), gguf_file=path.name, local_files_only=True
    )
    if not getattr(config, "architectures", None):
        tables = imported("transformers.models.auto.modeling_auto")
        for table in (
            tables.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
            tables.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
        ):
            if config.model_type in table:
                config.architectures = [table[config.model_type]]
                break
    return config


def lazy_model(
    config: Any,
    state: Mapping[str, torch.Tensor],
    dtype: torch.dtype | Literal["auto"] | None,
    naming: Naming | None = None,
) -> tuple[Any, list[str]]:
    """The model of a configuration with the weights of `state`, lazy.

    Args:
        config: the configuration of a transformers model.
        state: weights by name.
        dtype: the dtype of the model; None means float32, "auto" that of the configuration,
            otherwise of the weights.
        naming: how the names become the model's, if they are those of another format.

    Returns:
        The model, and the names in `state` that it does not have.

    Raises:
        KeyError: names are missing from `state`; the message lists all of them.
        RuntimeError: tensors do not have the shapes of the model.
    """
    imported("transformers.modeling_utils")  # before the context, which patches imported modules
    kind = model_class(config)
    if naming is not None:
        with lazy_init():
            shown = kind.from_config(config) if hasattr(kind, "from_config") else kind(config)
        shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
        conversion = find_conversion(shown, shapes, "convert", naming)
        if conversion is not None:
            state, _ = conversion.apply(shown, state, "convert")
    # The library converts names and layouts of earlier versions.
    with lazy_init():
        model, info = kind.from_pretrained(
            None, config=config, state_dict=dict(state), dtype=dtype, output_loading_info=True
        )
    if info["missing_keys"]:
        raise NamesError(
            "the checkpoint does not match the model of config.json."
            + listed("missing in the checkpoint", sorted(info["missing_keys"]))
            + listed("not in the model", sorted(info["unexpected_keys"]))
            + "\nRename tensors with --rename."
        )
    return model, sorted(info["unexpected_keys"])
