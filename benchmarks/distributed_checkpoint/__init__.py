"""Folders of torch.distributed.checkpoint: loading, making one file, saving."""

from benchmarks.distributed_checkpoint.task import NAME, TITLE, run

__all__ = ["NAME", "TITLE", "run"]
