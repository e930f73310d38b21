"""Models that are larger than memory, quantized under an enforced limit."""

from benchmarks.quantize_large.task import NAME, TITLE, run

__all__ = ["NAME", "TITLE", "run"]
