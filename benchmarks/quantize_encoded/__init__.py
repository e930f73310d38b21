"""Large encoded checkpoints to nf4: fp8 into files, mxfp4 and GGUF in memory."""

from benchmarks.quantize_encoded.task import NAME, TITLE, run

__all__ = ["NAME", "TITLE", "run"]
