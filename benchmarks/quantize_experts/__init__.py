"""Mixtures of experts to nf4: from a checkpoint, in a forward, and larger than memory."""

from benchmarks.quantize_experts.task import NAME, TITLE, run

__all__ = ["NAME", "TITLE", "run"]
