"""The arguments of `dormant bench`."""

from __future__ import annotations

import argparse

from dormant_command.arguments import positive
from dormant_command.outcome import UsageError

SUMMARY = "measure construct, materialize, save, load and quantize beside eager PyTorch"
DESCRIPTION = """\
    Constructs a Llama lazily and eagerly, and measures time and peak memory. Each run is a separate
    process, the runs of both alternate, and every byte of their outputs is compared.

    "mapped" maps the bytes of the file, whose pages are read when they are accessed, which is after
    the measured time; "copied" reads them. "eager" holds the model in memory before it loads the
    checkpoint. Measurements beside other libraries are in the source repository: `make bench`.
"""
EXAMPLES = """\
    examples:
      dormant bench
      dormant bench load quantize --size 1B --repeat 5
      dormant bench --size tiny --json
"""
MEASUREMENTS = ("construct", "materialize", "save", "load", "quantize")
SIZES = ("tiny", "300M", "1B", "7B")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds what this command takes."""
    parser.add_argument(
        "names",
        metavar="NAME",
        nargs="*",
        help=f"what to measure: {', '.join(MEASUREMENTS)} (default: all)",
    )
    parser.add_argument(
        "--size", choices=SIZES, default="300M", help="size of the Llama (default: 300M)"
    )
    parser.add_argument(
        "--repeat", metavar="N", type=positive, default=1, help="number of runs (default: 1)"
    )
    parser.add_argument(
        "--threads", metavar="N", type=positive, help="PyTorch's threads (default: its own choice)"
    )
    parser.add_argument(
        "--folder", metavar="PATH", help="folder for temporary files (default: that of the system)"
    )


def check(options: argparse.Namespace) -> None:
    """Raises UsageError if a name is not that of a measurement."""
    for name in options.names:
        if name not in MEASUREMENTS:
            raise UsageError(
                f"unknown measurement {name!r}, expected one of {', '.join(MEASUREMENTS)}."
            )
