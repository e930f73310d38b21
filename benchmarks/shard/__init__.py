"""Time and memory of an eighth of a large tensor, beside the whole."""

from benchmarks.shard.task import NAME, TITLE, run

__all__ = ["NAME", "TITLE", "run"]
