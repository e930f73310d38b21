"""Models that are given as an argument: a configuration of transformers, or module:callable."""

from __future__ import annotations

import functools
import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from dormant.cli.pretrained import model_class, read_config
from dormant.integrations.transformers import from_config
from dormant.recording.context import lazy_init
from dormant_command.outcome import UsageError


def constructor(reference: str, dtype: torch.dtype | None) -> Callable[[], torch.nn.Module]:
    """What constructs the model, lazily.

    Args:
        reference: a config.json, a folder that contains one, or module:callable.
        dtype: the dtype of the model; None takes that of the configuration, otherwise float32.

    Raises:
        UsageError: it is none of these.
        ValueError, OSError, ImportError: as by `read_config`.
    """
    if reference and Path(reference).exists():
        return functools.partial(_from_config, read_config(reference), dtype)
    if ":" not in reference:
        raise UsageError(
            f"no such file or folder: {reference!r}. Pass a config.json of transformers, a "
            "folder that contains one, or a module:callable such as train:build_model."
        )
    return functools.partial(_call, reference, dtype)


def _from_config(config: Any, dtype: torch.dtype | None) -> torch.nn.Module:
    model: torch.nn.Module = from_config(
        model_class(config), config, dtype=dtype, materialize=False
    )
    return model


def _call(reference: str, dtype: torch.dtype | None) -> torch.nn.Module:
    name, _, attribute = reference.partition(":")
    # As with `python -m`; a console script has its own folder at this position.
    here = str(Path.cwd())
    sys.path.insert(0, here)
    try:
        try:
            build: Any = importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name is None or not f"{name}.".startswith(f"{error.name}."):
                raise
            raise UsageError(f"no module named {name!r} (MODEL is {reference!r}).") from None
        for part in attribute.split("."):
            build = getattr(build, part, None)
        if not callable(build):
            raise UsageError(f"module {name!r} has no function {attribute!r}.")
        with lazy_init(dtype=dtype):
            model = build()
    except SystemExit as error:
        raise RuntimeError(
            f"{reference} called sys.exit({error.code}). If the module is a script, put the code "
            'of the script under `if __name__ == "__main__":`.'
        ) from error
    finally:
        sys.path.remove(here)
    if not isinstance(model, torch.nn.Module):
        raise ValueError(
            f"{reference} returned {type(model).__name__}, expected a torch.nn.Module."
        )
    return model
