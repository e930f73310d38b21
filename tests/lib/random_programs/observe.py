"""What can be seen of the results of a program, as plain values that compare with ==."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from compare import bits, components, geometry, storage_key

from .run import Outcome

Facts = dict[str, Any]


def _children(name: str, value: Any) -> Iterator[tuple[str, torch.Tensor]]:
    if isinstance(value, torch.Tensor):
        yield name, value
        with contextlib.suppress(RuntimeError):  # of a view of several whose base was written
            if value.is_leaf and value.grad is not None:
                yield f"{name}.grad", value.grad
    elif isinstance(value, nn.Module):
        for path, tensor in [
            *value.named_parameters(remove_duplicate=False),
            *value.named_buffers(remove_duplicate=False),
        ]:
            yield from _children(f"{name}.{path}", tensor)
    elif isinstance(value, (tuple, list)):
        for i, element in enumerate(value):
            yield from _children(f"{name}[{i}]", element)
    elif isinstance(value, dict):
        for key, element in value.items():
            yield from _children(f"{name}[{key!r}]", element)


def tensors(outcome: Outcome) -> dict[str, torch.Tensor]:
    """Every tensor that can be reached from the variables, by its path."""
    found: dict[str, torch.Tensor] = {}
    for name, value in outcome.names.items():
        found.update(_children(name, value))
    return found


def held(outcome: Outcome) -> dict[str, torch.Tensor | nn.Module]:
    """What can be materialized: every tensor, and the modules."""
    modules = {n: v for n, v in outcome.names.items() if isinstance(v, nn.Module)}
    return {**tensors(outcome), **modules}


def graph(tensor: torch.Tensor, names: dict[int, str]) -> tuple[str, ...]:
    """The nodes of the autograd graph, each with the numbers of the nodes it leads to."""
    if tensor.grad_fn is None:
        return ()
    numbers = {tensor.grad_fn: 0}
    queue = [tensor.grad_fn]
    lines = []
    for node in queue:
        following = []
        for other, place in node.next_functions:
            if other is None:
                following.append("-")
                continue
            if other not in numbers:
                numbers[other] = len(queue)
                queue.append(other)
            following.append(f"{numbers[other]}:{place}")
        leaf = getattr(node, "variable", None)
        of = "" if leaf is None else f" of {names.get(id(leaf), 'a leaf')}"
        lines.append(f"{type(node).__name__}({', '.join(following)}){of}")
        if len(lines) > 200:
            break
    return tuple(lines)


def _ties(found: dict[str, torch.Tensor]) -> Iterator[tuple[str, Facts]]:
    objects: dict[int, str] = {}
    storages: dict[int, str] = {}
    for name, tensor in found.items():
        facts: Facts = {"is": objects.setdefault(id(tensor), name)}
        if tensor.layout is torch.strided and not tensor.is_quantized:
            facts["shares the storage of"] = storages.setdefault(storage_key(tensor), name)
        yield name, facts


def _aliases_a_hidden_base(tensor: torch.Tensor, names: dict[int, str]) -> bool:
    """Whether it is a view of nothing but itself.

    What `repeat`, `tile` and `stack` make of a tensor of inference mode is: of a tensor that
    nobody else has.
    """
    base = None if tensor.is_inference() else tensor._base
    if base is None or id(base) in names or base.layout is not torch.strided:
        return False
    mine = tensor.size(), tensor.stride(), tensor.storage_offset()
    return mine == (base.size(), base.stride(), base.storage_offset())


def structure(outcome: Outcome) -> dict[str, Facts]:
    """Everything but the values of tensors, by path."""
    found = tensors(outcome)
    names: dict[int, str] = {}
    for name, tensor in found.items():
        names.setdefault(id(tensor), name)
    seen = dict(_ties(found))
    for name, tensor in found.items():
        facts = seen[name]
        try:
            facts |= geometry(tensor)
        except (
            RuntimeError
        ) as error:  # what autograd says of a view of several whose base was written
            facts["geometry raises"] = str(error)
            continue
        if "strides" in facts:  # some mean nothing (docs/limits.md)
            facts["strides"] = [
                None if size == 1 or tensor.numel() == 0 else stride
                for size, stride in zip(tensor.size(), tensor.stride(), strict=True)
            ]
        facts["graph"] = graph(tensor, names)
        facts["output_nr"] = tensor.output_nr
        facts["retains_grad"] = tensor.retains_grad
        if _aliases_a_hidden_base(tensor, names):
            facts["is_view"] = False
        elif not tensor.is_inference() and tensor._is_view():
            base = tensor._base
            facts["base"] = names.get(id(base), tuple(base.size()) if base is not None else None)
    for name, value in outcome.names.items():
        if isinstance(value, nn.Module):
            seen[name] = {"module": repr(value), "mode": [m.training for m in value.modules()]}
        elif not any(True for _ in _children(name, value)):
            seen[name] = {"value": repr(value)}
    return seen


def _lies_outside(tensor: torch.Tensor) -> bool:
    """Whether PyTorch made a tensor over bytes that its storage does not have (resize_, set_)."""
    if tensor.layout is not torch.strided or any(size == 0 for size in tensor.size()):
        return False
    last = sum(
        (size - 1) * stride for size, stride in zip(tensor.size(), tensor.stride(), strict=True)
    )
    end = (tensor.storage_offset() + last + 1) * tensor.element_size()
    return min(tensor.size(), default=1) < 0 or end > tensor.untyped_storage().nbytes()


def _bytes(tensor: torch.Tensor) -> bytes:
    if _lies_outside(tensor):
        return b"outside its storage"
    try:
        return bits(tensor).numpy().tobytes()
    except RuntimeError as error:  # a view of an inference tensor made outside that mode
        return repr(error).encode()


def values(outcome: Outcome) -> dict[str, Facts]:
    """The bytes of all tensors and of the storages behind them, by path."""
    seen: dict[str, Facts] = {}
    storages: set[int] = set()
    for name, tensor in tensors(outcome).items():
        parts = components(tensor)
        seen[name] = {f"bits {part}".rstrip(): _bytes(t) for part, t in parts.items()}
        if set(parts) == {""} and storage_key(tensor) not in storages:
            storages.add(storage_key(tensor))
            storage = torch.empty(0, dtype=torch.uint8).set_(tensor.untyped_storage())
            seen[name]["storage"] = storage.numpy().tobytes()
    return seen


def gradients(outcome: Outcome) -> dict[str, Facts]:
    """What the graph of each tensor gives for all leaves, or the type of what it raises."""
    found = tensors(outcome)
    leaves: dict[int, tuple[str, torch.Tensor]] = {}
    for name, tensor in found.items():
        with contextlib.suppress(RuntimeError):
            if tensor.requires_grad and tensor.is_leaf:
                leaves.setdefault(id(tensor), (name, tensor))
    seen: dict[str, Facts] = {}
    for name, tensor in found.items():
        try:
            if tensor.grad_fn is None or not leaves:
                continue
            grads = torch.autograd.grad(
                tensor,
                [leaf for _, leaf in leaves.values()],
                torch.ones_like(tensor),
                allow_unused=True,
                retain_graph=True,
            )
        except Exception as error:
            seen[name] = {"gradients raise": type(error).__name__}
            continue
        seen[name] = {
            f"gradient of {leaf}": None if grad is None else _bytes(grad.to_dense())
            for (leaf, _), grad in zip(leaves.values(), grads, strict=True)
        }
    return seen
