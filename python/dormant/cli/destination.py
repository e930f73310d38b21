"""The output of a subcommand: overwritten only on request, and never left incomplete."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from pathlib import Path

from dormant.publication.publication import made_folder
from dormant.publication.staging import remove_abandoned, staging_folder
from dormant_command.outcome import UsageError


def output(name: str) -> Path:
    """The path of an output.

    Raises:
        UsageError: the name is empty, which would mean the current folder.
    """
    if not name:
        raise UsageError("OUT is empty. Pass '.' for the current folder.")
    return Path(name)


def is_folder(path: Path, file_endings: Iterable[str]) -> bool:
    """Whether an output of this name is a folder: it exists as one, or has no suffix of a file.

    Raises:
        UsageError: the suffix looks like that of a format that cannot be written.
    """
    endings = tuple(file_endings)
    if path.is_dir():
        return True
    if path.suffix in endings:
        return False
    # "llama-3.1" and "qwen2.5-7b" have a suffix, too.
    if path.suffix[1:].isalpha() and not path.exists():
        raise UsageError(
            f"cannot write {path}: {path.suffix!r} is not an output format. Expected a name with "
            f"{', '.join(endings)}, or the name of a folder. (To write a folder of this name, "
            "create it first.)"
        )
    return True


@contextlib.contextmanager
def new_file(path: Path, *, force: bool) -> Iterator[Path]:
    """`path`, for a caller that writes it in one step, as `Publication` does.

    Raises:
        UsageError: it exists, and `force` is false.
    """
    if path.exists() and not force:
        raise UsageError(f"{path} exists. Choose another name, or pass --force to replace it.")
    with _parents(path):
        yield path


@contextlib.contextmanager
def new_folder(path: Path, *, force: bool) -> Iterator[Path]:
    """A folder that is renamed to `path` when everything is done; an error removes it.

    If `path` is an empty folder, the files are moved into it at the end. With `force`, and if
    `path` has files, it is that folder, whose files are replaced one by one.

    Raises:
        UsageError: it is a file, or it has files and `force` is false.
    """
    if path.exists() and not path.is_dir():
        raise UsageError(f"{path} is a file, but the output is a folder. Choose another name.")
    place = path if path.is_dir() else path.parent
    remove_abandoned(place)
    if path.is_dir() and any(path.iterdir()):
        if not force:
            raise UsageError(
                f"the folder {path} is not empty. Choose another name, or pass --force to replace "
                "the weights in it."
            )
        yield path
        return
    # The current folder, a mounted folder or a link cannot be replaced, and a mounted folder is on
    # another device.
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
    """Creates the parent folders of `path`; an error removes those that are new."""
    above = next((folder for folder in path.parents if folder.exists()), path.parent)
    if not above.is_dir():
        raise UsageError(f"cannot write {path}: {above} is a file.")
    with made_folder(path.parent):
        yield


def check_apart(out: Path, inputs: Iterable[Path | str]) -> None:
    """Refuses to overwrite inputs; inputs that are strings are URLs.

    Raises:
        UsageError: an input is the output, or is inside it.
    """
    place = out.resolve()
    for path in inputs:
        if isinstance(path, str):
            continue
        found = path.resolve()
        if found == place or place in found.parents:
            raise UsageError(
                f"the output {out} would overwrite the input {path}. Choose another output."
            )


def files_below(path: Path) -> list[dict[str, object]]:
    """The path and bytes of a file, or of the files in a folder, for `--json`."""
    files = sorted(p for p in path.iterdir() if p.is_file()) if path.is_dir() else [path]
    return [{"path": str(file), "nbytes": file.stat().st_size} for file in files]
