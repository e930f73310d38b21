"""Time and memory from checkpoint files to a model that has their values."""

from benchmarks.load.task import NAME, TITLE, run

__all__ = ["NAME", "TITLE", "run"]
