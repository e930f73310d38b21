"""Checkpoints under transformers' names: plans, refusals, packed weights, `for_model`, threads.

That every architecture is converted as the library does it is in tests/models/test_conversions.py.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import transformers
from eager_load import fingerprint

import dormant
from compare import assert_same_bits

FILE = "model.layers.0.block_sparse_moe.experts.{}.{}.weight"
STACK = "model.layers.0.mlp.experts.{}"


def mixtral(**options: Any) -> Any:
    config = transformers.MixtralConfig(
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        vocab_size=32,
        **{"num_local_experts": 12, **options},
    )
    return transformers.MixtralForCausalLM(config)


def vision() -> Any:
    config = transformers.ViTConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        image_size=8,
        patch_size=4,
    )
    return transformers.ViTForImageClassification(config)


def lazily(build: Callable[..., Any] = mixtral, **options: Any) -> Any:
    with dormant.lazy_init():
        return build(**options)


def assert_same_state(model: Any, expected: dict[str, torch.Tensor]) -> None:
    state = model.state_dict()
    assert list(state) == list(expected)
    for name, tensor in expected.items():
        assert_same_bits(tensor, state[name], name)


@pytest.fixture
def source() -> Any:
    torch.manual_seed(5)
    return mixtral()


@pytest.fixture
def folder(source: Any, tmp_path: Path) -> Path:
    source.save_pretrained(tmp_path / "source", max_shard_size="20KB")
    return tmp_path / "source"


def files_of(source: Any, folder: Path) -> dict[str, torch.Tensor]:
    """The real tensors that `save_pretrained` writes."""
    source.save_pretrained(folder)
    return safetensors.torch.load_file(folder / "model.safetensors")


# What is planned and kept


def test_a_plan_says_what_each_tensor_is_made_of(folder: Path) -> None:
    model = lazily()
    before = fingerprint(model)
    plan = dormant.load(model, folder, dry_run=True)
    assert fingerprint(model) == before
    assert not hasattr(model, "_weight_conversions")
    tensors = {tensor.names[0]: tensor for tensor in plan.tensors}
    stack = tensors[STACK.format("gate_up_proj")]
    names = [FILE.format(expert, "w1") for expert in range(12)]
    names += [FILE.format(expert, "w3") for expert in range(12)]
    assert sorted(stack.sources) == sorted(names)
    assert stack.origin == "checkpoint"
    assert {Path(file).parent for file in stack.files} == {folder}
    assert len(stack.files) > 1
    gate = tensors["model.layers.0.mlp.gate.weight"]
    assert gate.sources == ("model.layers.0.block_sparse_moe.gate.weight",)
    assert tensors["model.norm.weight"].sources == ("model.norm.weight",)
    assert "6 tensors converted from 74 tensors with other names in the checkpoint" in str(plan)
    assert plan.to_dict()["tensors"][0]["sources"]


def test_a_plan_knows_the_names_before_rename() -> None:
    layer = lazily(lambda: torch.nn.Linear(2, 2))
    state = {"old.weight": torch.ones(2, 2), "bias": torch.ones(2)}
    plan = dormant.load(layer, state, rename={"old.": ""}, dry_run=True)
    assert [tensor.sources for tensor in plan.tensors] == [("old.weight",), ("bias",)]


@pytest.mark.parametrize("real", [False, True])
def test_a_state_dict_under_the_names_of_files(real: bool, source: Any, tmp_path: Path) -> None:
    state = files_of(source, tmp_path)
    model = mixtral() if real else lazily()
    dormant.load(model, state, missing="error")
    assert_same_state(model, source.state_dict())


def test_a_loaded_model_is_saved_as_the_library_saves_it(folder: Path, tmp_path: Path) -> None:
    model = lazily()
    dormant.load(model, folder, materialize=False)
    dormant.save(model, tmp_path / "ours", max_shard_size="20KB")
    assert all(dormant.is_lazy(each) for each in model.parameters())
    dormant.materialize(model)
    model.save_pretrained(tmp_path / "theirs", max_shard_size="20KB")
    for file in (tmp_path / "theirs").iterdir():
        assert file.read_bytes() == (tmp_path / "ours" / file.name).read_bytes(), file.name
        assert file.read_bytes() == (folder / file.name).read_bytes(), file.name


@pytest.mark.parametrize("own", [False, True], ids=["names of files", "names of the model"])
def test_a_later_checkpoint_replaces_what_an_earlier_one_gave(
    own: bool, source: Any, folder: Path, tmp_path: Path
) -> None:
    torch.manual_seed(6)
    other = mixtral()
    names = [STACK.format("down_proj"), "model.layers.0.mlp.gate.weight", "lm_head.weight"]
    given = (
        {name: other.state_dict()[name] for name in names}
        if own
        else {
            name: tensor
            for name, tensor in files_of(other, tmp_path / "other").items()
            if ".0.block_sparse_moe.gate" in name
            or "lm_head" in name
            or (".0.block_sparse_moe" in name and ".w2." in name)
        }
    )
    model = lazily()
    dormant.load(model, [folder, given], missing="error")
    assert_same_state(
        model, {**source.state_dict(), **{name: other.state_dict()[name] for name in names}}
    )
    again = lazily()
    dormant.load(again, [given, folder], missing="error")
    assert_same_state(again, source.state_dict())


def test_files_of_one_checkpoint_in_a_list_are_joined_first(source: Any, folder: Path) -> None:
    model = lazily()
    dormant.load(model, sorted(folder.glob("*.safetensors")), missing="error")
    assert_same_state(model, source.state_dict())


def test_a_body_takes_the_names_of_a_head_and_the_other_way_round(tmp_path: Path) -> None:
    torch.manual_seed(1)
    head = mixtral()
    head.save_pretrained(tmp_path / "head")
    head.model.save_pretrained(tmp_path / "body")
    body = lazily(lambda: transformers.MixtralModel(head.config))
    report = dormant.load(body, tmp_path / "head", missing="error", unexpected="ignore")
    assert report.unexpected_keys == ("lm_head.weight",)
    assert_same_state(body, head.model.state_dict())
    other = lazily()
    report = dormant.load(other, tmp_path / "body", missing="init")
    assert report.missing_keys == ("lm_head.weight",)
    assert_same_state(other.model, head.model.state_dict())


# Mappings for a model


def test_a_mapping_for_a_model_is_lazy_and_says_where_its_parts_lie(
    source: Any, folder: Path
) -> None:
    checkpoint = dormant.open_checkpoint(folder)
    model = lazily()
    converted = checkpoint.for_model(model)
    assert set(converted) == set(source.state_dict())
    assert all(dormant.is_lazy(converted[name]) for name in converted)
    entry = converted.entries[STACK.format("down_proj")]
    assert (entry.shape, entry.file, len(entry.parts)) == ((12, 16, 24), None, 12)
    assert entry.parts[7] == checkpoint.entries[FILE.format(7, "w2")]
    assert converted.files == checkpoint.files
    assert converted.for_model(model) is converted
    model.load_state_dict(converted)
    assert all(map(dormant.is_lazy, model.parameters()))
    dormant.materialize(model)
    assert_same_state(model, source.state_dict())
    other = lazily()
    dormant.load(other, converted, missing="error")
    assert_same_state(other, source.state_dict())


def test_a_mapping_for_any_other_model_is_the_checkpoint_itself(folder: Path) -> None:
    checkpoint = dormant.open_checkpoint(folder)
    assert checkpoint.for_model(torch.nn.Linear(1, 1)) is checkpoint
    with pytest.raises(TypeError, match=r"for_model: model must be a module, got dict"):
        checkpoint.for_model({})  # type: ignore[arg-type]


@pytest.mark.threads
def test_threads_share_a_checkpoint_and_a_model(source: Any, folder: Path) -> None:
    checkpoint = dormant.open_checkpoint(folder)
    shared = lazily()

    def convert(_: int) -> dict[str, torch.Tensor]:
        state = dict(checkpoint.for_model(shared))
        dormant.materialize(state)
        return state

    def load(_: int) -> dict[str, torch.Tensor]:
        model = lazily()
        dormant.load(model, checkpoint, missing="error")
        state: dict[str, torch.Tensor] = model.state_dict()
        return state

    with ThreadPoolExecutor(4) as pool:
        states = [*pool.map(convert, range(6)), *pool.map(load, range(6))]
    for state in states:
        for name, tensor in source.state_dict().items():
            assert_same_bits(tensor, state[name], name)


def test_a_rule_that_a_user_registers_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    library: Any = importlib.import_module("transformers.conversion_mapping")
    rules: Any = importlib.import_module("transformers.core_model_loading")
    library.get_checkpoint_conversion_mapping("mixtral")  # builds the table
    table = dict(library._checkpoint_conversion_mapping_cache)
    monkeypatch.setattr(library, "_checkpoint_conversion_mapping_cache", table)
    monkeypatch.setattr(library, "USER_REGISTERED_MAPPINGS", set())

    class Fused(transformers.PreTrainedModel):
        config_class = transformers.LlamaConfig
        base_model_prefix = "model"

        def __init__(self, config: Any) -> None:
            super().__init__(config)
            self.first = torch.nn.Linear(4, 6, bias=False)
            self.second = torch.nn.Linear(4, 6, bias=False)
            self.post_init()

    library.register_checkpoint_conversion_mapping(
        "Fused",
        [
            rules.WeightConverter(
                source_patterns="both.weight",
                target_patterns=["first.weight", "second.weight"],
                operations=[rules.Chunk(dim=0)],
            )
        ],
    )
    both = torch.arange(48.0).view(12, 4)
    safetensors.torch.save_file({"both.weight": both}, tmp_path / "model.safetensors")
    model = lazily(lambda: Fused(transformers.LlamaConfig()))
    plan = dormant.load(model, tmp_path, dry_run=True)
    assert [tensor.sources for tensor in plan.tensors] == [("both.weight",)] * 2
    dormant.load(model, tmp_path, missing="error")
    assert_same_state(model, {"first.weight": both[:6], "second.weight": both[6:]})
    dormant.save(model, tmp_path / "again")
    assert_same_bits(both, dormant.open_checkpoint(tmp_path / "again")["both.weight"], "both")


# Refusals: the file's names and the model's


def without(*names: str) -> Callable[[dict[str, torch.Tensor]], None]:
    def change(state: dict[str, torch.Tensor]) -> None:
        for name in names:
            del state[name]

    return change


def cut(state: dict[str, torch.Tensor]) -> None:
    state[FILE.format(3, "w1")] = torch.zeros(5, 16)


def renumbered(state: dict[str, torch.Tensor]) -> None:
    """As many as the model has, so that the library puts the wrong one in place 4."""
    state[FILE.format(12, "w2")] = state.pop(FILE.format(4, "w2"))


def far(state: dict[str, torch.Tensor]) -> None:
    state[FILE.format(10**15, "w2")] = state[FILE.format(4, "w2")].clone()


def not_a_number(state: dict[str, torch.Tensor]) -> None:
    state[FILE.format("²", "w2")] = torch.zeros(16, 24)


def too_long_a_number(state: dict[str, torch.Tensor]) -> None:
    state[FILE.format("9" * 5000, "w2")] = torch.zeros(16, 24)


def twice(state: dict[str, torch.Tensor]) -> None:
    state["model.layers.0.mlp.gate.weight"] = torch.zeros(12, 16)


REFUSALS: dict[str, tuple[Callable[[dict[str, torch.Tensor]], None], tuple[str, ...]]] = {
    "an expert is missing": (
        without(FILE.format(3, "w1"), FILE.format(3, "w3")),
        ("needs 2 more tensors", STACK.format("gate_up_proj"), FILE.format(3, "w1")),
    ),
    "half an expert is missing": (
        without(FILE.format(11, "w3")),
        ("needs 1 more tensor for", STACK.format("gate_up_proj"), FILE.format(11, "w3")),
    ),
    "an expert has another number": (
        renumbered,
        ("needs 1 more tensor for", STACK.format("down_proj"), FILE.format(4, "w2")),
    ),
    "an expert has a far number": (far, ("more tensor", FILE.format(12, "w2"), ", ...")),
    "a name has what is no number": (not_a_number, ("cannot sort the names",)),
    "a name has a number without end": (too_long_a_number, ("cannot sort the names",)),
    "an expert has another shape": (
        cut,
        (
            STACK.format("gate_up_proj"),
            FILE.format(0, "w1"),
            "MergeModulelist and Concatenate, which failed",
            "[24, 16], [5, 16]",
        ),
    ),
    "two names are one": (
        twice,
        (
            "'model.layers.0.block_sparse_moe.gate.weight' and 'model.layers.0.mlp.gate.weight'",
            "both become 'model.layers.0.mlp.gate.weight' of MixtralForCausalLM",
        ),
    ),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_a_refusal_names_both_and_changes_nothing(case: str, source: Any, tmp_path: Path) -> None:
    change, texts = REFUSALS[case]
    state = files_of(source, tmp_path)
    change(state)
    path = tmp_path / "changed.safetensors"
    safetensors.torch.save_file(state, path)
    for model in (lazily(), mixtral()):
        before = fingerprint(model)
        for attempt in (
            lambda model=model: dormant.load(model, path),
            lambda model=model: dormant.open_checkpoint(path).for_model(model),
        ):
            with pytest.raises(ValueError, match=r"^(load|for_model): ") as caught:
                attempt()
            assert not [text for text in texts if text not in str(caught.value)], caught.value
            assert fingerprint(model) == before


@pytest.mark.parametrize(
    ("kind", "real"),
    [("read", False), ("read", True), ("allocate", False)],  # real tensors are written in place
)
def test_a_failure_on_the_way_leaves_the_model_as_it_was(
    real: bool, kind: str, source: Any, folder: Path
) -> None:
    _C = dormant._C

    def prepared() -> Any:
        return mixtral() if real else lazily()

    def load(model: Any) -> None:
        dormant.load(model, folder, mmap="never", missing="error")

    try:
        _C.set_faults(f"{kind}:0")
        load(prepared())
        calls, failed = _C.set_faults("")[kind], 0
        for n in sorted({1 + i * (calls - 1) // 15 for i in range(16)}):
            model = prepared()
            before = fingerprint(model)
            _C.set_faults(f"{kind}:{n}")
            try:
                load(model)
            except (OSError, RuntimeError, MemoryError):
                failed += 1
                _C.set_faults("")
                assert fingerprint(model) == before
                assert not hasattr(model, "_weight_conversions")
                load(model)
            _C.set_faults("")
            assert_same_state(model, source.state_dict())
    finally:
        _C.set_faults("")
    assert failed > 0


def test_a_stack_of_another_size_names_what_it_is_made_of(folder: Path) -> None:
    model = lazily(num_local_experts=8)
    with pytest.raises(KeyError) as caught:
        dormant.load(model, folder)
    line = next(
        line for line in str(caught.value).splitlines() if STACK.format("down_proj") in line
    )
    assert line.strip() == (
        f"{STACK.format('down_proj')}: (12, 16, 24) in the checkpoint (made of "
        f"{FILE.format(0, 'w2')!r}, {FILE.format(1, 'w2')!r}, {FILE.format(2, 'w2')!r}, ... "
        f"{FILE.format(11, 'w2')!r} (12 tensors)), (8, 16, 24) in the model"
    )


# Weights that bitsandbytes has packed


@pytest.mark.parametrize("scheme", ["nf4", "int8"])
@pytest.mark.parametrize("build", [vision, mixtral])
def test_packed_weights_under_names_of_an_earlier_release(
    build: Callable[[], Any], scheme: str, tmp_path: Path
) -> None:
    pytest.importorskip("bitsandbytes")
    options: dict[str, Any] = (
        {"load_in_8bit": True}
        if scheme == "int8"
        else {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True}
    )
    config = transformers.BitsAndBytesConfig(**options)
    build().save_pretrained(tmp_path / "plain")
    kind = type(build())
    expected = kind.from_pretrained(tmp_path / "plain", quantization_config=config)
    expected.save_pretrained(tmp_path / "packed")
    names = dormant.open_checkpoint(tmp_path / "packed").keys()
    assert not names <= expected.state_dict().keys()
    model = lazily(build)
    dormant.quantize(model, config, parameters=[])  # transformers packs no experts
    plan = dormant.load(model, tmp_path / "packed", dry_run=True)
    assert (plan.missing_keys, plan.unexpected_keys) == ((), ())
    dormant.load(model, tmp_path / "packed", missing="error")
    assert_same_state(model, expected.state_dict())
    dormant.save(model, tmp_path / "again")
    again = (tmp_path / "again" / "model.safetensors").read_bytes()
    assert again == (tmp_path / "packed" / "model.safetensors").read_bytes()


def test_a_packed_weight_that_would_have_to_be_cut_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    config = transformers.NomicBertConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=2
    )
    torch.manual_seed(0)
    source = transformers.NomicBertModel(config)
    source.save_pretrained(tmp_path / "plain")
    state = safetensors.torch.load_file(tmp_path / "plain" / "model.safetensors")
    name = next(name for name in state if re.search(r"Wqkv.weight|qkv", name))
    state[name] = torch.zeros(state[name].numel() // 2, 1, dtype=torch.uint8)
    state[f"{name}.absmax"] = torch.zeros(48)
    safetensors.torch.save_file(state, tmp_path / "packed.safetensors")
    model = lazily(lambda: transformers.NomicBertModel(config))
    dormant.quantize(model, "nf4")
    before = fingerprint(model)
    with pytest.raises(ValueError, match=r"load: .* is part of a quantized weight") as caught:
        dormant.load(model, tmp_path / "packed.safetensors")
    assert f"{name}.absmax" in str(caught.value)
    assert fingerprint(model) == before
