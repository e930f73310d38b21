"""Out of memory: one error that says how much is needed and how much is free."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator

from dormant.reporting.memory import available_bytes
from dormant.tensors.exhausted_memory import is_exhausted_memory
from dormant.tensors.inventory import take_inventory
from dormant.text.table import format_bytes, format_count


@contextlib.contextmanager
def explained(operation: str, roots: Iterable[tuple[str, object]]) -> Iterator[None]:
    """Raises MemoryError for exhausted memory, however PyTorch or Python reported it.

    Args:
        operation: the operation that ran out of memory, for the message.
        roots: what is to be materialized, (name, object) pairs.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_exhausted_memory(error):
            raise
        rest = take_inventory(roots)
        sizes = [rest.storage_nbytes[storage] for storage in rest.lazy_storages]
        free = available_bytes()
        raise MemoryError(
            f"{operation}: out of memory. {format_count(len(sizes), 'storage')} still lazy "
            f"{'needs' if len(sizes) == 1 else 'need'} {format_bytes(sum(sizes))}, the largest "
            f"{format_bytes(max(sizes, default=0))}"
            + (f"; {format_bytes(free)} free" if free is not None else "")
            + ". Tensors that are finished stay real. Free memory and call it again to continue, "
            "or use less memory: a smaller dtype, fewer tensors at a time, quantization or shards. "
            f"Cause: {str(error).partition(chr(10))[0] or type(error).__name__}"
        ) from error
