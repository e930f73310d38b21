"""Fills the placeholders of the table of operators with what mostly fits.

Each public method of `Arguments` is a placeholder; see operators.py. A hostile line takes what does
not fit on purpose: eager refuses it, or does something that nobody writes.
"""

from __future__ import annotations

import math
import random
import re
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from compare import storage_key

_PLACEHOLDER = re.compile(r"\{(\w+)\}")
_NUMBERS = ("0", "1", "2", "-1", "0.5", "3", "-2.5", "1e-3", "7", "True")
_ODD_NUMBERS = ("inf", "nan", "-inf", "300", "-1e9", "1e30", "2**40", "1j", "None")
_DTYPES = ("float32", "float64", "float16", "bfloat16", "int64", "int32", "uint8", "bool")
_ODD_DTYPES = ("complex64", "int8", "int16", "float8_e4m3fn", "uint16", "complex128")
_SIGNS = ("+", "-", "*", "/", "//", "%", "@", "==", "<", ">=", "&", "|", "^")
LARGEST = 200_000
Candidate = tuple[str, torch.Tensor]


class Unfit(Exception):
    """There is no variable that a placeholder could take."""


class Arguments:
    """Fills one line after another, looking at the tensors that eager has at this point.

    Attributes:
        choose: where all choices come from.
        names: the variables of the program so far, as eager has them.
        sizes: the sizes that most shapes of this program are made of.
        thread: the thread whose line this is.
        foreign: storages that this thread may read only.
        hostile: whether this line takes what does not fit.
    """

    def __init__(self, choose: random.Random, names: dict[str, Any], sizes: list[int]) -> None:
        self.choose = choose
        self.names = names
        self.sizes = sizes
        self.thread = 0
        self.foreign: set[int] = set()
        self.hostile = False
        self._subject: torch.Tensor | None = None
        self._dim = 0
        self._taken: list[torch.Tensor] = []
        self._target: torch.Tensor | None = None

    def fill(self, code: str) -> str:
        """The line without placeholders. Raises Unfit where nothing suits one of them."""
        self._subject, self._dim = None, 0
        self._taken, self._target = [], None
        return _PLACEHOLDER.sub(lambda found: self._fill(found[1]), code)

    def _fill(self, word: str) -> str:
        method = getattr(self, word, None)
        if method is not None:
            return str(method())
        assert word.startswith("w"), word
        return self._written(self._kinds[word[1:] or "t"])

    # ---- tensors

    def variables(self) -> Iterator[tuple[str, Any]]:
        """What the thread may refer to: the first thread's variables, and its own."""
        own = re.compile(rf"v\d+|p{self.thread}_\d+")
        for name, value in self.names.items():
            if own.fullmatch(name):
                yield name, value

    def tensors(self) -> Iterator[Candidate]:
        """All tensors that are variables, or elements of variables that are sequences."""
        for name, value in self.variables():
            if isinstance(value, torch.Tensor):
                yield name, value
            elif isinstance(value, (tuple, list)):
                for i, element in enumerate(value[:3]):
                    if isinstance(element, torch.Tensor):
                        yield f"{name}[{i}]", element

    def _pick(self, suits: Callable[[torch.Tensor], bool], *, recent: bool = True) -> Candidate:
        found = [c for c in self.tensors() if (self.hostile and self._now()) or suits(c[1])]
        if not found:
            raise Unfit
        if recent and self.choose.random() < 0.5:
            found = found[-4:]
        return self.choose.choice(found)

    def _now(self) -> bool:
        return self.choose.random() < 0.4

    def _take(self, suits: Callable[[torch.Tensor], bool]) -> str:
        name, tensor = self._pick(suits)
        self._use(tensor)
        return name

    def _use(self, tensor: torch.Tensor) -> None:
        self._taken.append(tensor)
        if self._subject is None:
            self._subject = tensor

    def _read(self, suits: Callable[[torch.Tensor], bool]) -> str:
        """A tensor, or now and then a view of one that suits, too."""
        name, tensor = self._pick(suits)
        if self.choose.random() < 0.15:
            view = self.choose.choice(
                (
                    "[1:]",
                    ".t()",
                    "[..., :1]",
                    ".view(-1)",
                    ".detach()",
                    ".data",
                    "[0]",
                    "[None]",
                    ".mT",
                )
            )
            try:
                with torch.no_grad():
                    viewed = eval(f"t{view}", {"t": tensor})
            except Exception:
                viewed = None
            if viewed is not None and suits(viewed):
                name, tensor = name + view, viewed
        self._use(tensor)
        return name

    def _written(self, suits: Callable[[torch.Tensor], bool]) -> str:
        """A tensor that this thread may write."""

        def free(tensor: torch.Tensor) -> bool:
            if not suits(tensor):
                return False
            if not self.foreign:
                return True
            return tensor.layout is torch.strided and storage_key(tensor) not in self.foreign

        hostile, self.hostile = self.hostile, self.hostile and not self.foreign
        try:
            name = self._read(free)
        finally:
            self.hostile = hostile
        self._target = self._taken.pop()
        return name

    def overlaps(self, *, elementwise: bool) -> bool:
        """Whether the last line writes memory that it also reads, so that the order matters.

        Args:
            elementwise: whether each element is read before it is written, and no other.
        """
        target = self._target
        if target is None or not _dense(target):
            return False
        others = [t for t in self._taken if _dense(t) and storage_key(t) == storage_key(target)]
        if elementwise:
            others = [t for t in others if _place(t) != _place(target)]
        return bool(others)

    @property
    def subject(self) -> torch.Tensor:
        """The first tensor of the line, which the others have to suit."""
        return torch.empty(2, 2, device="meta") if self._subject is None else self._subject

    @property
    def _kinds(self) -> dict[str, Callable[[torch.Tensor], bool]]:
        return {
            "t": _dense,
            "f": lambda t: _dense(t) and t.is_floating_point(),
            "i": lambda t: (
                _dense(t) and t.dtype in (torch.int64, torch.int32, torch.bool, torch.uint8)
            ),
            "m": lambda t: (
                _dense(t) and t.is_floating_point() and t.dim() == 2 and max(t.shape) < 300
            ),
            "vector": lambda t: (
                _dense(t) and t.is_floating_point() and t.dim() == 1 and t.numel() < 300
            ),
        }

    def t(self) -> str:
        return self._read(_dense)

    def f(self) -> str:
        return self._read(self._kinds["f"])

    def i(self) -> str:
        return self._read(self._kinds["i"])

    def b(self) -> str:
        try:
            return self._read(lambda t: _dense(t) and t.dtype is torch.bool)
        except Unfit:
            return f"({self.t()} > 0)"

    def m(self) -> str:
        return self._read(self._kinds["m"])

    def square(self) -> str:
        return self._read(lambda t: self._kinds["m"](t) and t.shape[0] == t.shape[1])

    def vector(self) -> str:
        return self._read(self._kinds["vector"])

    def g(self) -> str:
        """A tensor that requires grad."""
        if self.foreign:
            raise Unfit
        return self._read(lambda t: _dense(t) and t.requires_grad)

    def leaf(self) -> str:
        if self.foreign:
            raise Unfit
        return self._take(lambda t: _dense(t) and _is_leaf(t))

    def like(self) -> str:
        """A tensor that broadcasts with the subject, or a number."""
        return self.number() if self.choose.random() < 0.25 else self.liket()

    def _broadcasting(self, also: Callable[[torch.Tensor], bool]) -> str:
        shape = tuple(self.subject.shape)
        try:
            return self._read(
                lambda t: _dense(t) and also(t) and _broadcasts(shape, tuple(t.shape))
            )
        except Unfit:
            return f"torch.ones({shape}, dtype={self.subject.dtype})"

    def liket(self) -> str:
        same = self.subject.dtype if self.choose.random() < 0.6 else None
        return self._broadcasting(lambda t: same is None or t.dtype == same)

    def likef(self) -> str:
        return self._broadcasting(lambda t: t.dtype == self.subject.dtype)

    def likei(self) -> str:
        return self._broadcasting(self._kinds["i"])

    def same(self) -> str:
        """A tensor of the subject's shape."""
        shape, dtype = self.subject.shape, self.subject.dtype
        try:
            return self._read(
                lambda t: _dense(t) and t.shape == shape and (t.dtype == dtype or self._now())
            )
        except Unfit:
            return f"torch.full({tuple(shape)}, 3, dtype={dtype})"

    def pickled(self) -> str:
        """A tensor of a dtype that pickle knows; others have no class of storages in PyTorch."""
        return self._read(_pickles)

    def apart(self) -> str:
        """One more that shares no memory with the subject: pickle would make it two storages."""
        key = storage_key(self.subject)
        return self._read(lambda t: _pickles(t) and storage_key(t) != key)

    def mask(self) -> str:
        if self.choose.random() < 0.3:
            return self._broadcasting(lambda t: t.dtype is torch.bool)
        return f"({self.same()} > 0)"

    def out(self) -> str:
        """Where `out=` goes: often a new tensor, else one that may grow."""
        if self.choose.random() < 0.4:
            return f"torch.empty(0, dtype={self.subject.dtype})"
        dtype = self.subject.dtype
        return self._written(lambda t: _dense(t) and (t.dtype == dtype or self._now()))

    # ---- indices

    def index(self) -> str:
        """Indices along the last dimension that was named."""
        size = self._size()
        if self.hostile and self._now():
            size += 2
        count = self.choose.choice((0, 1, 2, 3))
        places = [self.choose.randrange(max(size, 1)) for _ in range(count)]
        return f"torch.tensor({places}, dtype=torch.long)"

    def every(self) -> str:
        order = list(range(self._size()))
        if len(order) > 300:
            return f"torch.arange({len(order)})"
        self.choose.shuffle(order)
        if self.hostile and self._now():
            order.append(-1)
        return f"torch.tensor({order}, dtype=torch.long)"

    def likeindex(self) -> str:
        size = max(self._size(), 1) + (self.hostile and self._now())
        kind = "torch.int32" if self.hostile and self._now() else "torch.long"
        value = self.choose.randrange(size)
        return f"torch.full({tuple(self.subject.shape)}, {value}, dtype={kind})"

    def rows(self) -> str:
        rows = [self.choose.randrange(2) for _ in range(self.choose.choice((1, 2, 3)))]
        return f"torch.tensor({rows})"

    def key(self) -> str:
        """What stands between brackets."""
        keys = (
            "0",
            "-1",
            "1:",
            ":1",
            "::2",
            "..., 0",
            "..., 1:",
            ":, 0",
            "None",
            "...",
            "0, 0",
            "[0]",
        )
        return self.choose.choice(keys + (("5", "9:", ":, :, :, 0", "1.5") if self.hostile else ()))

    # ---- dimensions and shapes

    def _size(self) -> int:
        shape = self.subject.shape
        return int(shape[self._dim]) if -len(shape) <= self._dim < len(shape) else 1

    def dim(self) -> str:
        rank = self.subject.dim()
        self._dim = self.choose.randrange(-rank, rank) if rank else 0
        if self.hostile and self._now():
            self._dim = self.choose.choice((rank, -rank - 1, 5))
        return str(self._dim)

    def permutation(self) -> str:
        order = list(range(self.subject.dim()))
        self.choose.shuffle(order)
        if self.hostile and self._now():
            order = [*order, 0]
        return str(tuple(order))

    def shape(self) -> str:
        rank = self.choose.choice((0, 1, 1, 2, 2, 2, 3))
        shape = [self.choose.choice((*self.sizes, *self.sizes, 1)) for _ in range(rank)]
        while math.prod(shape) > LARGEST:
            shape.pop()
        if self.hostile and self._now():
            shape.append(self.choose.choice((-1, 0)))
        return str(tuple(shape))

    def shapeof(self) -> str:
        if self.subject.numel() > LARGEST // 2:
            raise Unfit
        return ", ".join(["1" if self._now() else "-1"] * self.subject.dim()) or "1"

    def reshape(self) -> str:
        count = self.subject.numel()
        shapes = [(-1,), (count,), (1, count), (count, 1), tuple(self.subject.shape)[::-1]]
        shapes += [(n, count // n) for n in (2, 3, 4) if count % n == 0]
        if self.hostile and self._now():
            shapes = [(count + 1,), (-1, 7)]
        return str(self.choose.choice(shapes))

    def window(self) -> str:
        """Sizes, strides and offset inside the subject's storage."""
        count = self.subject.numel()
        windows = ["(1,), (1,)", f"({count},), (1,)", "(), ()", "(0,), (1,)"]
        if count >= 4:
            windows += ["(2, 2), (1, 2)", "(2, 2), (2, 1), 0", "(2,), (2,), 1", "(3, 2), (1, 1)"]
        if self.hostile and self._now():
            windows = ["(999999,), (1,)", "(1,), (-1,)", "(1,), (1, 1)"]
        return self.choose.choice(windows)

    def lastsize(self) -> str:
        return str(tuple(self.subject.shape[-1:]))

    # ---- numbers

    def count(self) -> str:
        return str(self.choose.choice(self.sizes))

    def small(self) -> str:
        return str(min(self.choose.choice(self.sizes), 130))

    def n(self) -> str:
        return self.choose.choice(
            ("99", "-1", "1.5") if self.hostile and self._now() else ("0", "1", "1", "2")
        )

    def number(self) -> str:
        return self.choose.choice(_ODD_NUMBERS if self.hostile and self._now() else _NUMBERS)

    def value(self) -> str:
        return self.number()

    def numbers(self) -> str:
        count = self.choose.choice((0, 1, 2, 3))
        return "[" + ", ".join(self.choose.choice(_NUMBERS) for _ in range(count)) + "]"

    def scale(self) -> str:
        return self.choose.choice(
            ("-1", "0") if self.hostile and self._now() else ("1", "0.5", "2.0")
        )

    def low(self) -> str:
        return self.choose.choice(
            ("9", "-(2**40)") if self.hostile and self._now() else ("0", "-1", "-3")
        )

    def high(self) -> str:
        return self.choose.choice(
            ("-9", "2**40", "0") if self.hostile and self._now() else ("1", "5", "100")
        )

    def probability(self) -> str:
        return self.choose.choice(
            ("1.5", "-0.1") if self.hostile and self._now() else ("0.5", "0.1", "0.9")
        )

    def flag(self) -> str:
        return self.choose.choice(("True", "False"))

    def sign(self) -> str:
        return self.choose.choice(_SIGNS)

    def dtype(self) -> str:
        return "torch." + self.choose.choice(_DTYPES + _ODD_DTYPES if self._now() else _DTYPES)

    def shown_as(self) -> str:
        """A dtype of which any bytes are numbers: not bool (docs/limits.md)."""
        while (dtype := self.dtype()) == "torch.bool":
            pass
        return dtype

    def options(self) -> str:
        if self.choose.random() < 0.6:
            return ""
        if self.choose.random() < 0.3 and not self.foreign:
            return ", requires_grad=True"
        return f", dtype={self.dtype()}"

    def gen(self) -> str:
        return ", " + self.gen1() if self.foreign or self.choose.random() < 0.3 else ""

    def gen1(self) -> str:
        return f"generator=g{self.thread}" if self.foreign or self.choose.random() < 0.3 else ""

    # ---- modules

    def _modules(self) -> list[tuple[str, nn.Module]]:
        return [(n, v) for n, v in self.variables() if isinstance(v, nn.Module)]

    def variable(self) -> str:
        found = [name for name, _ in self.variables()]
        own = [name for name in found if not self.foreign or name.startswith(f"p{self.thread}_")]
        if len(found) < 4 or not own:
            raise Unfit
        return self.choose.choice(own)

    def module(self) -> str:
        found = self._modules()
        if not found:
            raise Unfit
        name, module = self.choose.choice(found)
        self._module = module
        if isinstance(module, nn.Sequential) and self._now():
            self._module = module[0]
            return f"{name}[0]"
        return name

    def parameter(self) -> str:
        """The path of a parameter, or of a buffer."""
        found = [
            (name + _attributes(path), tensor)
            for name, module in self._modules()
            for path, tensor in module.state_dict(keep_vars=True).items()
            if "parametrizations" not in path and isinstance(tensor, torch.Tensor)
        ]
        if not found:
            raise Unfit
        name, tensor = self.choose.choice(found)
        if self._subject is None:
            self._subject = tensor
        return name

    def _entry(self, name: str, tensor: torch.Tensor) -> str:
        shape, dtype = tuple(tensor.shape), tensor.dtype
        found = [n for n, t in self.tensors() if _dense(t) and t.shape == tensor.shape]
        if found and self._now():
            return f"{name!r}: {self.choose.choice(found)}"
        return f"{name!r}: torch.full({shape}, {self.choose.randrange(9)}, dtype={dtype})"

    def state(self) -> str:
        """A state dict for the module named last."""
        entries = self._module.state_dict(keep_vars=True).items()
        return "{" + ", ".join(self._entry(name, tensor) for name, tensor in entries) + "}"

    def partofstate(self) -> str:
        entries = list(self._module.state_dict(keep_vars=True).items())
        some = [entry for entry in entries if self.choose.random() < 0.5]
        return "{" + ", ".join(self._entry(name, tensor) for name, tensor in some) + "}"

    def input(self) -> str:
        module = self._module
        first = next((p for p in module.parameters()), torch.zeros(()))
        if isinstance(module, nn.Embedding):
            return "torch.tensor([0, 1])"
        last = int(first.shape[-1]) if first.dim() else 1
        shape = {"Sequential": (2, 3), "GRU": (2, 2), "Linear": (2, last)}.get(
            type(module).__name__, (2, last)
        )
        return f"torch.ones({shape}, dtype={first.dtype})"


def _attributes(path: str) -> str:
    """`0.weight` as it is written after the module: `[0].weight`."""
    return "".join(f"[{part}]" if part.isdigit() else f".{part}" for part in path.split("."))


def _dense(tensor: torch.Tensor) -> bool:
    return tensor.layout is torch.strided and not tensor.is_quantized


def _place(tensor: torch.Tensor) -> tuple[object, ...]:
    return tensor.dtype, tensor.shape, tensor.stride(), tensor.storage_offset()


def _is_leaf(tensor: torch.Tensor) -> bool:
    try:
        return tensor.requires_grad and tensor.is_leaf
    except RuntimeError:  # a view of several whose base was written
        return False


def _pickles(tensor: torch.Tensor) -> bool:
    return (
        _dense(tensor) and "uint16" not in str(tensor.dtype) and "float8" not in str(tensor.dtype)
    )


def _broadcasts(shape: tuple[int, ...], other: tuple[int, ...]) -> bool:
    try:
        broadcast = torch.broadcast_shapes(shape, other)  # type: ignore[no-untyped-call]
    except RuntimeError:
        return False
    return bool(math.prod(broadcast) <= LARGEST)
