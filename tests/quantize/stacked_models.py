"""Models with stacked experts, and what bitsandbytes makes of their parameters by its own code."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
import transformers
from bitsandbytes.nn.parametrize import replace_parameter_4bit
from peers import assert_same_quant_state
from torch import nn

import dormant
from compare import assert_same_bits

SIZES: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 128,
}


def mixtral() -> Any:
    config = transformers.MixtralConfig(**SIZES, num_local_experts=4)
    return transformers.MixtralForCausalLM(config)


def qwen3_moe() -> Any:
    config = transformers.Qwen3MoeConfig(
        **SIZES, moe_intermediate_size=64, num_experts=8, num_experts_per_tok=2, head_dim=16
    )
    return transformers.Qwen3MoeForCausalLM(config)


def gpt_oss() -> Any:
    """Transposed, with a bias for each expert."""
    config = transformers.GptOssConfig(
        **SIZES, num_local_experts=4, num_experts_per_tok=2, head_dim=16
    )
    return transformers.GptOssForCausalLM(config)


def llama4() -> Any:
    """Its experts are of the same form, but the interface does not know them."""
    config = transformers.Llama4TextConfig(
        **SIZES, intermediate_size_mlp=96, num_local_experts=4, head_dim=16
    )
    return transformers.Llama4ForCausalLM(config)


BUILDS: dict[str, Callable[[], Any]] = {
    "mixtral": mixtral,
    "qwen3_moe": qwen3_moe,
    "gpt_oss": gpt_oss,
    "llama4": llama4,
}


def built(build: Callable[[], Any], *, lazily: bool, seed: int = 3) -> Any:
    torch.manual_seed(seed)
    if not lazily:
        return build().eval()
    with dormant.lazy_init():
        return build().eval()


def stacks(model: nn.Module) -> list[str]:
    """Names of the parameters of three dimensions."""
    return [name for name, parameter in model.named_parameters() if parameter.dim() == 3]


def pack_by_library(model: nn.Module, names: Iterable[str], **options: Any) -> None:
    """Packs parameters of a real model as a user of bitsandbytes does."""
    for name in names:
        module, _, attribute = name.rpartition(".")
        replace_parameter_4bit(model.get_submodule(module), attribute, **options)


def assert_same_packed(got: Any, expected: Any, attribute: str) -> None:
    """Fails unless a parameter of two modules is packed alike in everything the library has."""
    assert type(got).__name__ == type(expected).__name__
    assert type(got).__mro__[1:] == type(expected).__mro__[1:]
    assert attribute not in got._parameters
    mine, theirs = got.parametrizations[attribute], expected.parametrizations[attribute]
    assert type(mine) is type(theirs)
    assert mine.unsafe is theirs.unsafe is True
    assert [type(each) for each in mine] == [type(each) for each in theirs]
    assert vars(mine[0]).keys() == vars(theirs[0]).keys()
    assert type(mine.original) is type(theirs.original) is nn.Parameter
    assert mine.original.requires_grad is False
    assert_same_bits(mine.original, theirs.original, attribute)
    assert_same_quant_state(mine[0].quant_state, theirs[0].quant_state)
    for hooks in (
        "_forward_pre_hooks",
        "_forward_hooks",
        "_forward_hooks_always_called",
        "_state_dict_hooks",
        "_state_dict_pre_hooks",
    ):
        names = [
            [getattr(hook, "func", hook) for hook in getattr(each, hooks).values()]
            for each in (got, expected)
        ]
        assert names[0] == names[1], hooks
    for each in (mine, mine[0]):
        assert not each._state_dict_pre_hooks


def assert_same_model_packed(got: nn.Module, expected: nn.Module, names: Iterable[str]) -> None:
    """Fails unless the parameters `names` of two models are packed alike and saved alike."""
    for name in names:
        module, _, attribute = name.rpartition(".")
        assert_same_packed(got.get_submodule(module), expected.get_submodule(module), attribute)
    mine, theirs = got.state_dict(), expected.state_dict()
    prefixes = tuple(names)
    kept = [name for name in theirs if name.startswith(prefixes)]
    assert [name for name in mine if name.startswith(prefixes)] == kept
    for name in kept:
        assert_same_bits(mine[name], theirs[name], name)
