"""`save` to a file of torch.save: it loads as what torch.save writes, and streams."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import dormant
from compare import assert_same_bits
from living import live_storages

DTYPES = [*torch.storage._dtype_to_storage_type_map(), *torch.storage._new_dtypes()]


def supported(dtype: torch.dtype) -> bool:
    return not str(dtype).startswith(("torch.q", "torch.bits"))


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(20, 8)
        self.norm = nn.BatchNorm1d(8)
        self.head = nn.Linear(8, 20, bias=False)
        self.head.weight = self.embedding.weight
        self.turned = nn.Parameter(torch.empty(8, 6).normal_().t())
        self.register_buffer("rows", torch.empty(10, 4).normal_())
        self.register_buffer("window", self.rows[2:6])  # type: ignore[index]
        self.register_buffer("columns", torch.empty(6, 9).normal_()[:, ::3])

    def get_extra_state(self) -> dict[str, Any]:
        return {"step": 3, "names": ["a", "b"], "inside": torch.arange(4)}


def nested() -> dict[str, Any]:
    model = Model()
    weight = nn.Parameter(torch.empty(3, 3).uniform_())
    return {
        "model": model.state_dict(),
        "epoch": 7,
        "best": {"weight": weight, "again": weight, "mean": weight.detach()},
        "list": [torch.zeros(2), (torch.ones(1), None)],
    }


def views() -> dict[str, torch.Tensor]:
    table = torch.empty(30, 20).normal_()
    waves = torch.empty(40, dtype=torch.complex64).normal_()
    return {
        "table": table,
        "transposed": table.t(),
        "rows": table[10:20],
        "columns": table[:, 3:7],
        "expanded": torch.empty(1, 4).normal_().expand(5, 4),
        "conjugate": waves.conj(),
        "cast": table.to(torch.bfloat16),
        "replayed": torch.empty(9).normal_().cumsum(0),
        "empty": torch.empty(0, 4),
        "scalar": torch.empty(()).normal_(),
    }


def dtypes() -> dict[str, torch.Tensor]:
    raw = torch.empty(6, 16).normal_().to(torch.uint8)
    return {str(d): raw.clone().bool() if d is torch.bool else raw.clone().view(d)
            for d in DTYPES if supported(d)}  # fmt: skip


BUILDS: list[Callable[[], Any]] = [lambda: Model().state_dict(), nested, views, dtypes]


def assert_same(got: Any, expected: Any, place: str = "") -> None:
    assert type(got) is type(expected), place
    if isinstance(expected, torch.Tensor):
        assert got.requires_grad == expected.requires_grad, place
        assert_same_bits(
            expected.detach().resolve_conj().resolve_neg().contiguous(),
            got.detach().resolve_conj().resolve_neg().contiguous(),
            place,
        )
    elif isinstance(expected, dict):
        assert list(got) == list(expected), place
        assert getattr(got, "_metadata", None) == getattr(expected, "_metadata", None)
        for key in expected:
            assert_same(got[key], expected[key], f"{place}.{key}")
    elif isinstance(expected, (list, tuple)):
        for i, (one, other) in enumerate(zip(got, expected, strict=True)):
            assert_same(one, other, f"{place}.{i}")
    else:
        assert got == expected, place


@pytest.mark.parametrize("mmap", [False, True])
@pytest.mark.parametrize("lazily", [False, True])
@pytest.mark.parametrize("build", BUILDS, ids=["model", "nested", "views", "dtypes"])
def test_it_loads_as_what_torch_save_writes(
    build: Callable[[], Any], lazily: bool, mmap: bool, tmp_path: Path
) -> None:
    torch.manual_seed(1)
    torch.save(build(), tmp_path / "expected.pt")
    torch.manual_seed(1)
    if lazily:
        with dormant.lazy_init():
            state = build()
    else:
        state = build()
    before = live_storages()
    dormant.save(state, tmp_path / "got.pt")
    assert dormant._C.live_storages() == before
    expected = torch.load(tmp_path / "expected.pt", weights_only=True)
    got = torch.load(tmp_path / "got.pt", weights_only=True, mmap=mmap)
    assert_same(got, expected)


@pytest.mark.parametrize("ending", ["pt", "pth", "bin"])
def test_a_module_gives_its_state_dict(ending: str, tmp_path: Path) -> None:
    torch.manual_seed(1)
    with dormant.lazy_init():
        lazy = Model()
    report = dormant.save(lazy, tmp_path / f"a/b/model.{ending}")
    assert dormant.is_lazy(lazy.head.weight)
    state = torch.load(tmp_path / f"a/b/model.{ending}", weights_only=True)
    torch.manual_seed(1)
    expected = Model().state_dict()
    assert type(state) is OrderedDict
    assert_same(state, expected)
    assert {"embedding.weight", "head.weight"} in [set(t.names) for t in report.tensors]


def test_tensors_that_share_elements_share_them_when_they_are_loaded(tmp_path: Path) -> None:
    with dormant.lazy_init():
        model = Model()
    dormant.save(model, tmp_path / "model.pt")
    state = torch.load(tmp_path / "model.pt", weights_only=True)
    assert state["head.weight"].data_ptr() == state["embedding.weight"].data_ptr()
    state["rows"].zero_()
    assert state["window"].count_nonzero() == 0
    assert state["turned"].stride() == (1, 6)
    # Of a view that nothing overlaps, just its elements.
    assert state["columns"].untyped_storage().nbytes() == 6 * 3 * 4


def test_views_in_other_dtypes_are_written_where_torch_save_refuses(tmp_path: Path) -> None:
    waves = torch.randn(40, dtype=torch.complex64)
    state = {"waves": waves, "imaginary": waves.conj().imag, "bits": waves.view(torch.int32)}
    dormant.save(state, tmp_path / "a.pt")
    got = torch.load(tmp_path / "a.pt", weights_only=True)
    for name, tensor in state.items():
        assert torch.equal(got[name], tensor), name


def test_what_the_format_cannot_hold_is_listed(tmp_path: Path) -> None:
    state = {
        "fine": torch.zeros(2),
        "sparse": torch.eye(3).to_sparse(),
        "meta": torch.empty(3, device="meta"),
        "quantized": torch.quantize_per_tensor(torch.zeros(2), 0.1, 0, torch.qint8),
        "shapeless": nn.LazyLinear(3).weight,
        "inside": [torch.empty(3, device="meta")],
    }
    with pytest.raises(ValueError, match="cannot hold 5 of 6") as caught:
        dormant.save(state, tmp_path / "a.pt")
    for name in ("sparse", "meta", "quantized", "shapeless"):
        assert repr(name) in str(caught.value)
    with pytest.raises(ValueError, match="cannot be pickled"):
        dormant.save({"function": lambda: None}, tmp_path / "a.pt")
    assert not list(tmp_path.iterdir())


def test_a_budget_holds_for_a_torch_file_too(tmp_path: Path) -> None:
    with dormant.lazy_init():
        state = {"a": torch.empty(300, 500).normal_()}
    with pytest.raises(ValueError, match="save: memory_budget=1 bytes is too small"):
        dormant.save(state, tmp_path / "a.pt", memory_budget=1)
    assert not list(tmp_path.iterdir())
    steps: list[tuple[int, int]] = []
    dormant.save(state, tmp_path / "a.pt", progress=lambda *step: steps.append(step))
    assert steps == sorted(steps)
    assert steps[-1] == (600_000, 600_000)
