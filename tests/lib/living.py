"""How many lazy storages are alive, whatever earlier tests left behind."""

from __future__ import annotations

import gc

from dormant import _C


def live_storages() -> int:
    """How many lazy storages anything still refers to.

    Objects that refer to each other are freed when Python's collector next runs, so that a count
    of this process may fall at any moment by what an earlier test left. They are freed first.
    """
    gc.collect()
    return _C.live_storages()
