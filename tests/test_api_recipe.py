"""Pickling lazy tensors: the recipe is written, and gives the same bits in another process."""

from __future__ import annotations

import errno
import gc
import io
import json
import os
import pickle
import subprocess
import sys
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any

import pytest
import torch
from torch import nn

import dormant
from compare import assert_same_bits
from dormant import _C, recipes
from dormant.recording import patches

pytestmark = pytest.mark.core


def dumps(obj: object, **options: Any) -> bytes:
    with recipes.pickling():
        return pickle.dumps(obj, **options)


def save(obj: object, file: Any, **options: Any) -> None:
    with recipes.pickling():
        torch.save(obj, file, **options)


LOADERS = {
    "save_recipe": (
        dormant.save_recipe,
        lambda path: dormant.load_recipe(path, weights_only=False),
    ),
    "pickle": (
        lambda model, path: path.write_bytes(dumps(model)),
        lambda path: pickle.loads(path.read_bytes()),
    ),
    "pickle protocol 2": (
        lambda model, path: path.write_bytes(dumps(model, protocol=2)),
        lambda path: pickle.loads(path.read_bytes()),
    ),
    "torch.save": (save, lambda path: torch.load(path, weights_only=False)),
    "legacy torch.save": (
        lambda model, path: save(model, path, _use_new_zipfile_serialization=False),
        lambda path: torch.load(path, weights_only=False),
    ),
}


def make() -> nn.Module:
    model = nn.Sequential(
        OrderedDict(
            embedding=nn.Embedding(50, 16, padding_idx=0),
            encoder=nn.TransformerEncoderLayer(16, 2, 32, batch_first=True),
            norm=nn.BatchNorm1d(16),
            head=nn.Linear(16, 50, bias=False),
        )
    )
    model.head.weight = model.embedding.weight
    table = torch.linspace(0, 1, 64).cos()
    model.register_buffer("left", table[:20])
    model.register_buffer("right", table[20:].view(4, 11).t())
    return model


REAL = "norm.num_batches_tracked"  # made by torch.tensor


def real_names(state: dict[str, torch.Tensor]) -> list[str]:
    return [name for name, tensor in state.items() if not dormant.is_lazy(tensor)]


def build(*, lazy: bool) -> Any:
    torch.manual_seed(11)
    if not lazy:
        return make()
    with dormant.lazy_init():
        return make()


def assert_equal_models(eager: Any, lazy: Any) -> None:
    expected, got = eager.state_dict(), lazy.state_dict()
    assert list(expected) == list(got)
    assert len(expected) == 21
    for name, tensor in expected.items():
        assert_same_bits(tensor, got[name], name)
        assert tensor.stride() == got[name].stride(), name


@pytest.mark.parametrize("way", LOADERS)
def test_a_model_comes_back_lazy_and_equal(way: str, tmp_path: Path) -> None:
    save, load = LOADERS[way]
    model = build(lazy=True)
    save(model, tmp_path / "model")
    assert real_names(model.state_dict()) == [REAL]
    loaded = load(tmp_path / "model")
    assert real_names(loaded.state_dict()) == [REAL]
    assert loaded.head.weight is loaded.embedding.weight
    dormant.materialize(loaded)
    assert_equal_models(build(lazy=False), loaded)
    loaded.left.zero_()
    assert loaded.right.any(), "the buffers are views of different parts"
    assert _C.storage_id(loaded.left) == _C.storage_id(loaded.right)


@pytest.mark.parametrize("way", ["pickle", "torch.save"])
def test_another_process_gets_the_same_bits(way: str, tmp_path: Path) -> None:
    LOADERS[way][0](build(lazy=True).state_dict(), tmp_path / "recipe")
    program = (
        "import sys, pickle, torch\n"
        f"path = {str(tmp_path / 'recipe')!r}\n"
        + (
            "state = pickle.load(open(path, 'rb'))\n"
            if way == "pickle"
            else "state = torch.load(path, weights_only=False)\n"
        )
        + "import dormant\n"
        f"assert [k for k, t in state.items() if not dormant.is_lazy(t)] == [{REAL!r}]\n"
        "torch.manual_seed(999)\n"
        "dormant.materialize(state)\n"
        f"torch.save(state, {str(tmp_path / 'values')!r})\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)
    values = torch.load(tmp_path / "values", weights_only=True)
    expected = build(lazy=False).state_dict()
    assert list(values) == list(expected)
    for name, tensor in expected.items():
        assert_same_bits(tensor, values[name], name)


def test_a_recipe_takes_kilobytes_for_each_tensor_whatever_its_size(tmp_path: Path) -> None:
    for width in (4, 4096):
        with dormant.lazy_init():
            model = nn.Sequential(*(nn.Linear(width, width) for _ in range(8)))
        dormant.save_recipe(model.state_dict(), tmp_path / "recipe")
        assert (tmp_path / "recipe").stat().st_size < 16 * 8 * 1024
        assert len(dumps(model)) < 16 * 8 * 1024


def test_captured_real_data_travels_along() -> None:
    source = torch.arange(12.0)
    with dormant.lazy_init():
        tensor = torch.empty(12)
        tensor.copy_(source).mul_(2)
    assert dormant.is_lazy(tensor)
    data = dumps(tensor)
    source.zero_()
    assert pickle.loads(data).tolist() == [2.0 * i for i in range(12)]


@pytest.mark.parametrize("way", LOADERS)
def test_captured_data_is_there_when_the_recipe_is_read(way: str, tmp_path: Path) -> None:
    write, read = LOADERS[way]
    real = {
        "turned": torch.arange(12.0).view(4, 3).t(),
        "complex": torch.complex(torch.ones(3), torch.tensor([1.0, -0.0, float("nan")])).conj(),
        "bits": torch.tensor([True, False, True]),
        "half": torch.tensor(0.1, dtype=torch.bfloat16),
        "empty": torch.ones(0, 3),
    }
    with dormant.lazy_init():
        made = {
            "turned": torch.ones(3, 4) / real["turned"],
            "complex": torch.ones(3) * real["complex"],
            "bits": torch.ones(3).masked_fill(real["bits"], 2.5),
            "half": torch.ones(2, dtype=torch.bfloat16) - real["half"],
            "empty": torch.cat([torch.ones(1, 3), real["empty"]]),
            "number": torch.ones(2) / -2.5,
        }
    lazy = {name for name, tensor in made.items() if dormant.is_lazy(tensor)}
    assert lazy >= {"turned", "bits", "half", "number"}
    write(made, tmp_path / "made")
    with dormant.lazy_init():
        loaded = read(tmp_path / "made")
    assert all(dormant.is_lazy(loaded[name]) for name in lazy)
    for name, tensor in made.items():
        assert_same_bits(tensor.clone(), loaded[name], name)
        assert tensor.stride() == loaded[name].stride(), name


def test_draws_by_lazy_parameters_are_not_kept_as_a_recipe() -> None:
    with dormant.lazy_init():
        drawn = torch.bernoulli(torch.full((3,), 0.5))
    with pytest.raises(NotImplementedError, match=r"bernoulli.*materialize"):
        dumps(drawn)
    dormant.materialize(drawn)
    assert_same_bits(drawn, pickle.loads(dumps(drawn)))


def test_real_tensors_of_a_lazy_model_are_pickled_as_usual() -> None:
    model = build(lazy=True)
    dormant.materialize(model.norm)
    loaded = pickle.loads(dumps(model))
    assert not dormant.is_lazy(loaded.norm)
    assert dormant.is_lazy(loaded.embedding.weight)
    dormant.materialize(loaded)
    assert_equal_models(build(lazy=False), loaded)


def test_a_loaded_recipe_can_be_pickled_again() -> None:
    once = pickle.loads(dumps(build(lazy=True)))
    twice = pickle.loads(dumps(once))
    del once
    dormant.materialize(twice)
    assert_equal_models(build(lazy=False), twice)


def test_a_loaded_tensor_can_be_written_and_read_like_any_lazy_tensor() -> None:
    with dormant.lazy_init():
        tensor = torch.ones(4)
    loaded = pickle.loads(dumps(tensor))
    loaded[1:].fill_(3)
    assert dormant.is_lazy(loaded)
    loaded.mul_(2)
    assert loaded.tolist() == [2.0, 6.0, 6.0, 6.0]
    assert dormant.is_lazy(tensor)


class Tagged(nn.Parameter):
    pass


def test_classes_attributes_and_requires_grad_survive() -> None:
    with dormant.lazy_init():
        parameter: Any = nn.Parameter(torch.zeros(3), requires_grad=False)
        parameter.tag = {"layer": 3}
        tagged: Any = Tagged(torch.ones(2))
        tensor: Any = torch.ones(2, requires_grad=True)
        tensor.tag = "plain"
    for original in (parameter, tagged, tensor):
        loaded = pickle.loads(dumps(original))
        assert isinstance(loaded, nn.Parameter) == isinstance(original, nn.Parameter)
        assert loaded.requires_grad == original.requires_grad
        assert loaded.__dict__ == original.__dict__
        assert dormant.is_lazy(loaded)
        assert loaded.tolist() == original.tolist()


def test_a_class_is_what_it_is_for_a_real_tensor() -> None:
    with dormant.lazy_init():
        lazy = Tagged(torch.ones(2))
    assert type(pickle.loads(dumps(lazy))) is type(pickle.loads(dumps(Tagged(torch.ones(2)))))


def test_conjugate_views_survive() -> None:
    with dormant.lazy_init():
        torch.manual_seed(0)
        lazy = torch.randn(4, dtype=torch.complex64).conj()
    torch.manual_seed(0)
    eager = torch.randn(4, dtype=torch.complex64).conj()
    loaded = pickle.loads(dumps(lazy))
    dormant.materialize(loaded)
    assert_same_bits(eager.resolve_conj(), loaded.resolve_conj())


def test_the_recipe_of_a_storage_that_came_to_life_meanwhile_has_its_values() -> None:
    with dormant.lazy_init():
        tensor = torch.arange(3.0)
    with recipes.pickling():
        reduced = tensor.__reduce_ex__(2)
    dormant.materialize(tensor)
    function, arguments = pickle.loads(pickle.dumps(reduced))[:2]
    assert function(*arguments).tolist() == [0.0, 1.0, 2.0]


def saved_state() -> io.BytesIO:
    file = io.BytesIO()
    save(build(lazy=True).state_dict(), file)
    file.seek(0)
    return file


def test_weights_only_refuses_a_recipe_and_names_what_to_allow() -> None:
    with pytest.raises(pickle.UnpicklingError, match=r"dormant\.recipes\.\w+"):
        torch.load(saved_state(), weights_only=True)


def test_weights_only_loads_a_recipe_once_it_is_allowed() -> None:
    with torch.serialization.safe_globals(recipes.safe_globals()):
        state = torch.load(saved_state(), weights_only=True)
    assert real_names(state) == [REAL]
    dormant.materialize(state)
    expected = build(lazy=False).state_dict()
    for name, tensor in expected.items():
        assert_same_bits(tensor, state[name], name)


def document(tensor: torch.Tensor) -> Any:
    return json.loads(_C.dump(tensor)[0])


def lazy_normal() -> torch.Tensor:
    with dormant.lazy_init():
        return torch.empty(20).normal_()


def test_an_operator_that_recipes_may_not_run_is_refused() -> None:
    text = json.dumps(document(lazy_normal()))
    assert "aten::normal_" in text
    for operator in ("aten::from_file", "aten::_no_such_operator"):
        changed = text.replace("aten::normal_", operator).encode()
        with pytest.raises(ValueError, match=operator):
            recipes.load_storage(changed, [])


def test_another_version_is_refused() -> None:
    content = document(lazy_normal())
    assert content["version"] == 2
    content["version"] = 10_000
    with pytest.raises(ValueError, match="10000"):
        recipes.load_storage(json.dumps(content).encode(), [])


@pytest.mark.parametrize(
    "damage", [b"", b"{", b"[]", b"null", b'"text"', b"\xff\xfe", b"{}", b"[" * 100_000]
)
def test_a_damaged_document_is_refused(damage: bytes) -> None:
    with pytest.raises(ValueError, match="recipe"):
        recipes.load_storage(damage, [])


def test_a_document_cut_anywhere_is_refused() -> None:
    whole, tensors = _C.dump(lazy_normal())
    for length in range(0, len(whole) - 1, max(1, len(whole) // 50)):
        with pytest.raises(ValueError, match="recipe"):
            recipes.load_storage(whole[:length], [recipes._packed(tensor) for tensor in tensors])


def test_loading_puts_the_patches_in_place_and_materializing_takes_them_away() -> None:
    data = dumps(lazy_normal())
    gc.collect()
    patches.uninstall_if_idle()
    assert patches.installed() == []
    loaded = pickle.loads(data)
    assert patches.installed()
    assert len(loaded.tolist()) == 20
    assert patches.installed() == []


# ---- save_recipe and load_recipe


def test_load_recipe_needs_no_permission_and_leaves_none(tmp_path: Path) -> None:
    dormant.save_recipe(build(lazy=True).state_dict(), tmp_path / "recipe")
    allowed = set(torch.serialization.get_safe_globals())
    state = dormant.load_recipe(tmp_path / "recipe")
    assert set(torch.serialization.get_safe_globals()) == allowed
    assert real_names(state) == [REAL]
    dormant.materialize(state)
    for name, tensor in build(lazy=False).state_dict().items():
        assert_same_bits(tensor, state[name], name)


def test_load_recipe_keeps_what_a_user_has_allowed(tmp_path: Path) -> None:
    dormant.save_recipe(lazy_normal(), tmp_path / "recipe")
    with torch.serialization.safe_globals(recipes.safe_globals()):
        dormant.load_recipe(tmp_path / "recipe")
        assert dormant.is_lazy(torch.load(tmp_path / "recipe"))


@pytest.mark.threads
def test_threads_load_recipes_at_a_time(tmp_path: Path) -> None:
    dormant.save_recipe({"a": lazy_normal()}, tmp_path / "recipe")
    with ThreadPoolExecutor(4) as pool:
        loaded = list(pool.map(dormant.load_recipe, [tmp_path / "recipe"] * 40))
    assert all(dormant.is_lazy(one["a"]) for one in loaded)


@pytest.mark.threads
def test_other_threads_pickle_values_meanwhile() -> None:
    tensor = lazy_normal()
    with recipes.pickling(), ThreadPoolExecutor(1) as pool:
        elsewhere = pool.submit(pickle.dumps, tensor).result()
        here = pickle.dumps(tensor)
    assert dormant.is_lazy(pickle.loads(here))
    assert not dormant.is_lazy(pickle.loads(elsewhere))


def test_load_recipe_inside_the_context(tmp_path: Path) -> None:
    dormant.save_recipe({"a": lazy_normal(), "real": torch.ones(3)}, tmp_path / "recipe")
    with dormant.lazy_init():
        loaded = dormant.load_recipe(tmp_path / "recipe")
    assert dormant.is_lazy(loaded["a"])
    assert loaded["real"].tolist() == [1.0] * 3


def test_a_whole_model_needs_trust(tmp_path: Path) -> None:
    dormant.save_recipe(build(lazy=True), tmp_path / "recipe")
    with pytest.raises(ValueError, match=r"recipe asks for torch\.nn.*weights_only=False"):
        dormant.load_recipe(tmp_path / "recipe")


def test_a_damaged_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "recipe"
    dormant.save_recipe({"a": lazy_normal()}, path)
    whole = path.read_bytes()
    for length in (0, 4, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"load_recipe: .*recipe cannot be read"):
            dormant.load_recipe(path)
    with pytest.raises(FileNotFoundError):
        dormant.load_recipe(tmp_path / "none")


def test_a_file_that_leads_before_its_beginning_is_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "recipe"
    dormant.save_recipe({"a": lazy_normal()}, path)

    def fail(error: int) -> Callable[..., Any]:
        def load(file: IO[bytes], **options: Any) -> Any:
            if error == errno.EINVAL:
                os.lseek(file.fileno(), -1, os.SEEK_SET)
            raise OSError(error, os.strerror(error))

        return load

    monkeypatch.setattr(torch, "load", fail(errno.EINVAL))
    with pytest.raises(ValueError, match=r"load_recipe: .*recipe cannot be read"):
        dormant.load_recipe(path)
    monkeypatch.setattr(torch, "load", fail(errno.EIO))
    with pytest.raises(OSError, match="Input/output error"):
        dormant.load_recipe(path)


def test_one_state_dict_gives_the_same_file_under_any_name(tmp_path: Path) -> None:
    state = build(lazy=True).state_dict()
    dormant.save_recipe(state, tmp_path / "one")
    dormant.save_recipe(state, tmp_path / "other.recipe")
    assert (tmp_path / "one").read_bytes() == (tmp_path / "other.recipe").read_bytes()


def test_what_cannot_be_written_leaves_the_file_that_was_there(tmp_path: Path) -> None:
    dormant.save_recipe({"a": lazy_normal()}, tmp_path / "recipe")
    before = (tmp_path / "recipe").read_bytes()
    with dormant.lazy_init():
        drawn = torch.bernoulli(torch.full((3,), 0.5))
    with pytest.raises(NotImplementedError, match="bernoulli"):
        dormant.save_recipe({"first": torch.ones(2), "second": drawn}, tmp_path / "recipe")
    assert (tmp_path / "recipe").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["recipe"]


@pytest.mark.parametrize("legacy", [False, True])
def test_load_says_that_a_recipe_is_one(legacy: bool, tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    save(build(lazy=True).state_dict(), path, _use_new_zipfile_serialization=not legacy)
    message = r"model\.pt.* is a recipe and .*dormant\.load_recipe"
    with pytest.raises(ValueError, match=message):
        dormant.open_checkpoint(path)
    model = build(lazy=True)
    with pytest.raises(ValueError, match=message):
        dormant.load(model, path)
    assert real_names(model.state_dict()) == [REAL]


CHILD = """
import multiprocessing, sys, torch, dormant

def look(tensor, queue):
    queue.put((dormant.is_lazy(tensor), tensor.sum().item()))

if __name__ == "__main__":
    with dormant.lazy_init():
        torch.manual_seed(0)
        tensor = torch.randn(1000)
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    process = context.Process(target=look, args=(tensor, queue))
    with dormant.recipes.pickling():
        process.start()
    print(*queue.get(), dormant.is_lazy(tensor), tensor.sum().item())
    process.join()
    process = context.Process(target=look, args=(tensor, queue))
    process.start()
    print(*queue.get())
    process.join()
"""


@pytest.mark.threads
def test_a_spawned_process_gets_a_recipe(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(CHILD)
    result = subprocess.run(
        [sys.executable, tmp_path / "program.py"],
        capture_output=True,
        text=True,
        timeout=240,
        check=True,
    )
    first, second = (line.split() for line in result.stdout.splitlines())
    assert first[0] == first[2] == "True"
    assert second[0] == "False"
    assert first[1] == first[3] == second[1]
