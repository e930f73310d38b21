"""Time and memory until a model has its initial values."""

from benchmarks.initialise.task import NAME, TITLE, run

__all__ = ["NAME", "TITLE", "run"]
