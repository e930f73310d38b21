"""Models of which less than 99 % of the bytes stay lazy, and the operators that read values.

Every entry names the operators as `dormant._C.value_reads()` reports them and says why the model's
own code needs the values while it is built. `claims.py` checks both directions: a model that is not
listed keeps 99 % lazy, a model that is listed reads exactly through these operators, so an entry
that stopped being true fails.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ValueReader:
    """Why a model cannot stay lazy.

    Args:
        operators: What read values and made most of the bytes real.
        because: What the model's code does with the values.
    """

    operators: frozenset[str]
    because: str


VALUE_READERS: dict[str, dict[str, ValueReader]] = {
    "transformers": {},
    "timm": {},
    "torchvision": {},
    "diffusers": {},
}
