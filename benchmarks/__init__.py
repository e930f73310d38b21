"""Measurements beside the peers: `python -m benchmarks --help`.

A task is a module or folder with `NAME`, `TITLE` and `run(options)`. Where there are peers, each is
a file in the folder `contestants` of its task. What contestants give is compared before any of them
is timed.
"""

TASKS = (
    "imports",
    "construct",
    "operators",
    "tiny_models",
    "initialize",
    "shard",
    "ranks",
    "jump",
    "load",
    "skip_init",
    "distributed_checkpoint",
    "remote",
    "quantize_kernels",
    "gguf_blocks",
    "quantize_load",
    "quantize_experts",
    "decode",
)
ON_REQUEST = ("quantize_large", "quantize_encoded")  # takes long, and much memory and disk
EVERY = (*TASKS, *ON_REQUEST)
