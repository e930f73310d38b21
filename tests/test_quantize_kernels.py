"""The kernels that quantize, against bitsandbytes itself, bit for bit."""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from dormant import _C

bitsandbytes = pytest.importorskip("bitsandbytes")
functional = bitsandbytes.functional

pytestmark = pytest.mark.core

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
BLOCK_SIZES = (32, 64, 128, 256, 512, 1024, 2048, 4096)
KINDS = ("nf4", "fp4")


@functools.cache
def four_bit(kind: str, block_size: int, *, nested: bool) -> Any:
    values = functional.get_4bit_type(kind, device="cpu")
    return _C.FourBit(kind, block_size, values, functional.create_dynamic_map() if nested else None)


def expected_four_bit(
    source: torch.Tensor, kind: str, block_size: int, *, nested: bool
) -> list[torch.Tensor]:
    packed, state = functional.quantize_4bit(
        source, blocksize=block_size, quant_type=kind, compress_statistics=nested
    )
    extra = [state.state2.absmax, state.offset] if nested else []
    return [packed, state.absmax, *extra]


def expected_int8(source: torch.Tensor) -> list[torch.Tensor]:
    weight = bitsandbytes.nn.Int8Params(source.clone(), requires_grad=False).to("cpu")
    return [weight.data, weight.SCB]


def assert_same(got: list[torch.Tensor], expected: list[torch.Tensor], case: str) -> None:
    """Same dtypes, shapes and bits; NaN only where it is NaN, whatever its payload."""
    assert len(got) == len(expected), case
    for position, (ours, theirs) in enumerate(zip(got, expected, strict=True)):
        where = f"{case}: output {position}"
        assert (ours.dtype, ours.shape) == (theirs.dtype, theirs.shape), where
        if ours.dtype == torch.float32:
            assert torch.equal(ours.isnan(), theirs.isnan()), where
            ours, theirs = (x.nan_to_num(0).view(torch.int32) for x in (ours, theirs))
        differing = int((ours != theirs).sum())
        first = (ours != theirs).flatten().nonzero().flatten()[:3].tolist()
        assert differing == 0, f"{where}: {differing} of {ours.numel()} differ, first at {first}"


def assert_four_bit(source: torch.Tensor, kind: str, block_size: int, *, nested: bool) -> None:
    threads = torch.get_num_threads()
    got = _C.quantize_now(source, four_bit(kind, block_size, nested=nested), threads)
    case = (
        f"{kind}/{block_size}{' nested' if nested else ''} of {list(source.shape)} {source.dtype}"
    )
    assert_same(got, expected_four_bit(source, kind, block_size, nested=nested), case)


@contextlib.contextmanager
def threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", KINDS)
def test_four_bit_equals_bitsandbytes_for_every_block_size_and_shape(
    kind: str, dtype: torch.dtype
) -> None:
    torch.manual_seed(1)
    shapes = [(), (1,), (2,), (31,), (33,), (63, 1), (64,), (65,), (95,), (127, 129), (3, 5, 7)]
    shapes += [(4095,), (4097,), (1, 8192), (70, 530)]
    for block_size in BLOCK_SIZES:
        for shape in shapes:
            source = torch.randn(shape).mul(0.02).to(dtype)
            for nested in (False, True):
                assert_four_bit(source, kind, block_size, nested=nested)


def _outliers(n: int) -> torch.Tensor:
    return torch.randn(n).pow(5)


def _sparse(n: int) -> torch.Tensor:
    return torch.randn(n) * (torch.rand(n) < 0.03)


def _zero_blocks(n: int) -> torch.Tensor:
    return torch.randn(n) * (torch.arange(n) // 64 % 3 != 0)


def _negative_zeros(n: int) -> torch.Tensor:
    return -torch.zeros(n)


def _constant(n: int) -> torch.Tensor:
    return torch.full((n,), -0.37)


def _alternating(n: int) -> torch.Tensor:
    return torch.tensor([1.5, -1.5]).repeat(n // 2 + 1)[:n]


def _ties(n: int) -> torch.Tensor:
    """Blocks whose scale is exactly 1 or a power of two, of middles and what surrounds them."""
    middles = []
    for kind in KINDS:
        values = functional.get_4bit_type(kind, device="cpu").sort().values
        middles.append((values[:-1] + values[1:]) / 2)
    middle = torch.cat(middles)
    below, above = (middle.nextafter(torch.tensor(side)) for side in (-2.0, 2.0))
    numbers = torch.cat([middle, below, above, -middle, -below, -above])
    numbers = numbers.repeat(n // len(numbers) + 1)[:n].clone()
    scale = torch.tensor([1.0, 0.5, 4.0, 2.0**-20]).repeat(n // 32 + 1).repeat_interleave(32)[:n]
    numbers[::32] = 1.0
    return numbers * scale


def _with_not_a_number(n: int) -> torch.Tensor:
    numbers = torch.randn(n)
    numbers[::97] = math.nan
    numbers[50::971] = -math.nan
    return numbers


def _one_not_a_number_at_the_end(n: int) -> torch.Tensor:
    numbers = torch.randn(n)
    numbers[-1] = math.nan
    return numbers


def _with_infinities(n: int) -> torch.Tensor:
    numbers = torch.randn(n)
    numbers[10::333] = math.inf
    numbers[20::777] = -math.inf
    return numbers


def _subnormal(n: int) -> torch.Tensor:
    return torch.randn(n) * 1e-40


def _around_the_smallest_divisor(n: int) -> torch.Tensor:
    return torch.randn(n) * 1e-38


def _huge(n: int) -> torch.Tensor:
    return torch.rand(n).sub(0.5) * 6.8e38


def _wide(n: int) -> torch.Tensor:
    """Blocks of very different size: the nested map uses its small codes."""
    return torch.randn(n) * torch.logspace(-12, 3, n // 32 + 1).repeat_interleave(32)[:n]


NUMBERS: tuple[Callable[[int], torch.Tensor], ...] = (
    _outliers,
    _sparse,
    _zero_blocks,
    torch.zeros,
    _negative_zeros,
    _constant,
    _alternating,
    _ties,
    _with_not_a_number,
    _one_not_a_number_at_the_end,
    _with_infinities,
    _subnormal,
    _around_the_smallest_divisor,
    _huge,
    _wide,
)


@pytest.mark.parametrize("numbers", NUMBERS, ids=lambda numbers: numbers.__name__.strip("_"))
def test_four_bit_equals_bitsandbytes_for_numbers_of_every_kind(
    numbers: Callable[[int], torch.Tensor],
) -> None:
    torch.manual_seed(2)
    for dtype in DTYPES:
        for n in (64, 1001, 9000):
            source = numbers(n).to(dtype)
            for kind in KINDS:
                for block_size in (32, 64, 4096):
                    for nested in (False, True):
                        assert_four_bit(source, kind, block_size, nested=nested)


def test_bfloat16_and_float16_are_quantized_at_every_bit_pattern() -> None:
    patterns = torch.arange(65536, dtype=torch.int32).to(torch.int16)
    for dtype in (torch.bfloat16, torch.float16):
        numbers = patterns.view(dtype)
        # Each in a block of zeros but for a one, or larger than all others.
        source = torch.zeros(65536, 32, dtype=dtype)
        source[:, 0] = 1
        source[:, 1] = numbers
        for kind in KINDS:
            assert_four_bit(source, kind, 32, nested=False)
        got = _C.quantize_now(source, _C.Int8Rows(), 1)
        assert_same(got, expected_int8(source), f"int8 of {dtype}")


@pytest.mark.parametrize("count", [1, 2, 3])
def test_the_nested_offset_depends_on_threads_as_the_mean_of_pytorch_does(count: int) -> None:
    torch.manual_seed(3)
    with threads(count):
        for blocks in (32767, 32768, 65537, 100_000):
            source = torch.randn(blocks * 32).pow(3)
            assert_four_bit(source, "nf4", 32, nested=True)


def test_the_nested_offset_of_few_blocks_is_added_up_in_the_order_of_pytorch() -> None:
    torch.manual_seed(4)
    for blocks in [*range(1, 70), 255, 256, 257, 511, 512, 513, 1023, 2047, 4099, 20_001]:
        assert_four_bit(torch.randn(blocks * 32).exp(), "nf4", 32, nested=True)


def test_the_thread_count_is_that_of_the_call_not_of_the_machine() -> None:
    quantizer = four_bit("nf4", 32, nested=True)
    differing = 0
    for seed in (3, 4):
        torch.manual_seed(seed)
        source = torch.randn(100_000 * 32).exp()
        offsets = set()
        for count in (1, 2):
            with threads(count):
                expected = expected_four_bit(source, "nf4", 32, nested=True)
            with threads(3 - count):
                got = _C.quantize_now(source, quantizer, count)
            assert_same(got, expected, f"seed {seed}, {count} threads")
            offsets.add(expected[3].item())
        differing += len(offsets) == 2
    assert differing > 0, "the seeds no longer tell thread counts apart"


def test_empty_tensors_give_empty_outputs() -> None:
    source = torch.empty(0, 16)
    for nested in (False, True):
        assert_four_bit(source, "nf4", 64, nested=nested)
    for dtype in DTYPES:
        rows = torch.empty(0, 5, dtype=dtype)
        assert_same(_C.quantize_now(rows, _C.Int8Rows(), 1), expected_int8(rows), "no rows")


@pytest.mark.parametrize("dtype", DTYPES)
def test_int8_rows_equal_bitsandbytes_for_every_shape(dtype: torch.dtype) -> None:
    torch.manual_seed(6)
    for columns in (*range(1, 100), 127, 128, 129, 1000, 4096):
        source = torch.randn(7, columns).mul(0.02).to(dtype)
        got = _C.quantize_now(source, _C.Int8Rows(), 1)
        assert_same(got, expected_int8(source), f"int8 of {list(source.shape)} {dtype}")


@pytest.mark.parametrize("numbers", NUMBERS, ids=lambda numbers: numbers.__name__.strip("_"))
def test_int8_rows_equal_bitsandbytes_for_numbers_of_every_kind(
    numbers: Callable[[int], torch.Tensor],
) -> None:
    torch.manual_seed(7)
    for dtype in DTYPES:
        for columns in (1, 61, 64, 100, 1024):
            source = numbers(200 * columns).to(dtype).view(200, columns)
            got = _C.quantize_now(source, _C.Int8Rows(), 1)
            assert_same(got, expected_int8(source), f"int8 of {list(source.shape)} {dtype}")


def test_int8_rounds_halves_to_even() -> None:
    # The scale of a row with absmax 127 is 1.
    source = torch.tensor([[127.0, 0.5, 1.5, 2.5, -0.5, -1.5, -2.5, 126.5]])
    codes, absmax = _C.quantize_now(source, _C.Int8Rows(), 1)
    assert codes.tolist() == expected_int8(source)[0].tolist() == [[127, 0, 2, 2, 0, -2, -2, 126]]
    assert absmax.tolist() == [127.0]


@pytest.mark.threads
def test_several_threads_give_the_bits_of_one() -> None:
    torch.manual_seed(8)
    source = torch.randn(300, 1003)
    for quantizer in (four_bit("fp4", 128, nested=True), _C.Int8Rows()):
        outputs = []
        for count in (1, 4):
            with threads(count):
                outputs.append(_C.quantize_now(source, quantizer, 1))
        assert_same(outputs[1], outputs[0], quantizer.name)


def test_names_say_the_scheme() -> None:
    assert four_bit("nf4", 64, nested=True).name == "nf4, blocks of 64, nested"
    assert four_bit("fp4", 128, nested=False).name == "fp4, blocks of 128"
    assert _C.Int8Rows().name == "int8, row by row"


def test_what_cannot_be_a_scheme_is_refused() -> None:
    values = functional.get_4bit_type("nf4", device="cpu")
    nested_map = functional.create_dynamic_map()
    for block_size in (0, -64, 16, 48, 8192):
        with pytest.raises(ValueError, match=f"blocks of {block_size} elements"):
            _C.FourBit("nf4", block_size, values)
    with pytest.raises(ValueError, match="got 15 values of codes, expected 16"):
        _C.FourBit("nf4", 64, values[:15])
    with pytest.raises(ValueError, match="expected a number from -1 to 1"):
        _C.FourBit("nf4", 64, values * 2)
    with pytest.raises(ValueError, match="two codes have the same value"):
        _C.FourBit("nf4", 64, torch.ones(16))
    with pytest.raises(ValueError, match="values is Double"):
        _C.FourBit("nf4", 64, values.double())
    with pytest.raises(ValueError, match="got 255 values, expected 256"):
        _C.FourBit("nf4", 64, values, nested_map[1:].contiguous())
    with pytest.raises(ValueError, match="in ascending order"):
        _C.FourBit("nf4", 64, values, nested_map.flip(0))


def test_what_cannot_be_quantized_is_refused() -> None:
    with pytest.raises(ValueError, match="expected float32, bfloat16 or float16"):
        _C.quantize_now(torch.zeros(64, dtype=torch.float64), four_bit("nf4", 64, nested=False), 1)
    with pytest.raises(ValueError, match="expected a contiguous CPU tensor"):
        _C.quantize_now(torch.zeros(64, 64).t(), four_bit("nf4", 64, nested=False), 1)
    for sizes in ((8,), (2, 3, 4), (5, 0)):
        with pytest.raises(ValueError, match="expected a matrix with at least one column"):
            _C.quantize_now(torch.zeros(sizes), _C.Int8Rows(), 1)
