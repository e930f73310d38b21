"""Mixtures of experts that are quantized, and divided by transformers' DistributedConfig."""

from __future__ import annotations

import os
import warnings
from typing import Any

import bitsandbytes  # noqa: F401 (imported before the ranks are forked)
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
import transformers
from torch.distributed.tensor import DTensor
from transformers import (
    AutoModelForCausalLM,
    BitsAndBytesConfig,
    GptOssConfig,
    LlamaConfig,
    MixtralConfig,
    Qwen3MoeConfig,
)
from transformers.distributed.configuration_utils import DistributedConfig

import dormant
from jobs.models import SEED
from jobs.quantized import in_order, scheme_of, whole

_SIZES: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 128,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}
_EXPERTS = {"num_experts_per_tok": 2, "num_local_experts": 4}
_QWEN = {"num_experts_per_tok": 2, "num_experts": 8, "moe_intermediate_size": 64, "head_dim": 32}
FAMILIES: dict[str, Any] = {
    "llama": lambda: LlamaConfig(**_SIZES),
    "tied": lambda: LlamaConfig(**_SIZES, tie_word_embeddings=True),
    "mixtral": lambda: MixtralConfig(**_SIZES, **_EXPERTS),
    "qwen3_moe": lambda: Qwen3MoeConfig(**_SIZES, **_QWEN),
    "gpt_oss": lambda: GptOssConfig(**_SIZES, **_EXPERTS, head_dim=32, sliding_window=8),
}
TOKENS = [[1, 5, 9, 3, 7, 2, 60, 33]]


def quiet() -> None:
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    warnings.simplefilter("ignore")


def lazy(family: str, *, seed: int = SEED, **changed: Any) -> Any:
    torch.manual_seed(seed)
    configuration = FAMILIES[family]()
    configuration.update(changed)
    with dormant.lazy_init():
        return AutoModelForCausalLM.from_config(configuration).eval()


def stacks(model: Any) -> dict[str, Any]:
    """The packed stacks, and how they are unpacked: this rank's experts."""
    found = {}
    for name, module in model.named_modules():
        for attribute in getattr(module, "parametrizations", {}):
            found[f"{name}.{attribute}"] = module, attribute
    return found


def as_torchrun_does() -> None:
    """Sets the variables in which transformers looks, too."""
    rank, world = str(dist.get_rank()), str(dist.get_world_size())
    os.environ.update(RANK=rank, LOCAL_RANK=rank, WORLD_SIZE=world)


def divided(model: Any, **sizes: Any) -> Any:
    """By the library's own methods, as `from_pretrained` calls them."""
    as_torchrun_does()
    configuration = DistributedConfig(**sizes)
    _, _, meshes = type(model).prepare_distribute_model(configuration)
    return type(model).maybe_distribute_model(model, configuration, meshes)


def outputs_of(model: Any) -> dict[str, torch.Tensor]:
    """Logits, the gradient of the embedded tokens, and logits of other tokens without gradients."""
    embedded = torch.randn(1, 8, 128, generator=torch.Generator().manual_seed(3)).requires_grad_()
    found = {"trained": model.train()(inputs_embeds=embedded).logits}
    found["trained"].square().sum().backward()
    assert embedded.grad is not None
    found["gradient"] = embedded.grad
    with torch.no_grad():
        found["evaluated"] = model.eval()(torch.tensor(TOKENS)).logits
    model.train()
    return {
        name: (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach().clone()
        for name, tensor in found.items()
    }


def run(
    family: str,
    order: str,
    path: str,
    block_size: int,
    nested: bool,
    sizes: dict[str, Any],
    kind: str = "nf4",
    skip: list[str] | None = None,
) -> dict[str, Any]:
    """Quantizes, divides and loads in some order; says what this rank holds and computes."""
    quiet()
    model = lazy(family)
    scheme = scheme_of(kind, block_size, nested, "uint8")
    for step, _, report in in_order(
        order, model, scheme, path, lambda model: divided(model, **sizes), skip=skip
    ):
        real = [
            not dormant.is_lazy(module.parametrizations) for module, _ in stacks(model).values()
        ]
        assert real == [report is not None] * len(real) or "load, load" in order, step
    assert not dormant.is_lazy(model)
    return {"state": whole(model.state_dict()), "read": report.read_bytes, **held(model)}


def held(model: Any) -> dict[str, Any]:
    """What this rank has of the stacks, and what the model computes."""
    elements, packed = {}, {}
    for name, (module, key) in stacks(model).items():
        original = module.parametrizations[key].original
        if isinstance(original, DTensor):
            packed[name] = original.to_local().nbytes
            elements[name] = module.parametrizations[key][0](original.full_tensor()).clone()
        else:
            packed[name] = original.nbytes
            elements[name] = getattr(module, key).clone()
    return {"elements": elements, "packed": packed, "outputs": outputs_of(model)}


def documented(code: str, path: str) -> dict[str, Any]:
    """Runs the program of the page, which leaves `model`."""
    quiet()
    as_torchrun_does()
    names: dict[str, Any] = {"dormant": dormant, "path": path}
    exec(compile(code, "docs/distributed.md", "exec"), names)
    assert not dormant.is_lazy(names["model"])
    return held(names["model"])


def saved(family: str, folder: str, sizes: dict[str, Any]) -> dict[str, Any]:
    """What comes back from folders that torch and dormant have saved, and from a whole model's."""
    quiet()
    model = lazy(family)
    dormant.quantize(model, dormant.FourBit(block_size=32))
    model = divided(model, **sizes)
    dormant.save({"model": model}, f"{folder}/lazy", format="dcp")
    assert dormant.is_lazy(model)
    dormant.materialize(model)
    state = {"model": model.state_dict()}
    dcp.save(state, checkpoint_id=f"{folder}/torch")
    for tensor in state["model"].values():
        (tensor.to_local() if isinstance(tensor, DTensor) else tensor).zero_()
    dcp.load(state, checkpoint_id=f"{folder}/lazy")
    expected = outputs_of(model)
    for name in ("lazy", "torch", "whole"):
        other = lazy(family, seed=1)
        dormant.quantize(other, dormant.FourBit(block_size=32))
        other = divided(other, **sizes)
        checkpoint = f"{folder}/whole.safetensors" if name == "whole" else f"{folder}/{name}"
        dormant.load(other, checkpoint, share_reads=name == "whole", missing="error")
        for key, tensor in outputs_of(other).items():
            assert torch.equal(tensor, expected[key]), (name, key)
    alone = lazy(family, seed=1)
    dormant.quantize(alone, dormant.FourBit(block_size=32))
    dormant.load(alone, f"{folder}/torch", missing="error")
    found = stacks(alone)
    return {"elements": {name: getattr(module, key) for name, (module, key) in found.items()}}


def refusals() -> list[str]:
    """Messages; nothing has changed after them."""
    quiet()
    tensors, experts = {"tp_size": 2}, {"tp_size": 2, "ep_size": 2}
    cases: list[tuple[dict[str, Any], int, Any]] = [
        (tensors, 64, None),
        (experts, 4096, [f"{name}_proj" for name in "qkvo"] + ["lm_head", "gate"]),
        (experts, 256, None),
    ]
    messages = []
    for sizes, block_size, skip in cases:
        model = lazy("mixtral", intermediate_size=24)
        dormant.quantize(model, dormant.FourBit(block_size=block_size), skip=skip)
        messages.append(message_of(model, sizes))
        assert dormant.is_lazy(model)
        assert not any(isinstance(each, DTensor) for each in model.parameters())
        assert model.model.layers[0].mlp.experts.num_experts == 4
    model = lazy("mixtral")
    dormant.quantize(model, dormant.FourBit(block_size=32))
    messages.append(message_of(divided(model, **experts), experts))
    return messages


def message_of(model: Any, sizes: dict[str, Any]) -> str:
    try:
        divided(model, **sizes)
    except (ValueError, NotImplementedError) as error:
        return f"{type(error).__name__}: {error}"
    return "nothing"


def pretrained(path: str, scheme: dict[str, Any], sizes: dict[str, Any]) -> dict[str, Any]:
    """The library's `from_pretrained` with both configurations, in the context."""
    quiet()
    as_torchrun_does()
    options: dict[str, Any] = (
        {"quantization_config": BitsAndBytesConfig(**scheme)} if scheme else {}
    )
    if "tp_plan" in sizes:
        options |= sizes
    else:
        options["distributed_config"] = DistributedConfig(**sizes)
    try:
        with dormant.lazy_init():
            model = AutoModelForCausalLM.from_pretrained(path, **options)
    except NotImplementedError as error:
        return {"error": str(error)}
    lazy = [dormant.is_lazy(parameter) for parameter in model.parameters()]
    report = dormant.materialize(model)
    found = {"lazy": all(lazy), "read": report.read_bytes, "state": whole(model.state_dict())}
    return {**found, "quantized": model.is_quantized, "outputs": outputs_of(model)}
