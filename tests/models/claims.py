"""The claim every catalog row is put to: built lazily it is the model that eager builds."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

from catalog import Model
from value_readers import VALUE_READERS

from compare import compare

LAZY_RATE = 0.99


@cache
def recorded_minimum() -> dict[str, dict[str, dict[str, int]]]:
    """What `record_minimum.py` wrote: tensors and bytes, by library and model."""
    minimum: dict[str, dict[str, dict[str, int]]] = json.loads(
        (Path(__file__).parent / "minimum.json").read_text()
    )
    return minimum


def assert_lazy_equals_eager(library: str, row: Model) -> None:
    """Fails unless names, ties, geometry, generators and every bit equal eager construction.

    Args:
        library: A key of `libraries.CATALOGS`.
        row: The model.

    Raises:
        AssertionError: What differs; or fewer tensors or bytes were compared than recorded; or
            less than 99 % of the bytes stayed lazy and `value_readers.py` gives no reason; or it
            gives one that is not the reason.
    """
    reader = VALUE_READERS[library].get(row.name)
    minimum = recorded_minimum()[library][row.name]
    counts = compare(
        row.build,
        expect_lazy=None if reader else LAZY_RATE,
        min_tensors=minimum["tensors"],
        min_bytes=minimum["bytes"],
    )
    if reader:
        readers = {name for name, nbytes in counts.reads.items() if nbytes > 0.01 * counts.nbytes}
        assert counts.lazy_rate < LAZY_RATE, (
            f"{row.name} stays lazy ({counts.lazy_rate:.4f}): take it off value_readers.py"
        )
        assert readers == reader.operators, (
            f"{row.name}: {counts.reads} read values, "
            f"value_readers.py expects {sorted(reader.operators)}"
        )


def assert_catalog_is_recorded(library: str, names: list[str], *, at_least: int) -> None:
    """Fails unless the catalog is as large as promised and no list names a model it lacks."""
    assert len(names) >= at_least, f"{library} has {len(names)} models, promised {at_least}"
    assert recorded_minimum()[library].keys() == set(names), "run record_minimum.py"
    assert VALUE_READERS[library].keys() <= set(names), "value_readers.py names unknown models"
