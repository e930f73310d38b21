"""Lazy models on device maps, against accelerate with eager ones."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import accelerate
import pytest
import torch
import transformers
from libraries import models

import dormant
from compare import assert_same_bits
from dormant.integrations.accelerate import dispatch_model, init_empty_weights
from dormant.integrations.transformers import from_pretrained

ROWS = {row.name: row for row in models("transformers")}
LLAMA = ROWS["LlamaForCausalLM"].build
WORDS = {"input_ids": torch.arange(1, 13).view(2, 6)}
MIXED: dict[str, Any] = {
    "model.embed_tokens": "cpu",
    "model.layers.0": "disk",
    "model.layers.1": "cpu",
    "model.norm": "disk",
    "model.rotary_emb": "cpu",
    "lm_head": "disk",
}
MAPS: dict[str, dict[str, Any]] = {
    "one device": {"": "cpu"},
    "disk and cpu": MIXED,
    "all on disk": {"model": "disk", "lm_head": "disk"},
}
ALL: dict[str, Any] = {"": "disk"}


def built(*, lazily: bool) -> Any:
    torch.manual_seed(7)
    if not lazily:
        return LLAMA().eval()
    with init_empty_weights():
        return LLAMA().eval()


def output(model: Any) -> torch.Tensor:
    with torch.no_grad():
        logits: torch.Tensor = model(**WORDS).logits
    return logits


@pytest.mark.parametrize("name", MAPS)
def test_a_dispatched_model_is_that_of_accelerate(name: str, tmp_path: Path) -> None:
    device_map = MAPS[name]
    expected = accelerate.dispatch_model(
        built(lazily=False), dict(device_map), offload_dir=tmp_path / "theirs"
    )
    got = dispatch_model(built(lazily=True), device_map, offload_dir=tmp_path / "ours")
    assert not dormant.is_lazy(got)
    for key, tensor in expected.state_dict().items():
        other = got.state_dict()[key]
        assert other.device == tensor.device, key
        if tensor.device.type != "meta":
            assert_same_bits(tensor, other, key)
    assert_same_bits(output(expected), output(got), "logits")
    assert hasattr(got, "_hf_hook") == hasattr(expected, "_hf_hook")
    theirs, ours = (sorted((tmp_path / side).glob("*")) for side in ("theirs", "ours"))
    assert [file.name for file in ours] == [file.name for file in theirs]
    assert bool(ours) == ("disk" in device_map.values())
    for one, other_file in zip(theirs, ours, strict=True):
        if one.suffix == ".json":
            assert json.loads(one.read_text()) == json.loads(other_file.read_text())
        else:
            assert one.read_bytes() == other_file.read_bytes(), one.name


def test_a_checkpoint_is_dispatched_without_being_loaded_first(tmp_path: Path) -> None:
    built(lazily=False).save_pretrained(tmp_path / "model")
    model = from_pretrained(
        transformers.LlamaForCausalLM, tmp_path / "model", dtype=torch.bfloat16, materialize=False
    )
    got = dispatch_model(model, MIXED, offload_dir=tmp_path / "offload")
    expected = transformers.LlamaForCausalLM.from_pretrained(
        tmp_path / "model", dtype=torch.bfloat16
    )
    assert_same_bits(output(expected), output(got), "logits")


@pytest.mark.parametrize("name", ["LlamaForCausalLM", "LlamaForCausalLM-tied-llama3-rope"])
def test_device_map_of_from_pretrained(name: str, tmp_path: Path) -> None:
    torch.manual_seed(1234)
    model: Any = ROWS[name].build()
    model.save_pretrained(tmp_path / "model")
    kind = type(model)
    device_map = {**MIXED, "lm_head": "cpu"}
    outputs = [
        output(
            load(tmp_path / "model", device_map=dict(device_map), offload_folder=tmp_path / side)
        )
        for side, load in (
            ("theirs", kind.from_pretrained),
            ("ours", lambda folder, **options: from_pretrained(kind, folder, **options)),
        )
    ]
    assert_same_bits(outputs[0], outputs[1], "logits")


@pytest.mark.parametrize("name", ["LlamaForCausalLM", "LlamaForCausalLM-tied-llama3-rope"])
def test_a_whole_model_on_disk_is_that_of_disk_offload(name: str, tmp_path: Path) -> None:
    def build() -> Any:
        torch.manual_seed(7)
        return ROWS[name].build().eval()

    expected = accelerate.disk_offload(build(), tmp_path / "theirs")
    with dormant.lazy_init():
        lazy = build()
    got = dispatch_model(lazy, ALL, offload_dir=tmp_path / "ours")
    assert {parameter.device.type for parameter in got.parameters()} == {"meta"}
    assert_same_bits(output(expected), output(got), "logits")
    assert_same_bits(output(build()), output(got), "logits")
    ours, theirs = (
        {file.name: file.read_bytes() for file in (tmp_path / side).glob("*.dat")}
        for side in ("ours", "theirs")
    )
    assert ours == theirs


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    "name",
    ["LlamaForCausalLM", "MixtralForCausalLM", "Qwen3MoeForCausalLM", "JambaForCausalLM"],
)
@pytest.mark.parametrize("whole", [False, True], ids=["parts", "whole"])
def test_converted_weights_on_disk_are_those_of_the_library(
    whole: bool, name: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    torch.manual_seed(1234)
    source: Any = ROWS[name].build()
    source.save_pretrained(tmp_path / "model", max_shard_size="100KB")
    parts = {name: "cpu" for name, _ in source.named_children()}
    parts |= {f"model.{name}": "cpu" for name, _ in source.model.named_children()}
    parts |= {"model.layers.0": "cpu", "model.layers.1": "disk"}
    del parts["model"], parts["model.layers"]

    def loaded(load: Any, side: str) -> Any:
        warnings.simplefilter("error", UserWarning)
        return load(
            tmp_path / "model",
            device_map=dict(ALL if whole else parts),
            offload_folder=tmp_path / side,
            dtype=dtype,
        )

    def lazily(folder: Path, **options: Any) -> Any:
        with dormant.lazy_init():
            return type(source).from_pretrained(folder, **options)

    expected = loaded(type(source).from_pretrained, "theirs")
    logits = output(expected)
    for side, load in (
        ("ours", lambda *args, **options: from_pretrained(type(source), *args, **options)),
        ("inside", lazily),
    ):
        got = loaded(load, side)
        assert_same_bits(logits, output(got), "logits")
        for key, tensor in expected.state_dict().items():
            assert got.state_dict()[key].device == tensor.device, key
        ours, theirs = (
            {file.name: file.read_bytes() for file in (tmp_path / each).glob("*.safetensors")}
            for each in (side, "theirs")
        )
        assert ours == theirs
        assert "experts" not in "".join(source.state_dict()) or ours


@pytest.mark.parametrize(
    "name", ["LlamaForCausalLM-tied-llama3-rope", "MixtralForCausalLM", "Qwen3MoeForCausalLM"]
)
@pytest.mark.parametrize("size", ["5GB", "60KB"])
def test_a_model_on_disk_is_saved_without_being_read_first(
    size: str, name: str, tmp_path: Path
) -> None:
    torch.manual_seed(1234)
    source: Any = ROWS[name].build()
    source.save_pretrained(tmp_path / "model")
    model = from_pretrained(
        type(source), tmp_path / "model", device_map=ALL, offload_folder=tmp_path / "disk"
    )
    dormant.save(model, tmp_path / "ours", max_shard_size=size, memory_budget="1MiB")
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}
    # The library divides the model's own tensors here, and others the files'.
    source.save_pretrained(tmp_path / "theirs", max_shard_size=size)
    ours, theirs = (dict(dormant.open_checkpoint(tmp_path / side)) for side in ("ours", "theirs"))
    assert ours.keys() == theirs.keys()
    dormant.materialize([ours, theirs])
    for key, tensor in theirs.items():
        assert_same_bits(tensor, ours[key], key)
    assert_same_bits(output(source), output(model), "logits")


@pytest.mark.parametrize("scheme", ["nf4", "int8"])
def test_packed_weights_on_disk_are_refused(scheme: str, tmp_path: Path) -> None:
    """accelerate's own dispatch_model makes a model of them that fails when it is used."""
    pytest.importorskip("bitsandbytes")
    model = built(lazily=True)
    dormant.quantize(model, scheme)
    for device_map in (ALL, MIXED):
        with pytest.raises(ValueError, match=r"cannot load them: model\.layers\.0\."):
            dispatch_model(model, device_map, offload_dir=tmp_path / "disk")
    assert dormant.is_lazy(model)
    assert not (tmp_path / "disk").exists()
    # What is not quantized may go there.
    kept = {**dict.fromkeys(MIXED, "cpu"), "model.norm": "disk", "lm_head": "disk"}
    got = dispatch_model(model, kept, offload_dir=tmp_path / "disk")
    expected = built(lazily=True)
    dormant.quantize(expected, scheme)
    dormant.materialize(expected)
    assert_same_bits(output(expected), output(got), "logits")


@pytest.mark.parametrize("scheme", ["nf4", "int8"])
def test_a_quantized_map_keeps_in_full_precision_what_the_library_keeps(
    scheme: str, tmp_path: Path
) -> None:
    pytest.importorskip("bitsandbytes")
    built(lazily=False).save_pretrained(tmp_path / "model")
    kind = transformers.LlamaForCausalLM

    def options(side: str, **more: Any) -> dict[str, Any]:
        config = transformers.BitsAndBytesConfig(
            **{f"load_in_{4 if scheme == 'nf4' else 8}bit": True}, **more
        )
        return {
            "device_map": dict(MIXED),
            "offload_folder": tmp_path / side,
            "quantization_config": config,
        }

    for scheme_or_config in (scheme, options("x")["quantization_config"]):
        with pytest.raises(ValueError, match="llm_int8_enable_fp32_cpu_offload"):
            from_pretrained(
                kind,
                tmp_path / "model",
                **{**options("refused"), "quantization_config": scheme_or_config},
            )
    allowed = {"llm_int8_enable_fp32_cpu_offload": True}
    expected = kind.from_pretrained(tmp_path / "model", **options("theirs", **allowed))
    got = from_pretrained(kind, tmp_path / "model", **options("ours", **allowed))
    assert [type(each) for each in got.modules()] == [type(each) for each in expected.modules()]
    assert_same_bits(output(expected), output(got), "logits")


def test_what_goes_to_disk_never_lies_in_memory_as_a_whole(tmp_path: Path) -> None:
    code = f"""if True:
        import accelerate, torch, dormant
        from dormant.integrations.accelerate import dispatch_model
        from dormant.reporting.memory import highest_resident_bytes
        def model(layers):
            with dormant.lazy_init():
                return torch.nn.Sequential(*[torch.nn.Linear(2048, 2048) for _ in range(layers)])
        def dispatch(layers, folder):
            devices = {{str(layer): "disk" for layer in range(layers)}}
            dispatch_model(model(layers), devices, offload_dir=folder)
        dispatch(1, {str(tmp_path / "warm")!r})
        before = highest_resident_bytes()
        dispatch(24, {str(tmp_path / "disk")!r})
        print(highest_resident_bytes() - before)
    """
    # So that what is freed goes back to the system at once, and is not counted.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, env=environment
    )
    assert done.returncode == 0, done.stderr
    # 384 MiB in all, 16 MiB for a layer, which is in memory and in its file's pages at once.
    assert int(done.stdout) < 96 << 20
    assert sum(file.stat().st_size for file in (tmp_path / "disk").glob("*.dat")) > 384 << 20


def test_a_map_that_cannot_be_used_changes_nothing(tmp_path: Path) -> None:
    model = built(lazily=True)
    with pytest.raises(ValueError, match="lm_head"):
        dispatch_model(model, {"model": "cpu"})
    with pytest.raises(ValueError, match="offload_dir"):
        dispatch_model(model, {"model": "disk", "lm_head": "disk"})
    (tmp_path / "index.json").write_text("{}")
    with pytest.raises(ValueError, match="already contains"):
        dispatch_model(model, {"model": "disk", "lm_head": "disk"}, offload_dir=tmp_path)
    with pytest.raises(ValueError, match=r"'lm_head' elsewhere. Name the parts"):
        dispatch_model(model, {"": "disk", "lm_head": "cpu"}, offload_dir=tmp_path / "other")
    assert dormant.is_lazy(model)
    assert dormant.materialize(model).lazy_rate == 1.0


@pytest.mark.parametrize(
    "options",
    [
        {"max_memory": {"cpu": "1GB"}},
        {"max_memory": {"cpu": 200_000}},
        {"max_memory": {"cpu": 200_000}, "no_split_module_classes": ["LlamaDecoderLayer"]},
        {"max_memory": {"cpu": 100_000}, "dtype": torch.float16},
    ],
    ids=str,
)
def test_a_device_map_is_found_without_values(options: dict[str, Any]) -> None:
    lazy = built(lazily=True)
    expected = accelerate.infer_auto_device_map(built(lazily=False), **options)
    assert accelerate.infer_auto_device_map(lazy, **options) == expected
    assert dormant.materialize(lazy).lazy_rate == 1.0


@pytest.mark.parametrize("dtype", [None, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ["one device", "disk and cpu"])
def test_load_checkpoint_and_dispatch_inside_the_context(
    name: str, dtype: torch.dtype | None, tmp_path: Path
) -> None:
    torch.manual_seed(1234)
    LLAMA().save_pretrained(tmp_path / "model")

    def loaded(model: Any, side: str) -> Any:
        return accelerate.load_checkpoint_and_dispatch(
            model,
            str(tmp_path / "model"),
            device_map=dict(MAPS[name]),
            offload_folder=str(tmp_path / side),
            dtype=dtype,
        )

    expected = loaded(built(lazily=False), "theirs")
    with dormant.lazy_init():
        got = loaded(built(lazily=True), "ours")
    report = dormant.materialize(got)
    assert report.initialized_bytes == 0
    assert report.value_reads == {}
    assert_same_bits(output(expected), output(got), "logits")
    for key, tensor in expected.state_dict().items():
        assert got.state_dict()[key].device == tensor.device, key


@pytest.mark.parametrize("inside", [False, True], ids=["outside", "inside"])
@pytest.mark.parametrize(
    "device_map",
    [
        None,
        {"": "cpu"},
        {
            **dict.fromkeys(("transformer.wte", "transformer.wpe", "transformer.drop"), "cpu"),
            "transformer.h": "disk",
            "transformer.ln_f": "cpu",
            "lm_head": "cpu",
        },
    ],
    ids=["no map", "one device", "disk and cpu"],
)
def test_a_tied_head_gets_what_was_loaded(
    device_map: dict[str, str] | None, inside: bool, tmp_path: Path
) -> None:
    config = transformers.GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=20, n_positions=8)
    saved = transformers.GPT2LMHeadModel(config)
    saved.save_pretrained(tmp_path / "model")
    with dormant.lazy_init():
        model: Any = transformers.GPT2LMHeadModel(config)
    with dormant.lazy_init() if inside else contextlib.nullcontext():
        model = accelerate.load_checkpoint_and_dispatch(
            model, tmp_path / "model", device_map=device_map, offload_folder=str(tmp_path / "disk")
        )
    assert model.lm_head.weight is model.transformer.wte.weight
    words = torch.arange(4)[None]
    assert_same_bits(saved.eval()(words).logits, model.eval()(words).logits, "logits")


@pytest.mark.parametrize("first", ["materialize", "prepare"])
def test_a_prepared_model_trains_as_an_eager_one(first: str) -> None:
    def trained(model: Any, *, lazily: bool) -> dict[str, torch.Tensor]:
        accelerator = accelerate.Accelerator(cpu=True)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        if lazily and first == "materialize":
            dormant.materialize(model)
        model, optimizer = accelerator.prepare(model, optimizer)
        if lazily and first == "prepare":
            dormant.materialize(model)
        for _ in range(2):
            accelerator.backward(model(**WORDS, labels=WORDS["input_ids"]).loss)
            optimizer.step()
            optimizer.zero_grad()
        return {name: tensor.clone() for name, tensor in model.state_dict().items()}

    expected = trained(built(lazily=False), lazily=False)
    for name, tensor in trained(built(lazily=True), lazily=True).items():
        assert_same_bits(expected[name], tensor, name)


@pytest.mark.parametrize("include_buffers", [None, False, True])
def test_code_for_init_empty_weights_keeps_working(include_buffers: bool | None) -> None:
    with init_empty_weights(include_buffers=include_buffers):
        model = LLAMA()
    assert dormant.is_lazy(model)
    expected = built(lazily=False)
    model.load_state_dict(expected.state_dict(), assign=True)
    dormant.materialize(model)
    assert_same_bits(output(expected), output(model.eval()), "logits")
    with dormant.lazy_init(), accelerate.init_empty_weights():
        assert LLAMA().lm_head.weight.device.type == "meta"
