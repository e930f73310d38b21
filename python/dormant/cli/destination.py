"""Where a subcommand writes: nothing is overwritten unasked, and nothing incomplete is left."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from pathlib import Path

from dormant.cli.outcome import UsageError
from dormant.publication.publication import made_folder
from dormant.publication.staging import remove_abandoned, staging_folder


def output(name: str) -> Path:
    """The path of an output.

    Raises:
        UsageError: the name is empty, which would stand for the current folder.
    """
    if not name:
        raise UsageError("OUT is empty; '.' is the current folder.")
    return Path(name)


def is_folder(path: Path, file_endings: Iterable[str]) -> bool:
    """Whether an output of this name is a folder: it is one, or has no ending of a file."""
    return path.is_dir() or path.suffix not in file_endings


@contextlib.contextmanager
def new_file(path: Path, *, force: bool) -> Iterator[Path]:
    """`path`, for somebody who writes it in one step, as `Publication` does.

    Raises:
        UsageError: it exists, and `force` is false.
    """
    if path.exists() and not force:
        raise UsageError(f"{path} exists. Choose another name, or pass --force to replace it.")
    with _parents(path):
        yield path


@contextlib.contextmanager
def new_folder(path: Path, *, force: bool) -> Iterator[Path]:
    """A folder that gets the name `path` when all is done; what ends it early removes it.

    An empty folder that is there gets the files then. With `force` and a folder that has files it
    is that folder, whose files are replaced one by one.

    Raises:
        UsageError: it is a file, or it has files and `force` is false.
    """
    if path.exists() and not path.is_dir():
        raise UsageError(f"{path} is a file, and a folder is to be written. Choose another name.")
    place = path if path.is_dir() else path.parent
    remove_abandoned(place)
    if path.is_dir() and any(path.iterdir()):
        if not force:
            raise UsageError(
                f"the folder {path} has files. Choose another name, or pass --force to replace "
                "the weights in it."
            )
        yield path
        return
    # The current folder, a mounted one or a link cannot be replaced, and a mounted one is on a
    # device of its own.
    exists = path.is_dir()
    with _parents(path), staging_folder(place) as staging:
        yield staging.files
        if exists:
            for made in sorted(staging.files.iterdir()):
                made.replace(path / made.name)
        else:
            staging.files.replace(path)


@contextlib.contextmanager
def _parents(path: Path) -> Iterator[None]:
    """Makes the folders above `path`; those that are new go again with what ends it early."""
    above = next((folder for folder in path.parents if folder.exists()), path.parent)
    if not above.is_dir():
        raise UsageError(f"{above} is a file, so nothing can be written to {path}.")
    with made_folder(path.parent):
        yield


def check_apart(out: Path, inputs: Iterable[Path | str]) -> None:
    """Refuses to write where it is read; what is no path is a URL.

    Raises:
        UsageError: an input is the output, or lies in it.
    """
    place = out.resolve()
    for path in inputs:
        if isinstance(path, str):
            continue
        found = path.resolve()
        if found == place or place in found.parents:
            raise UsageError(
                f"{path} is read, so nothing is written to {out}. Choose another output."
            )


def files_below(path: Path) -> list[dict[str, object]]:
    """Path and bytes of a file, or of the files in a folder, as `--json` shows them."""
    files = sorted(p for p in path.iterdir() if p.is_file()) if path.is_dir() else [path]
    return [{"path": str(file), "nbytes": file.stat().st_size} for file in files]
