"""The tensors of a checkpoint as a tree of modules; equal siblings are one row."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import groupby

from dormant.checkpoint.entry import Entry

# Names come from files: a name with a thousand dots must not become a thousand levels.
_MOST_LEVELS = 32


@dataclass(frozen=True)
class Row:
    """A module, a tensor, or a run of numbered siblings with equal contents.

    Attributes:
        name: its name below its parent; "layers.[0-31]" for siblings.
        level: its depth; 0 for the outermost.
        tensors: the number of tensors in it.
        elements: the number of elements of these tensors.
        nbytes: the bytes of these tensors.
        dtypes: their dtypes, the one with most bytes first.
        shape: the shape of a tensor; None for a module.
        siblings: the number of siblings in the row; all counts include all of them.
    """

    name: str
    level: int
    tensors: int
    elements: int
    nbytes: int
    dtypes: tuple[str, ...]
    shape: tuple[int, ...] | None
    siblings: int


@dataclass
class _Node:
    entry: Entry | None = None
    children: dict[str, _Node] = field(default_factory=dict)
    tensors: int = 0
    elements: int = 0
    dtypes: dict[str, int] = field(default_factory=dict)
    likeness: int = 0  # equal for trees of equal names, dtypes and shapes

    @property
    def nbytes(self) -> int:
        return sum(self.dtypes.values())


def tree_rows(entries: Mapping[str, Entry], depth: int | None) -> list[Row]:
    """Rows of the tree, outermost first.

    Args:
        entries: the entries by full name.
        depth: the number of levels; deeper tensors are only counted. None shows all.
    """
    root = _Node()
    for name, entry in entries.items():
        _insert(root, name.split(".", _MOST_LEVELS), entry)
    _count(root, {})
    return list(_rows(root, 0, 1, depth))


def dtype_name(entry: Entry) -> str:
    """The name of the dtype, such as "float32"."""
    return str(entry.dtype).removeprefix("torch.")


def _insert(root: _Node, path: list[str], entry: Entry) -> None:
    node = root
    for part in path:
        node = node.children.setdefault(part, _Node())
    node.entry = entry


def _count(node: _Node, known: dict[object, int]) -> None:
    for child in node.children.values():
        _count(child, known)
        node.tensors += child.tensors
        node.elements += child.elements
        for dtype, nbytes in child.dtypes.items():
            node.dtypes[dtype] = node.dtypes.get(dtype, 0) + nbytes
    looks: object = tuple((name, child.likeness) for name, child in node.children.items())
    if (entry := node.entry) is not None:
        dtype = dtype_name(entry)
        node.tensors += 1
        node.elements += entry.nbytes // max(entry.dtype.itemsize, 1)
        node.dtypes[dtype] = node.dtypes.get(dtype, 0) + entry.nbytes
        looks = (dtype, entry.shape, looks)
    node.likeness = known.setdefault(looks, len(known))


def _rows(node: _Node, level: int, siblings: int, depth: int | None) -> Iterator[Row]:
    if depth is not None and level >= depth:
        return
    for names, child in _groups(node):
        name = names[0]
        if len(names) > 1:
            name = f"[{names[0]}-{names[-1]}]" if _is_run(names) else f"[{','.join(names)}]"
        # A chain of modules with nothing beside them is one row.
        while child.entry is None and len(child.children) == 1:
            (below, only), *_ = child.children.items()
            name, child = f"{name}.{below}", only
        count = siblings * len(names)
        yield Row(
            name=name,
            level=level,
            tensors=child.tensors * count,
            elements=child.elements * count,
            nbytes=child.nbytes * count,
            dtypes=tuple(sorted(child.dtypes, key=lambda dtype: -child.dtypes[dtype])),
            shape=None if child.entry is None else child.entry.shape,
            siblings=count,
        )
        yield from _rows(child, level + 1, count, depth)


def _groups(node: _Node) -> Iterator[tuple[list[str], _Node]]:
    """Children in order, numbered ones by number; consecutive equal children are grouped."""
    children = node.children.items()
    numbered = sorted((c for c in children if _is_number(c[0])), key=lambda c: int(c[0]))
    for child in children:
        if not _is_number(child[0]):
            yield [child[0]], child[1]
    for _, group in groupby(numbered, key=lambda child: child[1].likeness):
        equal = list(group)
        yield [name for name, _ in equal], equal[0][1]


def _is_number(name: str) -> bool:
    return name.isascii() and name.isdigit() and len(name) < 10


def _is_run(names: Iterable[str]) -> bool:
    numbers = [int(name) for name in names]
    return numbers == list(range(numbers[0], numbers[0] + len(numbers)))
