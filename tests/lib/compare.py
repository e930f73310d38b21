"""Lazy construction against eager construction, bit for bit.

`compare(build)` runs `build` eagerly and inside `dormant.lazy_init` under the same seeds and fails
at the first thing that differs: generator states, names, ties, geometry, versions, and every byte
of every tensor after materializing in a shuffled order, as a whole, and one tensor alone.
"""

from __future__ import annotations

import functools
import gc
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NoReturn, TypeVar, cast

import numpy
import torch

import dormant
from reachable import Holdings, holdings

Order = Literal["shuffled", "whole", "alone"]
Build = Callable[[], Any]
F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True)
class Comparison:
    """What was compared; a test that compared nothing has to fail, so look at the counts.

    Attributes:
      tensors: distinct tensor objects.
      nbytes: bytes of their distinct storages.
      lazy_bytes: bytes of storages that had no memory before materializing.
      reads: operators that read values while recording, with the bytes they materialized.
    """

    tensors: int
    nbytes: int
    lazy_bytes: int
    reads: dict[str, int]

    @property
    def lazy_rate(self) -> float:
        """Share of the bytes that was still lazy before materializing; 1 where there are none."""
        return self.lazy_bytes / self.nbytes if self.nbytes else 1.0


@dataclass
class _Built:
    """One construction: the objects, and the generator states it left behind."""

    root: Any
    held: Holdings
    generators: dict[str, Any]


class _Failure:
    """Raises with the build, the seed and the order in every message."""

    def __init__(self, seed: int, order: str) -> None:
        self._suffix = f" (seed {seed}, {order})"

    def __call__(self, text: str) -> NoReturn:
        raise AssertionError(text + self._suffix)


def _seed_all(seed: int) -> None:
    torch.default_generator.manual_seed(seed)  # torch.manual_seed formats a traceback for CUDA
    numpy.random.seed(seed)
    random.seed(seed)


def _construct(build: Build, seed: int, *, lazy: bool) -> _Built:
    """Builds once and puts the default dtype back, which a build may leave changed."""
    dtype = torch.get_default_dtype()
    _seed_all(seed)
    try:
        if lazy:
            with dormant.lazy_init():
                root = build()
        else:
            root = build()
    finally:
        torch.set_default_dtype(dtype)
    legacy = numpy.random.get_state(legacy=True)
    states = {
        "torch": torch.get_rng_state().numpy().tobytes(),
        "numpy": (legacy[1].tobytes(), *legacy[2:]),
        "random": random.getstate(),
    }
    return _Built(root, holdings(root), states)


def _strided(tensor: torch.Tensor) -> bool:
    return (
        tensor.layout is torch.strided
        and not tensor.is_quantized
        and not tensor.is_nested
        and not tensor.is_mkldnn
    )


def _untouched(function: F) -> F:
    """Runs without `__torch_function__`, since an UninitializedParameter refuses even `shape`."""

    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        with torch._C.DisableTorchFunctionSubclass():
            return function(*args, **kwargs)

    return cast(F, run)


@_untouched
def storage_key(tensor: torch.Tensor) -> int:
    """Identity of the StorageImpl of a strided tensor; touches no data."""
    return int(tensor.untyped_storage()._cdata)


@_untouched
def geometry(tensor: torch.Tensor) -> dict[str, Any]:
    """Everything about a tensor but its values."""
    facts: dict[str, Any] = {
        "class": type(tensor).__name__,
        "dtype": tensor.dtype,
        "device": tensor.device,
        "requires_grad": tensor.requires_grad,
        "is_leaf": tensor.is_leaf,
        "grad_fn": type(tensor.grad_fn).__name__,
        "layout": tensor.layout,
        "is_inference": tensor.is_inference(),
        "python attributes": sorted(tensor.__dict__),
    }
    if not tensor.is_nested:
        facts["shape"] = tuple(tensor.size())
    if not tensor.is_inference():
        facts["_version"] = tensor._version
    if _strided(tensor):
        facts |= {
            "strides": tensor.stride(),
            "storage_offset": tensor.storage_offset(),
            "storage bytes": tensor.untyped_storage().nbytes(),
            "is_conj": tensor.is_conj(),
            "is_neg": tensor.is_neg(),
            "is_view": tensor._is_view(),
        }
    return facts


@_untouched
def components(tensor: torch.Tensor) -> dict[str, torch.Tensor]:
    """The strided tensors that carry a tensor's values, by the part they play."""
    if tensor.is_nested:
        return {f"[{i}]": part for i, part in enumerate(tensor.unbind())}
    if tensor.layout is torch.sparse_coo:
        return {"indices": tensor._indices(), "values": tensor._values()}
    if tensor.layout in (torch.sparse_csr, torch.sparse_bsr):
        return {
            "crow_indices": tensor.crow_indices(),
            "col_indices": tensor.col_indices(),
            "values": tensor.values(),
        }
    if tensor.layout in (torch.sparse_csc, torch.sparse_bsc):
        return {
            "ccol_indices": tensor.ccol_indices(),
            "row_indices": tensor.row_indices(),
            "values": tensor.values(),
        }
    if tensor.is_mkldnn:
        return {"dense": tensor.to_dense()}
    if tensor.is_quantized:
        parts = {"int_repr": tensor.int_repr()}
        if tensor.qscheme() in (torch.per_channel_affine, torch.per_channel_affine_float_qparams):
            return parts | {
                "scales": tensor.q_per_channel_scales(),
                "zero_points": tensor.q_per_channel_zero_points(),
            }
        return parts | {"scale": torch.tensor([tensor.q_scale(), tensor.q_zero_point()])}
    return {"": tensor}


@_untouched
def bits(tensor: torch.Tensor) -> torch.Tensor:
    """The elements of a strided tensor in row-major order as bytes, NaN payloads included."""
    with torch.no_grad():
        plain = tensor.detach().as_subclass(torch.Tensor).resolve_conj().resolve_neg()
        dense = torch.empty(plain.size(), dtype=plain.dtype, device=plain.device).copy_(plain)
        return dense.view(-1).view(torch.uint8)


def _storage_bits(tensor: torch.Tensor) -> torch.Tensor:
    return torch.empty(0, dtype=torch.uint8).set_(tensor.untyped_storage())  # type: ignore[call-overload,no-any-return]


def _describe_difference(expected: torch.Tensor, got: torch.Tensor) -> str:
    """First differing element, both values, and how many differ."""
    size = expected.element_size()
    differs = (bits(expected).view(-1, size) != bits(got).view(-1, size)).any(1)
    first = int(differs.nonzero()[0])
    index = numpy.unravel_index(first, tuple(expected.size())) if expected.dim() else ()
    with torch.no_grad():
        values = [t.detach().reshape(-1)[first].item() for t in (expected, got)]
    raw = [bits(t)[first * size : (first + 1) * size].tolist() for t in (expected, got)]
    return (
        f"at {tuple(int(i) for i in index)}: eager {values[0]!r} {raw[0]}, "
        f"materialized {values[1]!r} {raw[1]}; {int(differs.sum())} of {differs.numel()} differ"
    )


@_untouched
def assert_same_bits(
    expected: torch.Tensor, got: torch.Tensor, what: str = "tensor", fail: Any = None
) -> None:
    """Fails unless both tensors have the same dtype, shape and bits.

    Args:
      expected: the eager tensor.
      got: the tensor that was materialized.
      what: the name used in the message.
      fail: called with the message instead of raising AssertionError.
    """

    def stop(text: str) -> NoReturn:
        raise AssertionError(text)

    fail = fail or stop
    if expected.device.type == "meta" or got.device.type == "meta":
        if expected.device != got.device:
            fail(f"{what}: eager on {expected.device}, got {got.device}")
        return
    parts, others = components(expected), components(got)
    if parts.keys() != others.keys():
        fail(f"{what}: eager consists of {sorted(parts)}, got {sorted(others)}")
    for part, left in parts.items():
        right, where = others[part], f"{what} {part}".rstrip()
        if (left.dtype, left.size()) != (right.dtype, right.size()):
            fail(
                f"{where}: eager {left.dtype} {tuple(left.size())}, "
                f"got {right.dtype} {tuple(right.size())}"
            )
        if not torch.equal(bits(left), bits(right)):
            fail(f"{where} differs {_describe_difference(left, right)}")


def _ties(tensors: Mapping[str, torch.Tensor], key: Callable[[torch.Tensor], int]) -> dict:
    """For each name, the first name with the same key."""
    first: dict[int, str] = {}
    return {
        name: first.setdefault(key(tensor), name)
        for name, tensor in tensors.items()
        if key is id or _strided(tensor)
    }


@_untouched
def _compare_structure(eager: _Built, lazy: _Built, fail: _Failure, *, constants: bool) -> None:
    for name, state in eager.generators.items():
        if state != lazy.generators[name]:
            fail(f"the global generator of {name} differs after construction")
    left, right = eager.held, lazy.held
    if list(left.tensors) != list(right.tensors):
        missing = [name for name in left.tensors if name not in right.tensors]
        added = [name for name in right.tensors if name not in left.tensors]
        fail(f"names of tensors differ or are ordered otherwise: missing {missing}, new {added}")
    for name, tensor in left.tensors.items():
        expected, got = geometry(tensor), geometry(right.tensors[name])
        for fact in expected:
            if expected[fact] != got.get(fact):
                fail(f"{name}: {fact} is {expected[fact]} in eager, {got.get(fact)} lazily")
    for key, meaning in ((id, "object"), (storage_key, "storage")):
        expected, got = _ties(left.tensors, key), _ties(right.tensors, key)
        for name, other in expected.items():
            if got[name] != other:
                fail(f"{name} has the {meaning} of {other} in eager, of {got[name]} lazily")
    if left.generators.keys() != right.generators.keys():
        fail(f"generators differ: eager {list(left.generators)}, lazy {list(right.generators)}")
    for name, generator in left.generators.items():
        if not torch.equal(generator.get_state(), right.generators[name].get_state()):
            fail(f"the state of generator {name} differs")
    if constants:
        if left.constants.keys() != right.constants.keys():
            fail(f"numbers differ: {sorted(left.constants.keys() ^ right.constants.keys())}")
        for name, value in left.constants.items():
            other = right.constants[name]
            if numpy.asarray(value).tobytes() != numpy.asarray(other).tobytes():
                fail(f"{name} is {value!r} in eager, {other!r} lazily")


@_untouched
def _compare_values(
    eager: Holdings,
    lazy: Holdings,
    names: Sequence[str],
    fail: _Failure,
    unwritten: Mapping[str, str],
    padding: Mapping[str, str],
) -> None:
    for name in names:
        expected, got = eager.tensors[name], lazy.tensors[name]
        if name in unwritten:
            continue
        assert_same_bits(expected, got, name, fail)
    for name in names:
        expected, got = eager.tensors[name], lazy.tensors[name]
        if name in unwritten or name in padding:
            continue
        if _strided(expected) and expected.device.type == "cpu":
            left, right = _storage_bits(expected), _storage_bits(got)
            if not torch.equal(left, right):
                fail(f"the storage of {name} differs {_describe_difference(left, right)}")


@_untouched
def _assert_settled(tensors: Mapping[str, torch.Tensor], fail: _Failure, *, bases: bool) -> None:
    for name, tensor in tensors.items():
        if dormant.is_lazy(tensor):
            fail(f"{name} is still lazy after materialize")
        if dormant._C.carries_key(tensor):
            fail(f"{name} still carries the dispatch key after materialize")
        if bases and tensor._is_view() and not tensor.is_inference():
            base = tensor._base
            if base is not None and dormant._C.carries_key(base):
                fail(f"the base of {name} still carries the dispatch key after materialize")


@_untouched
def _measure(held: Holdings) -> Comparison:
    storages: dict[int, tuple[int, bool]] = {}
    for tensor in held.tensors.values():
        if _strided(tensor):
            nbytes = tensor.untyped_storage().nbytes() if tensor.device.type != "meta" else 0
            storages[storage_key(tensor)] = nbytes, dormant.is_lazy(tensor)
        else:
            nbytes = sum(part.untyped_storage().nbytes() for part in components(tensor).values())
            storages[id(tensor)] = nbytes, dormant.is_lazy(tensor)
    return Comparison(
        tensors=len({id(tensor) for tensor in held.tensors.values()}),
        nbytes=sum(nbytes for nbytes, _ in storages.values()),
        lazy_bytes=sum(nbytes for nbytes, lazy in storages.values() if lazy),
        reads=dict(dormant._C.value_reads()),
    )


def _materialize(built: _Built, order: Order, shuffle: int, fail: _Failure) -> list[str]:
    """Materializes in the given order; returns the names whose values can now be compared."""
    names = list(built.held.tensors)
    choose = random.Random(shuffle)
    if order == "whole":
        before = {name: id(tensor) for name, tensor in built.held.tensors.items()}
        single = isinstance(built.root, (torch.nn.Module, torch.Tensor))
        dormant.materialize(built.root if single else list(built.held.tensors.values()))
        after = {name: id(tensor) for name, tensor in holdings(built.root).tensors.items()}
        if before != after:
            changed = [name for name in before if before[name] != after.get(name)]
            fail(f"materialize replaced the objects of {changed}")
        _assert_settled(built.held.tensors, fail, bases=True)
        return names
    if order == "alone":
        # Everything else dies first: what the survivor's values need must have been kept.
        names = [choose.choice(names)]
        built.held.tensors = {name: built.held.tensors[name] for name in names}
        built.root = None
        gc.collect(1)  # what this build made is young; a full collection takes far longer
    choose.shuffle(names)
    for name in names:
        dormant.materialize(built.held.tensors[name])
    _assert_settled(built.held.tensors, fail, bases=False)
    return names


def build_both(build: Build) -> tuple[Any, Any]:
    """Builds eagerly and lazily under one seed, for tests that go on to use both.

    Returns:
      The eager object and the lazy one; the generator was left in the same state.
    """
    torch.manual_seed(0)
    eager = build()
    state = torch.get_rng_state()
    torch.manual_seed(0)
    with dormant.lazy_init():
        lazy = build()
    assert torch.equal(state, torch.get_rng_state())
    return eager, lazy


def compare(
    build: Build,
    *,
    seed: int = 0,
    shuffle: int = 0,
    expect_lazy: float | None = 1.0,
    orders: Sequence[Order] = ("shuffled", "whole", "alone"),
    unwritten: Mapping[str, str] | None = None,
    padding: Mapping[str, str] | None = None,
    constants: bool = True,
    min_tensors: int = 1,
    min_bytes: int = 1,
) -> Comparison:
    """Builds eagerly and lazily under the same seeds and compares everything that can be seen.

    Args:
      build: makes the objects; called without arguments, once eagerly and once for each order.
      seed: for torch, numpy and `random` before each construction.
      shuffle: seeds the order of materializing, and the choice of the tensor in "alone".
      expect_lazy: least share of the bytes that must still be lazy before materializing; None to
        leave it unchecked. A test that asks for less than 1 says which operator reads values.
      orders: "shuffled" materializes each tensor by itself in a shuffled order, "whole" everything
        in one call, "alone" one tensor after all others have been freed.
      unwritten: names of tensors with memory that was never written, each with the reason: their
        values mean nothing in eager either.
      padding: names of tensors whose storage holds bytes that were never written outside the
        tensor's own elements, each with the reason.
      constants: whether numbers and arrays held as attributes are compared too.
      min_tensors: fails if fewer distinct tensors were compared.
      min_bytes: fails if their storages have fewer bytes.

    Returns:
      The counts of the first order.

    Raises:
      AssertionError: with the tensor's name, the first index that differs, both values, the seed
        and the order.
    """
    unwritten, padding = unwritten or {}, padding or {}
    eager = _construct(build, seed, lazy=False)
    first: Comparison | None = None
    for order in orders:
        fail = _Failure(seed, f"order {order!r} with shuffle {shuffle}")
        lazy = _construct(build, seed, lazy=True)
        if dormant._C.recording():
            fail("recording is still on after lazy_init was left")
        unknown = (unwritten.keys() | padding.keys()) - eager.held.tensors.keys()
        if unknown:
            fail(f"excluded names that do not exist: {sorted(unknown)}")
        _compare_structure(eager, lazy, fail, constants=constants)
        counts = _measure(lazy.held)
        if counts.tensors < min_tensors or counts.nbytes < min_bytes:
            fail(
                f"compared {counts.tensors} tensors and {counts.nbytes} bytes, "
                f"expected at least {min_tensors} and {min_bytes}"
            )
        if expect_lazy is not None and counts.lazy_rate < expect_lazy:
            real = [n for n, t in lazy.held.tensors.items() if not dormant.is_lazy(t)]
            fail(
                f"lazy rate {counts.lazy_rate:.6f} is below {expect_lazy}: {real} were real; "
                f"operators that read values: {counts.reads}"
            )
        first = first or counts
        names = _materialize(lazy, order, shuffle, fail)
        _compare_values(eager.held, lazy.held, names, fail, unwritten, padding)
    assert first is not None, "compare was called without an order"
    return first
