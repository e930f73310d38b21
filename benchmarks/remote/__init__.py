"""Time and memory of loading a checkpoint from a server, beside downloading it first."""

from benchmarks.remote.task import NAME, TITLE, run

__all__ = ["NAME", "TITLE", "run"]
