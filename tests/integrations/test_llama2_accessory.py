"""LLaMA2-Accessory's two functions, against what they do written out in plain PyTorch."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch import nn

import dormant
from compare import assert_same_bits
from dormant.integrations import llama2_accessory
from dormant.integrations.llama2_accessory import (
    default_tensor_type,
    load_tensor_parallel_model_list,
)

WIDTH, HIDDEN, WORDS = 16, 24, 40


class ColumnParallelLinear(nn.Linear):
    """The names of fairscale's layers, holding one rank's part."""


class RowParallelLinear(nn.Linear):
    pass


class ParallelEmbedding(nn.Embedding):
    pass


class Block(nn.Module):
    def __init__(self, ranks: int) -> None:
        super().__init__()
        self.w1 = ColumnParallelLinear(WIDTH, HIDDEN // ranks)
        self.w2 = RowParallelLinear(HIDDEN // ranks, WIDTH)
        self.norm = nn.LayerNorm(WIDTH)


class Meta(nn.Module):
    def __init__(self, ranks: int = 1) -> None:
        super().__init__()
        self.llma = nn.Module()
        self.llma.tok_embeddings = ParallelEmbedding(WORDS, WIDTH // ranks)
        self.llma.block = Block(ranks)


DIVIDED = {"w1.weight": 0, "w1.bias": 0, "w2.weight": 1, "tok_embeddings.weight": 1}


def parts(state: dict[str, torch.Tensor], ranks: int) -> list[dict[str, torch.Tensor]]:
    """What each rank holds, divided as fairscale divides."""
    result: list[dict[str, torch.Tensor]] = [{} for _ in range(ranks)]
    for name, tensor in state.items():
        dim = next((d for end, d in DIVIDED.items() if name.endswith(end)), None)
        pieces = [tensor] * ranks if dim is None else tensor.chunk(ranks, dim)
        for part, piece in zip(result, pieces, strict=True):
            part[name] = piece.clone()
    return result


def whole(seed: int, scale: float = 1.0) -> dict[str, torch.Tensor]:
    torch.manual_seed(seed)
    return {name: scale * torch.randn_like(t) for name, t in Meta().state_dict().items()}


def write(folder: Path, states: Sequence[dict[str, torch.Tensor]], kind: str) -> Path:
    folder.mkdir()
    for rank, state in enumerate(states):
        if kind == "meta":
            bare = {name.removeprefix("llma."): tensor for name, tensor in state.items()}
            torch.save(bare, folder / f"consolidated.{rank:02d}.pth")
        else:
            name = f"consolidated.{rank:02d}-of-{len(states):02d}.{kind}.pth"
            torch.save({"model": state}, folder / name)
    return folder


def model(ranks: int, dtype: torch.dtype = torch.float32) -> Meta:
    with default_tensor_type(dtype=dtype, device="cpu"):
        return Meta(ranks)


def assert_holds(got: nn.Module, expected: dict[str, torch.Tensor], dtype: torch.dtype) -> None:
    state = got.state_dict()
    assert list(state) == list(expected)
    for name, tensor in expected.items():
        assert_same_bits(tensor.to(dtype), state[name], name)


@pytest.mark.parametrize("kind", ["meta", "model"])
@pytest.mark.parametrize(("saved", "ranks"), [(1, 1), (2, 2), (4, 2), (2, 4), (4, 1), (1, 4)])
def test_every_rank_gets_its_part(kind: str, saved: int, ranks: int, tmp_path: Path) -> None:
    state = whole(1)
    folder = write(tmp_path / "base", parts(state, saved), kind)
    for rank, expected in enumerate(parts(state, ranks)):
        got = model(ranks)
        result = load_tensor_parallel_model_list(got, [folder], rank=rank, world_size=ranks)
        assert result == {"missing_keys": [], "unexpected_keys": []}
        assert_holds(got, expected, torch.float32)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_differences_are_added_in_the_models_dtype(dtype: torch.dtype, tmp_path: Path) -> None:
    base, diff, second = whole(1), whole(2, 1e-3), whole(3, 1e-3)
    del second["llma.block.w1.bias"]
    paths = [
        write(tmp_path / "base", parts(base, 2), "meta"),
        write(tmp_path / "diff", parts(diff, 4), "model-diff"),
        write(tmp_path / "second", parts(second, 1), "model-diff"),
    ]
    expected = {}
    for name, tensor in base.items():
        value = tensor.to(dtype) + diff[name].to(dtype)
        expected[name] = value + second[name].to(dtype) if name in second else value
    for rank, part in enumerate(parts(expected, 2)):
        got = model(2, dtype)
        load_tensor_parallel_model_list(got, paths, rank=rank, world_size=2)
        assert_holds(got, part, dtype)


def test_a_later_base_replaces_and_names_are_reported(tmp_path: Path) -> None:
    base, later = whole(1), whole(2)
    base["llma.more"] = torch.ones(2)
    del base["llma.block.norm.bias"]
    later = {name: later[name] for name in ("llma.block.w2.weight",)}
    paths = [
        write(tmp_path / "base", parts(base, 2), "model"),
        write(tmp_path / "later", parts(later, 2), "model"),
    ]
    torch.manual_seed(5)
    got = model(1)
    result = load_tensor_parallel_model_list(got, paths)
    assert result == {
        "missing_keys": ["llma.block.norm.bias"],
        "unexpected_keys": ["llma.more"],
    }
    torch.manual_seed(5)
    initial = Meta().state_dict()
    expected = {name: {**initial, **base, **later}[name] for name in initial}
    assert_holds(got, expected, torch.float32)


def test_a_name_that_only_the_differences_have_is_taken_as_it_is(tmp_path: Path) -> None:
    base, diff = whole(1), whole(2)
    del base["llma.block.norm.bias"]
    paths = [
        write(tmp_path / "base", parts(base, 2), "meta"),
        write(tmp_path / "diff", parts(diff, 2), "model-diff"),
    ]
    got = model(1)
    result = load_tensor_parallel_model_list(got, paths)
    assert result == {"missing_keys": [], "unexpected_keys": []}
    assert_holds(got, {k: base[k] + t if k in base else t for k, t in diff.items()}, torch.float32)


def test_one_folder_need_not_be_a_list(tmp_path: Path) -> None:
    state = whole(1)
    folder = write(tmp_path / "base", parts(state, 2), "meta")
    for path in (folder, str(folder)):
        got = model(1)
        load_tensor_parallel_model_list(got, path)
        assert_holds(got, state, torch.float32)


def test_contexts_inherit_what_they_are_not_told() -> None:
    assert default_tensor_type.get_current_materialization_device() == torch.device("cpu")
    with default_tensor_type(dtype=torch.bfloat16, device="cpu", is_meta=True):
        with default_tensor_type(is_meta=False):
            inner = torch.nn.Linear(3, 3)
        assert default_tensor_type.get_current_materialization_device() == torch.device("cpu")
        with default_tensor_type(dtype=torch.float16):
            other = torch.nn.Linear(3, 3)
    assert inner.weight.dtype is torch.bfloat16
    assert other.weight.dtype is torch.float16
    assert dormant.is_lazy(inner)
    assert torch.get_default_dtype() is torch.float32


def test_threads_have_contexts_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    # As if there were a GPU.
    monkeypatch.setattr(llama2_accessory, "check_device", lambda *_: None)
    device = default_tensor_type.get_current_materialization_device
    with default_tensor_type(device="cuda"), ThreadPoolExecutor(1) as other:
        assert device() == torch.device("cuda")
        assert other.submit(device).result() == torch.device("cpu")
        context = default_tensor_type(device="cpu")
        other.submit(context.__enter__).result()
        assert device() == torch.device("cuda")
        other.submit(context.__exit__, None, None, None).result()
    assert device() == torch.device("cpu")


def test_what_cannot_be_loaded_is_refused(tmp_path: Path) -> None:
    diff = write(tmp_path / "diff", [whole(1)], "model-diff")
    other = tmp_path / "other"
    other.mkdir()
    torch.save(whole(1), other / "weights.pth")
    got = model(1)
    with pytest.raises(ValueError, match="the first checkpoint"):
        load_tensor_parallel_model_list(got, [diff])
    with pytest.raises(ValueError, match=r"weights\.pth, expected consolidated"):
        load_tensor_parallel_model_list(got, [other])
    with pytest.raises(ValueError, match="not a folder"):
        load_tensor_parallel_model_list(got, [tmp_path / "nowhere"])
    with pytest.raises(ValueError, match="rank 3 of 2"):
        load_tensor_parallel_model_list(got, [diff], rank=3, world_size=2)
    with pytest.raises(ValueError, match="device must be"):
        default_tensor_type(device="meta")
    assert dormant.is_lazy(got)
