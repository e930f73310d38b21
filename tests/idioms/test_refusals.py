"""What eager refuses is refused at the same call, whatever refuses it: dtype, scalar, dimension,
overlap or values. What eager accepts is accepted, and what common operators compute stays lazy."""

from __future__ import annotations

import contextlib
import math
import random
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch.nn import functional

import dormant
from compare import assert_same_bits

Calls = Iterator[tuple[str, Callable[[], Any]]]

DTYPES = (
    torch.uint8,
    torch.int64,
    torch.bool,
    torch.float16,
    torch.bfloat16,
    torch.float32,
    torch.complex64,
    torch.float8_e4m3fn,
)
NUMBERS = (-1e9, 300, -1, -300, 0.5, True, 1j, 1e39, math.nan, math.inf, 2**40)
# Small enough for stand-ins of the true sizes, and too large for them.
SIZES = (3, 9000)


def outcome(call: Callable[[], Any], *, lazy: bool) -> tuple[Any, torch.Tensor]:
    """A call's result, or the type of what it raised, and the generator's state afterwards."""
    torch.manual_seed(0)
    with dormant.lazy_init() if lazy else contextlib.nullcontext():
        try:
            result = call()
        except Exception as error:
            result = type(error)
        state = torch.get_rng_state()
    return result[0] if isinstance(result, tuple) else result, state


def assert_same_outcomes(calls: Calls) -> None:
    wrong = []
    count = 0
    for name, call in calls:
        expected, state = outcome(call, lazy=False)
        got, state_afterwards = outcome(call, lazy=True)
        count += 1
        try:
            assert torch.equal(state, state_afterwards), "the generator"
            if isinstance(expected, torch.Tensor) and isinstance(got, torch.Tensor):
                dormant.materialize(got)
                assert_same_bits(expected, got)
            else:
                assert got is expected, f"eager {expected}, lazily {type(got)}"
        except Exception as error:
            wrong.append(f"{name}: {error}")
    assert count > 0
    assert not wrong, "\n".join(wrong)


def scalars(name: str) -> Calls:
    for dtype in DTYPES:
        for number in NUMBERS:
            for size in SIZES:

                def call(dtype: Any = dtype, number: Any = number, size: int = size) -> Any:
                    x = torch.ones(size, dtype=dtype)
                    if name == "full":
                        return torch.full((size,), number, dtype=dtype)
                    if name == "alpha":
                        return torch.add(x, x, alpha=number)
                    if name == "alpha_":
                        return x.sub_(x, alpha=number)
                    return getattr(x, name)(number)

                yield f"{name} {dtype} {number} of {size}", call


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "name",
    [
        "full",
        "fill_",
        "alpha",
        "alpha_",
        "mul_",
        "add_",
        "sub_",
        "div_",
        "clamp_",
        "pow_",
        "remainder_",
        "eq_",
        "mul",
        "add",
        "sub",
        "div",
        "clamp",
        "pow",
        "floor_divide",
        "eq",
        "lt",
        "bitwise_and",
        "fmod",
    ],
)
def test_a_scalar_is_refused_as_in_eager(name: str) -> None:
    assert_same_outcomes(scalars(name))


def pairs(name: str) -> Calls:
    for dtype in DTYPES:
        for other in DTYPES:
            for size in SIZES:

                def call(dtype: Any = dtype, other: Any = other, size: int = size) -> Any:
                    a, b = torch.ones(size, dtype=dtype), torch.ones(size, dtype=other)
                    if name in ("cat", "stack"):
                        return getattr(torch, name)([a, b])
                    if name == "gather":
                        return torch.gather(a, 0, b)
                    if name == "out":
                        return torch.add(a, a, out=b)
                    if name == "out of a comparison":
                        return torch.eq(a, a, out=b)
                    if name == "out of a reduction":
                        return torch.cumsum(a, 0, out=b)
                    if name in ("mm", "addmm_"):
                        a, b = a[:3].expand(3, 3).clone(), b[:3].expand(3, 3).clone()
                        return a.mm(b) if name == "mm" else a.addmm_(a, b)
                    if name == "where":
                        return torch.where(torch.ones(size, dtype=torch.bool), a, b)
                    return getattr(a, name)(b)

                yield f"{name} {dtype} {other} of {size}", call


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "name",
    [
        *[
            "mul_",
            "add_",
            "sub_",
            "div_",
            "copy_",
            "pow_",
            "atan2_",
            "bitwise_or_",
            "gt_",
            "addmm_",
            "mul",
            "sub",
            "pow",
            "gt",
            "maximum",
        ],
        *["bitwise_xor", "where", "cat", "stack", "mm", "gather", "out"],
        "out of a comparison",
        "out of a reduction",
    ],
)
def test_a_pair_of_dtypes_is_refused_as_in_eager(name: str) -> None:
    assert_same_outcomes(pairs(name))


def unaries() -> Calls:
    names = (
        "neg floor sqrt exp reciprocal sign erfinv logical_not bitwise_not square lgamma i0 frac "
        "sigmoid rsqrt trunc conj_physical sgn sort argmax median cummax softmax prod logcumsumexp"
    )
    for name in names.split():
        for dtype in DTYPES:
            for size in SIZES:

                def call(name: str = name, dtype: Any = dtype, size: int = size) -> Any:
                    x = torch.ones(size, dtype=dtype)
                    if name in ("cummax", "softmax", "logcumsumexp"):
                        return getattr(torch, name)(x, 0)
                    return getattr(torch, name)(x)

                yield f"{name} {dtype} of {size}", call
                if hasattr(torch, f"{name}_"):

                    def write(name: str = name, dtype: Any = dtype, size: int = size) -> Any:
                        return getattr(torch, f"{name}_")(torch.ones(size, dtype=dtype))

                    yield f"{name}_ {dtype} of {size}", write


@pytest.mark.filterwarnings("ignore")
def test_a_dtype_without_a_kernel_is_refused_as_in_eager() -> None:
    assert_same_outcomes(unaries())


def reductions() -> Calls:
    for name in [
        "sum",
        "std",
        "cumsum",
        "cumsum_",
        "sort",
        "argsort",
        "argmax",
        "amax",
        "median",
        "topk",
        "softmax",
        "flip",
    ]:
        for dim in (0, 1, 5, -3):
            for size in SIZES:

                def call(name: str = name, dim: int = dim, size: int = size) -> Any:
                    x = torch.ones(size, 2)
                    return x.topk(1, dim) if name == "topk" else getattr(x, name)(dim)

                yield f"{name} of dimension {dim} of {size}", call


def test_a_dimension_out_of_range_is_refused_as_in_eager() -> None:
    assert_same_outcomes(reductions())


def decompositions() -> Calls:
    names = "qr inv det slogdet cholesky eigvalsh svdvals lu_factor pinv matrix_exp ldl_factor"
    for name in names.split():
        for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.int64):
            for shape in ((3, 3), (3, 2), (3,), (70, 70)):
                for kind in ("ones", "eye", "-eye"):

                    def call(
                        name: str = name, dtype: Any = dtype, shape: Any = shape, kind: str = kind
                    ) -> Any:
                        if kind == "ones" or len(shape) < 2:
                            x = torch.ones(shape, dtype=dtype)
                        else:
                            x = torch.eye(*shape, dtype=dtype)
                        return getattr(torch.linalg, name)(-x if kind == "-eye" else x)

                    yield f"{name} {dtype} {shape} {kind}", call


@pytest.mark.filterwarnings("ignore")
def test_a_decomposition_is_refused_as_in_eager() -> None:
    assert_same_outcomes(decompositions())


DISTRIBUTIONS: dict[str, list[tuple[Any, ...]]] = {
    "normal_": [(0, 1), (0, -1), (0, math.nan), (1e39, 1)],
    "uniform_": [(0, 1), (2, 1), (0, 1e39), (0, math.nan), (-1e9, 1e9)],
    "random_": [(), (0,), (5,), (2, 1), (0, 256), (0, 70000), (-1, 3)],
    "bernoulli_": [(0.5,), (1.5,), (-1,), (math.nan,)],
    "exponential_": [(1,), (0,), (-1,), (math.nan,)],
    "geometric_": [(0.5,), (0,), (1,), (1.5,)],
    "log_normal_": [(1, 2), (1, 0), (1, -1)],
    "cauchy_": [(0, 1), (0, 0), (0, -1)],
}


def distributions() -> Calls:
    for name, parameters in DISTRIBUTIONS.items():
        for numbers in parameters:
            for dtype in DTYPES:
                for size in SIZES:

                    def call(
                        name: str = name,
                        numbers: Any = numbers,
                        dtype: Any = dtype,
                        size: int = size,
                    ) -> Any:
                        return getattr(torch.empty(size, dtype=dtype), name)(*numbers)

                    yield f"{name} {numbers} {dtype} of {size}", call
    for dtype in DTYPES:
        for n in (3, 200, 300, 3000, 70000):
            yield (
                f"randperm {dtype} of {n}",
                lambda dtype=dtype, n=n: torch.randperm(n, dtype=dtype),
            )
        for bounds in ((0, 5), (5, 5), (-1, 3), (0, 300), (0, 2**40)):
            yield (
                f"randint {dtype} {bounds}",
                lambda dtype=dtype, bounds=bounds: torch.randint(*bounds, (4,), dtype=dtype),
            )


@pytest.mark.filterwarnings("ignore")
def test_a_parameter_of_a_distribution_is_refused_as_in_eager() -> None:
    assert_same_outcomes(distributions())


def parameter_tensors() -> Calls:
    rows = ([1, 1, 1], [0, 0, 0], [-1, 1, 1], [math.nan, 1, 1], [math.inf, 1, 1])
    for row in (*rows, [[1, 0], [0, 0]], []):
        for samples in (0, 1, 2, 4):
            for replacement in (False, True):
                for dtype in (torch.float32, torch.float16, torch.int64, torch.complex64):

                    def call(
                        row: Any = row,
                        samples: int = samples,
                        replacement: bool = replacement,
                        dtype: Any = dtype,
                    ) -> Any:
                        return torch.multinomial(torch.tensor(row).to(dtype), samples, replacement)

                    yield f"multinomial {row} {samples} {replacement} {dtype}", call
    for value in (0.5, -0.5, 1.5, math.nan):
        for size in (3, 40_000):

            def full(value: float = value, size: int = size) -> torch.Tensor:
                return torch.full((size,), value)

            yield f"bernoulli {value} of {size}", lambda full=full: torch.bernoulli(full())
            yield (
                f"bernoulli_ {value} of {size}",
                lambda full=full: torch.empty_like(full()).bernoulli_(full()),
            )
            yield f"normal {value} of {size}", lambda full=full: torch.normal(0.0, full())
            yield f"normal {value} {size}", lambda full=full: torch.normal(torch.ones(1), full())
            yield f"multinomial {value} of {size}", lambda full=full: torch.multinomial(full(), 2)


@pytest.mark.filterwarnings("ignore")
def test_a_parameter_tensor_of_a_distribution_is_refused_as_in_eager() -> None:
    assert_same_outcomes(parameter_tensors())


def sharing_memory() -> Calls:
    def of(size: int, write: Callable[[torch.Tensor], Any]) -> Callable[[], Any]:
        return lambda: write(torch.arange(float(size)).clone())

    zeros = torch.zeros(2, dtype=torch.long)
    writes: dict[str, Callable[[torch.Tensor], Any]] = {
        "gather": lambda y: torch.gather(y, 0, zeros, out=y),
        "gather into a part": lambda y: torch.gather(y[:2], 0, zeros, out=y[1:3]),
        "index_select": lambda y: torch.index_select(y, 0, zeros, out=y),
        "cumsum": lambda y: torch.cumsum(y, 0, out=y),
        "sort": lambda y: torch.sort(y, out=(y, torch.empty(0, dtype=torch.long))),
        "cat": lambda y: torch.cat([y[:1], y[1:]], out=y),
        "add": lambda y: torch.add(y, y, out=y),
        "add to a part": lambda y: torch.add(y[1:], y[1:], out=y[:-1]),
        "sum": lambda y: torch.sum(y, 0, out=y[0]),
        "scatter_": lambda y: y.scatter_(0, zeros, y),
        "index_add_": lambda y: y.index_add_(0, zeros, y[:2]),
        "index_copy_": lambda y: y.index_copy_(0, zeros, y[:2]),
        "masked_fill_": lambda y: (y > 0).masked_fill_(y > 0, True),
        "expanded add_": lambda y: y[:1].expand(9000).add_(1),
        "expanded fill_": lambda y: y[:1].expand(3).fill_(1),
        "lerp to a part": lambda y: torch.lerp(y[1:], y[1:], 0.5, out=y[:-1]),
    }
    for size in (2, 4, 9000):
        for name, write in writes.items():
            yield f"{name} of {size}", of(size, write)
    for n in (3, 99):
        yield f"mm of {n}", lambda n=n: (lambda y: torch.mm(y, y, out=y))(torch.ones(n, n))
        yield (
            f"add to t of {n}",
            lambda n=n: (lambda y: torch.add(y, y, out=y.t()))(torch.ones(n, n)),
        )


@pytest.mark.filterwarnings("ignore")
def test_shared_memory_is_refused_as_in_eager() -> None:
    assert_same_outcomes(sharing_memory())


BY_VALUE: dict[str, Callable[[], Any]] = {
    "integers to a negative power": lambda: torch.arange(1, 4) ** -1,
    "integers to negative powers": lambda: torch.arange(1, 4) ** torch.tensor([-1, 1, 1]),
    "floor division by zeros": lambda: torch.arange(3) // torch.arange(3),
    "floor division by many zeros": lambda: torch.arange(30000) // torch.arange(30000),
    "remainder of zeros": lambda: torch.arange(3) % torch.arange(3),
    "division by zeros that truncates": lambda: torch.div(
        torch.arange(3), torch.arange(3), rounding_mode="trunc"
    ),
    "floor division by other numbers": lambda: torch.arange(3) // torch.arange(1, 4),
    "cross entropy out of range": lambda: functional.binary_cross_entropy(
        torch.full((3,), 2.0), torch.ones(3)
    ),
    "cross entropy in range": lambda: functional.binary_cross_entropy(
        torch.full((3,), 0.5), torch.ones(3)
    ),
    "margin of another class": lambda: functional.multi_margin_loss(
        torch.ones(2, 3), torch.tensor([1, 7])
    ),
    "unpooling to another place": lambda: functional.max_unpool2d(
        torch.ones(1, 1, 1, 1), torch.full((1, 1, 1, 1), 9), 2
    ),
    "too few values for a mask": lambda: torch.ones(3).masked_scatter(
        torch.ones(3, dtype=torch.bool), torch.ones(1)
    ),
    "an order that is none": lambda: torch.searchsorted(
        torch.ones(3), torch.ones(3), sorter=torch.tensor([0, 1, 9])
    ),
    "the inverse of a Cholesky factor of zeros": lambda: torch.cholesky_inverse(torch.zeros(3, 3)),
    "a zero point out of range": lambda: torch.fake_quantize_per_channel_affine(
        torch.ones(2, 2), torch.ones(2), torch.tensor([-5, 300], dtype=torch.int32), 0, 0, 255
    ),
}


def test_values_are_refused_as_in_eager() -> None:
    assert_same_outcomes(iter(BY_VALUE.items()))


def test_a_refused_call_changes_nothing() -> None:
    def build() -> list[torch.Tensor]:
        a = torch.randn(5)
        integers = torch.ones(5, dtype=torch.int64)
        for wrong in (
            lambda: a.add_(torch.ones(5, dtype=torch.complex64)),
            lambda: a.normal_(0, -1),
            lambda: integers.mul_(1.5),
            lambda: torch.cumsum(a, 3, out=a),
            lambda: a.bernoulli_(torch.full((5,), 2.0)),
        ):
            version = a._version
            with pytest.raises((RuntimeError, IndexError)):
                wrong()
            assert a._version == version
        return [a, integers, torch.randn(3)]

    torch.manual_seed(0)
    expected = build()
    torch.manual_seed(0)
    with dormant.lazy_init():
        lazy = build()
    for left, right in zip(expected, lazy, strict=True):
        dormant.materialize(right)
        assert_same_bits(left, right)


COMMON: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "cumsum": lambda x: x.cumsum(0),
    "matmul": lambda x: x @ x.t(),
    "sum": lambda x: x.sum(1),
    "mean": lambda x: x.mean(),
    "std": lambda x: x.std(0),
    "norm": lambda x: x.norm(dim=1),
    "softmax": lambda x: x.softmax(1),
    "where": lambda x: torch.where(x > 0, x, 0.0),
    "masked_fill": lambda x: x.masked_fill(x > 0, -math.inf),
    "triu": lambda x: x.triu(1),
    "outer": lambda x: torch.outer(x[0], x[1]),
    "einsum": lambda x: torch.einsum("ij,kj->ik", x, x),
    "clamp": lambda x: x.clamp(-2, 2),
    "pow": lambda x: 10000 ** (x / 64),
    "floor_divide": lambda x: x // 2,
    "sign": lambda x: x.sign(),
    "qr": lambda x: torch.linalg.qr(x)[0],
    "sort": lambda x: x.sort(1)[0],
    "flip": lambda x: x.flip(0),
    "roll": lambda x: x.roll(1, 0),
    "repeat": lambda x: x.repeat(2, 3),
    "pad": lambda x: functional.pad(x, (1, 2)),
    "interpolate": lambda x: functional.interpolate(x[None], 70),
    "layer_norm": lambda x: functional.layer_norm(x, x.shape[-1:]),
    "complex": lambda x: torch.polar(torch.ones_like(x), x),
    "bfloat16": lambda x: x.bfloat16() * 2 + 1,
    "bool": lambda x: (x > 0) & (x < 1),
    "integers": lambda x: x.long() * 2 % 3,
    "bernoulli": lambda x: torch.bernoulli(x.sigmoid()),
    "erfinv": lambda x: x.clamp_(-0.9, 0.9).erfinv_().mul_(0.02),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("size", [3, 200])
@pytest.mark.parametrize("name", COMMON)
def test_a_common_operator_stays_lazy(name: str, size: int) -> None:
    with dormant.lazy_init():
        result = COMMON[name](torch.randn(size, size))
        reads = dormant._C.value_reads()
    assert dormant.is_lazy(result)
    assert reads == {}


def test_a_set_that_raises_half_way_leaves_sizes_and_storage_that_fit() -> None:
    """PyTorch gives a tensor of inference mode the other storage before it refuses to."""

    def build() -> tuple[torch.Tensor, tuple[int, ...], int]:
        large = torch.full((7, 17), 0.5)
        with torch.inference_mode():
            small = torch.dot(large[0], large[1])
        with pytest.raises(RuntimeError, match="inference tensor"):
            small.set_(large.detach())
        return small, tuple(small.shape), small.untyped_storage().nbytes()

    with dormant.lazy_init():
        lazy, *geometry = build()
    eager, *expected = build()
    assert geometry == expected
    assert_same_bits(eager.clone(), lazy.clone())


def test_what_does_not_fit_the_elements_that_indices_select() -> None:
    """Random shapes, indices and values: refused by the same calls, and else the same bits."""

    def build(seed: int) -> torch.Tensor:
        chosen = random.Random(seed)
        sizes = [chosen.choice([1, 2, 3, 4]) for _ in range(chosen.choice([1, 2, 3]))]
        indices: list[torch.Tensor | None] = []
        for size in sizes[: chosen.randint(1, len(sizes))]:
            index = torch.tensor([chosen.randrange(size)] * chosen.choice([1, 2, 3]))
            index = index.expand(chosen.choice([1, 2]), -1) if chosen.random() < 0.5 else index
            indices.append(None if chosen.random() < 0.3 else index)
        if all(index is None for index in indices):
            indices[0] = torch.tensor([0])
        selected = tuple(slice(None) if index is None else index for index in indices)
        whole = torch.zeros(sizes)
        values = [chosen.choice([1, 1, 2, 3, 4]) for _ in range(chosen.randint(0, 3))]
        if chosen.random() < 0.5:
            values = list(whole[selected].shape)
            if values and chosen.random() < 0.4:
                values[chosen.randrange(len(values))] = chosen.choice([1, 2, 5])
        if chosen.random() < 0.3:
            whole[selected] = torch.ones(values)
        return whole.index_put(
            tuple(indices),  # type: ignore[arg-type]
            torch.ones(values),
            accumulate=chosen.random() < 0.5,
        )

    counts: Counter[str] = Counter()
    for seed in range(600):
        results: list[Any] = []
        for lazily in (False, True):
            try:
                with dormant.lazy_init() if lazily else contextlib.nullcontext():
                    results.append(build(seed))
            except (RuntimeError, IndexError, TypeError) as error:
                results.append(type(error))
        eager, lazy = results
        if isinstance(eager, type) or isinstance(lazy, type):
            assert eager is lazy, seed
        else:
            assert_same_bits(eager, lazy, f"seed {seed}")
        counts[str(eager) if isinstance(eager, type) else "bits"] += 1
    assert min(counts["bits"], counts["<class 'RuntimeError'>"]) > 50
