"""Time and memory until a model has its initial values."""

from benchmarks.initialize.task import NAME, TITLE, run

__all__ = ["NAME", "TITLE", "run"]
