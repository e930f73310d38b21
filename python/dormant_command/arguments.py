"""Types of arguments that several subcommands have."""

from __future__ import annotations

import argparse

from dormant_command.text import parse_bytes

_DEFAULT_DTYPES = ("float64", "float32", "float16", "bfloat16")
DTYPE_NAMES = (*_DEFAULT_DTYPES, "float8_e4m3fn", "float8_e5m2")


def dtype(text: str) -> str:
    """The name of a floating-point dtype."""
    name = text.removeprefix("torch.")
    if name not in DTYPE_NAMES:
        raise argparse.ArgumentTypeError(f"expected one of {', '.join(DTYPE_NAMES)}; got {text!r}")
    return name


def default_dtype(text: str) -> str:
    """The name of a dtype in which PyTorch can construct models."""
    name = dtype(text)
    if name not in _DEFAULT_DTYPES:
        raise argparse.ArgumentTypeError(f"PyTorch cannot construct a model in {text}")
    return name


def size(text: str) -> int:
    """A number of bytes."""
    found = parse_bytes(text)
    if not found:
        raise argparse.ArgumentTypeError(f"expected a size like 5GB or 500MiB, got {text!r}")
    return found


def positive(text: str) -> int:
    """A positive integer."""
    if not text.isascii() or not text.isdigit() or not int(text):
        raise argparse.ArgumentTypeError(f"expected a positive integer, got {text!r}")
    return int(text)


def seed(text: str) -> int:
    """A seed for `torch.manual_seed` that is not negative."""
    if not text.isascii() or not text.isdigit() or int(text) >= 1 << 64:
        raise argparse.ArgumentTypeError(f"expected an integer below 2**64, got {text!r}")
    return int(text)


def renaming(text: str) -> tuple[str, str]:
    """OLD=NEW."""
    old, separator, new = text.partition("=")
    if not separator:
        raise argparse.ArgumentTypeError(f"expected OLD=NEW, got {text!r}")
    return old, new


def prefix_or_name(pairs: list[tuple[str, str]]) -> dict[str, str]:
    """The pairs as a renaming for `dormant.load`.

    Raises:
        ValueError: a name is renamed to two different names.
    """
    renamed: dict[str, str] = {}
    for old, new in pairs:
        if renamed.setdefault(old, new) != new:
            raise ValueError(f"{old!r} is renamed to both {renamed[old]!r} and {new!r}.")
    return renamed


def add_rename_option(parser: argparse.ArgumentParser, what: str) -> None:
    """`--rename OLD=NEW`, which may be repeated; `what` is its help."""
    parser.add_argument(
        "--rename", metavar="OLD=NEW", type=renaming, action="append", default=[], help=what
    )


def add_output_options(parser: argparse.ArgumentParser) -> None:
    """Options of every subcommand that writes a checkpoint to OUT."""
    parser.add_argument(
        "--max-shard-size",
        metavar="SIZE",
        type=size,
        default=5 * 10**9,
        help="largest safetensors file in a folder, such as 500MiB (default: 5GB)",
    )
    parser.add_argument(
        "--memory-budget",
        metavar="SIZE",
        type=size,
        help="most memory for tensors in flight, such as 64MiB (uses smaller tiles, fewer threads)",
    )
    parser.add_argument(
        "--force", action="store_true", help="replace OUT, or the weights in the folder OUT"
    )


def add_reading_options(parser: argparse.ArgumentParser, verb: str) -> None:
    """Options of subcommands that read checkpoints of any kind.

    Args:
        parser: the subcommand's.
        verb: what it does with encoded tensors, for the help.
    """
    parser.add_argument(
        "--key",
        help="the mapping that holds the tensors in a file of torch.save (default: the only one) "
        "or in a checkpoint of ranks (default: all)",
    )
    parser.add_argument(
        "--foreign",
        choices=("inert", "error"),
        default="inert",
        help="objects of unknown classes in files of torch.save: not created (default) or an error",
    )
    parser.add_argument(
        "--no-decode",
        action="store_true",
        help=f"{verb} encoded tensors (fp8, mxfp4, 4-bit codes, ...) as they are stored",
    )
