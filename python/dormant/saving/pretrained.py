"""The tensors, names and files that `save_pretrained` of a transformers model writes.

It follows `PreTrainedModel.save_pretrained` in transformers/modeling_utils.py, and calls the
library unless the library needs addresses, which lazy tensors do not have. This excludes
`remove_tied_weights_from_state_dict` and the ids of huggingface_hub's
`split_torch_state_dict_into_shards`.
"""

from __future__ import annotations

import copy
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from dormant._extension import _C
from dormant.recording.context import lazy_init
from dormant.saving.contents import (
    Contents,
    SavedTensor,
    by_storage,
    checked_tensors,
    duplicate_names,
    groups_of_ties,
    kept_name,
    tied_patterns,
)
from dormant.saving.safetensors_header import PYTORCH
from dormant.tensors.identity import identity


def pretrained_contents(model: Any, *, configuration: bool) -> Contents:
    """What `model.save_pretrained` would write; lazy tensors stay lazy.

    Args:
        model: a `transformers.PreTrainedModel`.
        configuration: whether config.json and similar files are included.

    Raises:
        ValueError: the library cannot save how the model is quantized, or the format cannot store
            its tensors.
        NotImplementedError: a tensor subclass is made of other tensors; or the class of a model
            with adapters overrides `save_pretrained`.
    """
    adapters = bool(getattr(model, "_hf_peft_config_loaded", False))
    if adapters and _has_own_way(model):
        raise NotImplementedError(
            f"save: {type(model).__name__} overrides save_pretrained to save adapters. "
            "Materialize the model and call model.save_pretrained(folder)."
        )
    state, metadata = _quantized_state(model, adapters)
    if adapters:
        state = {
            f"base_model.model.{name}": value
            for name, value in model.get_adapter_state_dict(state_dict=state).items()
        }
    elif state is None:
        state = model.state_dict()
    for name in getattr(model, "_keys_to_ignore_on_save", None) or ():
        state.pop(name, None)
    if "disk" in (getattr(model, "hf_device_map", None) or {}).values():
        state = _with_offloaded(model, state)
    kept = _without_ties(checked_tensors(state), tied_patterns(model))
    names = {saved.names[0]: saved.names for saved in kept}
    tensors = {saved.names[0]: saved.tensor for saved in kept}
    if not adapters:
        loading = sys.modules["transformers.core_model_loading"]
        tensors = checked_tensors(loading.revert_weight_conversion(model, tensors))
    return Contents(
        [
            # The library counts all of a storage, once, if tensors share it.
            SavedTensor(names.get(name, [name]), t, _C.storage_id(t), _C.storage_nbytes(t))
            for name, t in tensors.items()
        ],
        stem="adapter_model" if adapters else "model",
        metadata={**metadata, **PYTORCH},
        index_metadata={"total_parameters": model.num_parameters()},
        files=_configuration(model, adapters) if configuration else {},
    )


def _quantized_state(model: Any, adapters: bool) -> tuple[dict[str, Any] | None, dict[str, str]]:
    """The state dict and metadata of a quantizer that provides them; else None."""
    quantizer = getattr(model, "hf_quantizer", None)
    if quantizer is None:
        return None, {}
    if not adapters and not quantizer.is_serializable():
        method = quantizer.quantization_config.quant_method
        raise ValueError(
            f"save: transformers cannot save a model quantized with "
            f"{getattr(method, 'value', method)}: its quantizer is not serializable."
        )
    state, metadata = quantizer.get_state_dict_and_metadata(model)
    return state, dict(metadata)


def _with_offloaded(model: Any, state: Mapping[str, Any]) -> dict[str, Any]:
    """`state` with the tensors that accelerate offloaded to safetensors files, lazily."""
    load = sys.modules["transformers.integrations.accelerate"].load_offloaded_parameter
    loaded: dict[object, torch.Tensor] = {}

    def found(name: str, tensor: torch.Tensor) -> torch.Tensor:
        key = identity(tensor)
        if key not in loaded:  # names of one tensor stay names of one
            with lazy_init():
                value = load(model, name)
            loaded[key] = value if _C.is_lazy(value) else tensor
        return loaded[key]

    return {
        name: found(name, value) if isinstance(value, torch.Tensor) and value.is_meta else value
        for name, value in state.items()
    }


def _without_ties(state: Mapping[str, torch.Tensor], tied: list[str]) -> list[SavedTensor]:
    """Each tensor under the names that the library keeps.

    In cases that the library refuses (names of one tensor that the model does not declare to be
    tied, tensors that overlap), reading the file must give all of them, so each is written
    separately.
    """
    shared = {name for names in by_storage(state).values() if len(names) > 1 for name in names}
    position = {name: place for place, name in enumerate(state)}
    kept: list[SavedTensor] = []
    for names in groups_of_ties(state):
        first = kept_name(names, tied)
        duplicates = [name for name in duplicate_names(names, tied) if name != first]
        others = [name for name in names if name != first and name not in duplicates]
        tensor = state[first]
        if len(names) == 1 and first in shared:
            tensor = tensor.clone()
        kept.append(SavedTensor([first, *duplicates], tensor))
        kept.extend(SavedTensor([name], state[name].clone()) for name in others)
    return sorted(kept, key=lambda saved: position[saved.names[0]])


def _configuration(model: Any, adapters: bool) -> dict[str, bytes]:
    """The small files, by name. The model is not changed."""
    with tempfile.TemporaryDirectory() as folder:
        if adapters:
            active = model.active_adapters()
            if len(active) > 1:
                raise ValueError(
                    f"save: the adapters {active} are active, and transformers saves one at a "
                    "time. Choose one with model.set_adapter."
                )
            model.peft_config[active[0]].save_pretrained(folder)
            if model.can_generate():
                model.generation_config.save_pretrained(folder)
        elif _has_own_way(model):
            _save_without_tensors(model, folder)
        else:
            config = copy.deepcopy(model.config)
            config.dtype = str(model.dtype).removeprefix("torch.")
            config.architectures = [type(model).__name__.removeprefix("FSDP")]
            if model.is_remote_code():
                utilities = sys.modules["transformers.modeling_utils"]
                utilities.custom_object_save(model, folder, config=config)
            config.save_pretrained(folder)
            if model.can_generate():
                model.generation_config.save_pretrained(folder)
        return {
            path.name: path.read_bytes()
            for path in sorted(Path(folder).iterdir())
            if path.is_file() and path.suffix != ".safetensors"
        }


def _has_own_way(model: Any) -> bool:
    base = sys.modules["transformers.modeling_utils"].PreTrainedModel
    return type(model).save_pretrained is not base.save_pretrained


def _save_without_tensors(model: Any, folder: str) -> None:
    """Runs a class's own `save_pretrained` for the small files that it adds."""
    twin = copy.copy(model)
    for name in ("config", "generation_config"):  # which the library changes
        if name in vars(model):
            vars(twin)[name] = copy.deepcopy(vars(model)[name])
    for name in ("hf_quantizer", "hf_device_map"):  # which would add tensors
        vars(twin).pop(name, None)
    twin.save_pretrained(folder, state_dict={})
