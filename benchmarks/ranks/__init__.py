"""Several ranks fill the parts of one model from a checkpoint."""

from benchmarks.ranks.task import NAME, TITLE, run

__all__ = ["NAME", "TITLE", "run"]
