"""What the command line chose, as every task sees it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Options:
    """Choices for a run.

    Attributes:
        repeat: samples of each measurement; tables show their median.
        quick: small sizes, for checking that everything runs; the times mean little.
    """

    repeat: int = 3
    quick: bool = False
