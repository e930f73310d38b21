"""What the command line chose, as every task sees it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from benchmarks import child


@dataclass(frozen=True)
class Options:
    """Choices for a run.

    Attributes:
        repeat: samples of each measurement; tables show their median.
        quick: small sizes, for checking that everything runs; the times mean little.
        large: also what takes long: larger sizes, and all pairings of forms and dtypes.
        fork: processes start as forks of one that has imported the libraries: sooner, and memory
            counts a little otherwise.
    """

    repeat: int = 3
    quick: bool = False
    large: bool = False
    fork: bool = False

    def call(self, function: str, **arguments: Any) -> Any:
        """Calls `package.module:name` in another process; see `child.call`."""
        return (child.call_forked if self.fork else child.call)(function, **arguments)
