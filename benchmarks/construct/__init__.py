"""Time and memory of constructing large models without their values."""

from benchmarks.construct.task import NAME, TITLE, run

__all__ = ["NAME", "TITLE", "run"]
