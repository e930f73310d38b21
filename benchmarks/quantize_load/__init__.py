"""Time and memory from a checkpoint in bfloat16 to a quantized model."""

from benchmarks.quantize_load.task import NAME, TITLE, run

__all__ = ["NAME", "TITLE", "run"]
