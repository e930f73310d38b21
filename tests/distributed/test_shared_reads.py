"""Ranks that need the same bytes of a checkpoint: each byte is read once, and all have all bits."""

from __future__ import annotations

import errno
import itertools
import math
import random
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from assertions import assert_came_to_life, assert_same_tensors, tensors_of
from jobs.models import SEED, Large, Layered
from jobs.shared import MODELS, Packable
from launch import RunRanks, check_others_after_a_kill
from torch import nn

from dormant.materialization.shared_reads import _schedule
from dormant.ranks.peers import Peers
from every_format import FORMATS, every_format
from range_server import serving

HERE = Path(__file__).parent


def eager_model(kind: str) -> nn.Module:
    torch.manual_seed(SEED)
    return MODELS[kind]()


def write(kind: str, path: Path, dtype: torch.dtype | None = None) -> int:
    """A checkpoint of other values, which lacks some; returns the bytes they take in the model."""
    state = {}
    nbytes = 0
    torch.manual_seed(1)
    for name, tensor in eager_model(kind).state_dict().items():
        if name in ("missing", "tied.head.weight"):  # the latter is the embedding
            continue
        floating = tensor.is_floating_point()
        other = torch.randn(tensor.shape) if floating else torch.arange(tensor.numel())
        state[name] = other.to(dtype if dtype is not None and floating else tensor.dtype)
        nbytes += tensor.nbytes
    safetensors.torch.save_file(state, path)
    return nbytes


def eager_state(kind: str, path: Path) -> dict[str, torch.Tensor]:
    model = eager_model(kind)
    model.load_state_dict(safetensors.torch.load_file(path), strict=False)
    return tensors_of(model)


@pytest.mark.parametrize("dtype", [None, torch.bfloat16], ids=["own dtype", "cast"])
@pytest.mark.parametrize("deferred", [False, True], ids=["load", "materialize"])
@pytest.mark.parametrize("world", [1, 2, 4])
def test_each_byte_is_read_once_for_all(
    run_ranks: RunRanks, tmp_path: Path, world: int, deferred: bool, dtype: torch.dtype | None
) -> None:
    path = tmp_path / "model.safetensors"
    nbytes = write("Shapes", path, dtype)
    ranks = run_ranks(
        world, "shared:load", kind="Shapes", way="DDP", path=str(path), deferred=deferred
    )
    state = eager_state("Shapes", path)
    for rank, result in enumerate(ranks):
        where = f"rank {rank}"
        assert result["lazy before"], where
        assert_came_to_life(result, where)
        assert_same_tensors(state, result["local"], where)
        for name, origin in result["origins"].items():
            drawn = name in ("missing", "steps")
            assert origin == ("initialized" if drawn else "checkpoint"), (where, name)
            assert bool(result["files"][name]) != drawn
        done, total = result["steps"][-1]
        assert done == total > 0
    if world > 1:
        assert sum(result["read"] for result in ranks) == nbytes
        assert all(result["read"] < nbytes * 0.75 for result in ranks)
        assert all("mapped" not in result["ways"].values() for result in ranks)


@pytest.mark.parametrize("tick", [1, 512, 1 << 20])
@pytest.mark.parametrize(
    ("world", "way", "readers"),
    [
        (2, "replicated", 2),
        (4, "replicated", 4),
        (4, "replicated twice", 4),
        (4, "HSDP", 2),
        (4, "DP x TP", 2),
        (4, "TP x DP", 2),
        (2, "HSDP", 2),
        (4, "FSDP", 1),
        (2, "wrapped DDP", 2),
    ],
)
def test_replicated_parts_are_read_once(
    run_ranks: RunRanks, tmp_path: Path, world: int, way: str, readers: int, tick: int
) -> None:
    path = tmp_path / "model.safetensors"
    write("Layered", path)
    ranks = run_ranks(world, "shared:compared", kind="Layered", way=way, path=str(path), tick=tick)
    for rank, result in enumerate(ranks):
        where = f"rank {rank}"
        assert_came_to_life(result, where)
        assert_same_tensors(result["without"], result["local"], where)
        assert_same_tensors(result["without"], result["later"]["local"], where)
    whole = sum(tensor.nbytes for result in ranks for tensor in result["local"].values())
    assert sum(result["read"] for result in ranks) * readers == whole
    assert sum(result["later"]["read"] for result in ranks) * readers == whole


@pytest.mark.parametrize("name", FORMATS)
def test_every_format(run_ranks: RunRanks, tmp_path: Path, name: str) -> None:
    torch.manual_seed(1)
    state = {key: torch.randn_like(tensor) for key, tensor in Packable().state_dict().items()}
    with every_format(tmp_path, state) as formats:
        written = formats[name]
        path = str(written.path)
        options = {"unexpected": "ignore", "dtype": None}
        call = {"kind": "Packable", "way": "DDP", "path": path, "options": options, "tick": 4096}
        (alone,) = run_ranks(1, "shared:load", **call)
        ranks = run_ranks(2, "shared:load", **call)
    for rank, result in enumerate(ranks):
        assert_same_tensors(alone["local"], result["local"], f"rank {rank}")
        assert_same_tensors(written.state, {n: result["local"][n] for n in written.state}, name)
    assert sum(result["read"] for result in ranks) == alone["read"] > 0


@pytest.mark.parametrize("world", [2, 4])
@pytest.mark.parametrize("quantized", ["nf4", "int8"])
def test_what_is_packed_is_read_once(
    run_ranks: RunRanks, path: Path, quantized: str, world: int
) -> None:
    call = {"kind": "Layered", "way": "DDP", "path": str(path), "quantized": quantized}
    (alone,) = run_ranks(1, "shared:load", **call)
    for deferred in (False, True):
        ranks = run_ranks(world, "shared:load", **call, deferred=deferred)
        for rank, result in enumerate(ranks):
            where = f"rank {rank}"
            assert_came_to_life(result, where)
            assert_same_tensors(alone["local"], result["local"], where)
            assert_same_tensors(alone["statistics"], result["statistics"], where)
            assert result["origins"] == alone["origins"]
        assert sum(result["read"] for result in ranks) == alone["read"]


@pytest.mark.parametrize("quantized", ["nf4", "int8"])
@pytest.mark.parametrize("world", [2, 4])
def test_packed_parts_are_read_by_one_of_their_replicas(
    run_ranks: RunRanks, path: Path, quantized: str, world: int
) -> None:
    call = {"kind": "Layered", "way": "HSDP", "path": str(path), "quantized": quantized}
    plain = run_ranks(world, "shared:load", **call, options={"share_reads": False})
    for deferred in (False, True):
        ranks = run_ranks(world, "shared:load", **call, deferred=deferred)
        for rank, result in enumerate(ranks):
            where = f"rank {rank}"
            assert_came_to_life(result, where)
            assert_same_tensors(plain[rank]["local"], result["local"], where)
            assert_same_tensors(plain[rank]["statistics"], result["statistics"], where)
            assert result["origins"] == plain[rank]["origins"]
            assert 0 < result["read"] < plain[rank]["read"]
        assert 2 * sum(each["read"] for each in ranks) == sum(each["read"] for each in plain)


@pytest.mark.skipif(not Path("/proc/self/io").exists(), reason="the system does not count bytes")
@pytest.mark.parametrize(
    ("world", "way", "quantized", "shards"),
    [(2, "DDP", None, 1), (4, "DDP", None, 1), (4, "HSDP", "nf4", 2), (4, "HSDP", "int8", 2)],
)
def test_the_system_reads_each_byte_once(
    run_ranks: RunRanks, tmp_path: Path, world: int, way: str, quantized: str | None, shards: int
) -> None:
    path = tmp_path / "model.safetensors"
    nbytes = write("Wide", path)
    for share in (False, True):
        call = {"path": str(path), "share": share, "way": way, "quantized": quantized}
        for read in run_ranks(world, "shared:bytes_read", **call):
            part = nbytes // (world if share else shards)
            assert part <= read < part + (1 << 16)


@pytest.mark.parametrize(
    "options", [{"mmap": "always"}, {"memory_budget": "64KiB"}, {"dtype": "auto"}], ids=str
)
def test_options(run_ranks: RunRanks, path: Path, options: dict[str, Any]) -> None:
    call = {"kind": "Layered", "way": "DDP", "path": str(path), "options": options}
    (alone,) = run_ranks(1, "shared:load", **call)
    for rank, result in enumerate(run_ranks(2, "shared:load", **call)):
        assert_same_tensors(alone["local"], result["local"], f"rank {rank}")
        assert set(result["ways"].values()) == {"tiles", "received"}


def test_each_tensor_goes_to_those_who_need_it(run_ranks: RunRanks, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    nbytes = write("Layered", path)
    for tick in (1, 1 << 20):
        ranks = run_ranks(
            4, "shared:compared", kind="Layered", way="mixed", path=str(path), tick=tick
        )
        for rank, result in enumerate(ranks):
            assert_same_tensors(result["without"], result["local"], f"rank {rank}")
            assert_same_tensors(result["without"], result["later"]["local"], f"rank {rank}")
        assert sum(result["read"] for result in ranks) == nbytes
        assert sum(result["later"]["read"] for result in ranks) == nbytes


def test_ranks_that_have_other_models_share_among_themselves(
    run_ranks: RunRanks, tmp_path: Path
) -> None:
    models: list[Any] = [Layered(), Layered()]
    del models[1].layers[0]
    paths = [str(tmp_path / f"{stage}.safetensors") for stage in range(2)]
    for model, path in zip(models, paths, strict=True):
        safetensors.torch.save_file(model.state_dict(), path)
    ranks = run_ranks(4, "shared:stages", paths=paths)
    for stage, model in enumerate(models):
        pair = ranks[2 * stage : 2 * stage + 2]
        for result in pair:
            assert_same_tensors(tensors_of(model), result["local"], f"stage {stage}")
        whole = sum(tensor.nbytes for tensor in model.state_dict().values())
        assert sum(result["read"] for result in pair) == whole


def test_parts_of_fsdp1_are_not_shared(run_ranks: RunRanks, tmp_path: Path) -> None:
    model = Layered()
    model.register_buffer("steps", torch.arange(4.0) + 1)
    safetensors.torch.save_file(model.state_dict(), tmp_path / "model.safetensors")
    ranks = run_ranks(2, "shared:flat", path=str(tmp_path / "model.safetensors"))
    for rank, result in enumerate(ranks):
        assert_same_tensors(result["without"], result["local"], f"rank {rank}")


def test_tensors_that_are_real_are_written_in_place(
    run_ranks: RunRanks, path: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other.safetensors"
    nbytes = write("Layered", other)
    for rank, result in enumerate(
        run_ranks(2, "shared:into_real", path=str(path), other=str(other))
    ):
        assert_same_tensors(eager_state("Layered", other), result["local"], f"rank {rank}")
        assert result["same memory"]
        assert result["read"] == nbytes  # each rank reads all


def test_a_server_is_asked_once_for_each_byte(run_ranks: RunRanks, tmp_path: Path) -> None:
    write("Wide", tmp_path / "model.safetensors")
    state = eager_state("Wide", tmp_path / "model.safetensors")
    with serving(tmp_path) as server:
        server.latency = 0.02
        url = f"{server.url}/model.safetensors"
        ranks = run_ranks(2, "shared:load", kind="Wide", way="DDP", path=url, tick=9 << 20)
        asked = server.asked("model.safetensors")
    for rank, result in enumerate(ranks):
        assert_same_tensors(state, result["local"], f"rank {rank}")
    opening = max(end for begin, end in asked if begin == 0)
    after = [(begin, end) for begin, end in asked if begin > 0]
    assert opening < 1 << 20
    assert all(end <= other for (_, end), (other, _) in itertools.pairwise(after))


def test_what_else_refers_to_a_tensor_sees_what_came(run_ranks: RunRanks, path: Path) -> None:
    for result in run_ranks(2, "shared:aliases", path=str(path)):
        assert all(result.values()), result


@pytest.mark.parametrize("way", ["DDP", "HSDP"])
@pytest.mark.parametrize("what", ["missing", "short", "names", "header"])
def test_a_rank_whose_file_is_bad(
    run_ranks: RunRanks, path: Path, tmp_path: Path, way: str, what: str
) -> None:
    bad = tmp_path / "bad.safetensors"
    if what == "short":
        bad.write_bytes(path.read_bytes()[:-100])
    elif what == "names":
        safetensors.torch.save_file({"other": torch.ones(1)}, bad)
    elif what == "header":
        bad.write_bytes(b"\xff" * 64)
    world = 4 if way == "HSDP" else 2
    ranks = run_ranks(world, "shared:one_fails", way=way, path=str(path), bad_path=str(bad))
    kinds = {"missing": "FileNotFoundError", "names": "KeyError"}
    for rank, result in enumerate(ranks):
        kind, message = result["error"]
        own = "NamesError" if what == "names" and rank == 1 else kinds.get(what, "ValueError")
        assert kind == own
        assert rank == 1 or "rank 1" in message
        assert result["errno"] == (errno.ENOENT if what == "missing" else None)
        assert result["seconds"] < 20
        assert result["lazy"] == list(Layered().state_dict())
        assert result["again"] == "None"
        if way == "DDP":
            assert_same_tensors(eager_state("Layered", path), result["local"], f"rank {rank}")


@pytest.mark.parametrize("way", ["DDP", "HSDP"])
def test_a_file_that_is_cut_off_later(
    run_ranks: RunRanks, path: Path, tmp_path: Path, way: str
) -> None:
    copy = tmp_path / "model.safetensors"
    copy.write_bytes(path.read_bytes())
    world = 4 if way == "HSDP" else 2
    ranks = run_ranks(world, "shared:cut_while_recorded", way=way, path=str(path), copy=str(copy))
    for rank, result in enumerate(ranks):
        kind, message = result["error"]
        assert kind == "ValueError"
        assert "when it was opened" in message
        assert rank == 1 or "This was on rank 1" in message
        assert result["lazy"] == list(Layered().state_dict())
        assert result["again"] == "None"
        if way == "DDP":
            assert_same_tensors(eager_state("Layered", path), result["local"], f"rank {rank}")


@pytest.mark.parametrize(
    ("way", "quantized"), [("DDP", None), ("DDP", "nf4"), ("HSDP", None), ("HSDP", "nf4")]
)
@pytest.mark.parametrize("kind", ["allocate", "read"])
@pytest.mark.parametrize("ranks", [[1], [0, 1]])
def test_a_failure_at_every_step(
    run_ranks: RunRanks,
    path: Path,
    way: str,
    quantized: str | None,
    kind: str,
    ranks: list[int],
) -> None:
    results = run_ranks(
        4 if way == "HSDP" else 2,
        "shared:every_step_fails",
        way=way,
        path=str(path),
        kind=kind,
        ranks=ranks,
        quantized=quantized,
        seconds=240,
    )
    first = results[0]
    assert any(name != "NoneType" for name in first["raised"])
    for result in results:
        for mine, theirs in zip(first["raised"], result["raised"], strict=True):
            # Either all have the model, or none.
            assert (mine == "NoneType") == (theirs == "NoneType"), (first, result)
        assert result["lazy"] == [
            0 if name == "NoneType" else result["parameters"] for name in result["raised"]
        ]


@pytest.mark.parametrize("way", ["DDP", "HSDP"])
@pytest.mark.parametrize("waiting", [False, True], ids=["reading", "waiting"])
def test_ctrl_c_on_one_rank(run_ranks: RunRanks, path: Path, way: str, waiting: bool) -> None:
    world = 4 if way == "HSDP" else 2
    for after in (1, 2) if waiting else (1, 2, 5):
        ranks = run_ranks(
            world, "shared:interrupted", way=way, path=str(path), after=after, waiting=waiting
        )
        for rank, result in enumerate(ranks):
            own = "KeyboardInterrupt" if rank == 1 else "RuntimeError: KeyboardInterrupt"
            assert result["error"].startswith(own), rank
            assert result["lazy"] == list(Layered().state_dict())
            assert result["again"] == "None"
            if way == "DDP":
                assert_same_tensors(eager_state("Layered", path), result["local"], str(rank))


@pytest.mark.parametrize("way", ["DDP", "FSDP"])
def test_ctrl_c_when_all_have_succeeded(run_ranks: RunRanks, path: Path, way: str) -> None:
    ranks = run_ranks(2, "shared:interrupted_at_the_end", way=way, path=str(path))
    assert [result["error"] for result in ranks] == ["NoneType", "KeyboardInterrupt"]
    for rank, result in enumerate(ranks):
        assert result["lazy"] == [], rank


@pytest.mark.parametrize("way", ["DDP", "HSDP"])
def test_a_rank_that_is_killed(path: Path, tmp_path: Path, way: str) -> None:
    world = 4 if way == "HSDP" else 2
    check_others_after_a_kill("shared", world, tmp_path, str(path), way)


@pytest.mark.parametrize("what", ["names", "file", "rows", "draws", "constants", "option"])
def test_ranks_that_would_read_different_bytes(
    run_ranks: RunRanks, path: Path, tmp_path: Path, what: str
) -> None:
    other = tmp_path / "other.safetensors"
    if what == "names":
        write("Shapes", other)
    else:
        other.write_bytes(path.read_bytes())
    messages = run_ranks(2, "shared:differing", what=what, path=str(path), other=str(other))
    for message, is_lazy in messages:
        assert is_lazy
        if what == "option":
            assert "share_reads is " in message
        else:
            assert "ranks 0 and 1 would read different bytes, first for " in message
            assert ("head.weight" in message) == (what in ("rows", "draws", "constants"))


@pytest.mark.parametrize(("way", "world", "share"), [("DDP", 2, 1), ("HSDP", 4, 2)])
def test_a_rank_takes_its_part(
    run_ranks: RunRanks, tmp_path: Path, way: str, world: int, share: int
) -> None:
    mib = 1 << 20
    for width, name in ((2048, "model"), (64, "model.small")):
        with torch.device("meta"):
            model = Large(width)
        state = {key: torch.ones(each.shape) for key, each in model.state_dict().items()}
        safetensors.torch.save_file(state, tmp_path / name)
    ranks = run_ranks(world, "shared:peak", way=way, path=str(tmp_path / "model"), width=2048)
    for result in ranks:
        assert result["part"] == 320 * mib // share
        assert result["part"] <= result["peak"] + mib
        assert result["peak"] <= result["part"] + 64 * mib, result


@pytest.mark.parametrize("readers", [1, 2, 3, 8])
def test_readers_get_runs_of_about_the_same_bytes(readers: int) -> None:
    generator = random.Random(5)
    for count in (1, 2, 7, 300):
        sizes = [generator.randrange(1, 1 << generator.randrange(1, 28)) for _ in range(count)]
        found = _schedule(sizes, readers)
        assert found == sorted(found)
        for reader in range(readers):
            own = [size for size, (who, _) in zip(sizes, found, strict=True) if who == reader]
            assert abs(sum(own) - sum(sizes) / readers) <= max(sizes)
            ticks = [tick for who, tick in found if who == reader]
            assert ticks[:1] in ([], [0])
            for tick in set(ticks):
                in_tick = sum(
                    size for size, task in zip(sizes, found, strict=True) if task == (reader, tick)
                )
                assert in_tick < 2 * max(64 << 20, *sizes)


@pytest.mark.parametrize("shape", [(1,), (5,), (2, 3), (3, 1, 2), (2, 2, 2)])
def test_all_peers_are_reached(shape: tuple[int, ...]) -> None:
    ranks = tuple(range(10, 10 + math.prod(shape)))
    places = dict(zip(ranks, itertools.product(*map(range, shape)), strict=True))
    for reader in ranks:
        have = {reader}
        of = {}
        for rank in ranks:
            # A group is told by its dimension and the place of its ranks along the others.
            groups: list[Any] = [_Group(shape, dim, places[rank]) for dim in range(len(shape))]
            of[rank] = Peers(ranks, tuple(groups)).hops(reader, rank)
        for dim in range(len(shape)):
            taking_part = {rank: hops[dim] for rank, hops in of.items() if hops[dim] is not None}
            for group, source in taking_part.values():
                members = {r for r in ranks if _Group(shape, dim, places[r]).key == group.key}
                assert source in members & have
                assert members <= set(taking_part)
            have |= set(taking_part)
        assert have == set(ranks)


class _Group:
    def __init__(self, shape: tuple[int, ...], dim: int, place: tuple[int, ...]) -> None:
        self._size = shape[dim]
        self.key = (dim, place[:dim], place[dim + 1 :])

    def size(self) -> int:
        return self._size
