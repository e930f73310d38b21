"""Fuzzes the readers of torch.save's files: `python fuzz/torch_zip.py --seconds 60`.

An input becomes a file: as it is, as the pickle of a zip file that is otherwise whole, or as the
pickle of a file in the older layout. dormant may refuse it with a ValueError or a
NotImplementedError that names the file; whatever it accepts must come to life, and where torch.load
accepts it too, with the same names, geometry and bits.

Inputs are valid files with a few bytes changed, a different sequence for each --seed. Where atheris
is installed, --atheris lets it look for inputs that reach new code instead; what follows -- goes to
libFuzzer.
"""

from __future__ import annotations

import argparse
import io
import random
import struct
import sys
import tempfile
import time
import warnings
from pathlib import Path

import torch

if "--atheris" in sys.argv:
    import atheris

    with atheris.instrument_imports(include=["dormant"]):
        import dormant
else:
    import dormant

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests" / "lib"))
from torch_bytes import Record, Storage, Tensor, legacy_bytes, pickled, zip_bytes

AS_IT_IS, ZIPPED, OLDER = range(3)
STORAGES = {"0": struct.pack("<6f", *range(6)), "1": bytes(range(16)), "2": b""}
NUMBERS = [0, 1, 2, 3, 7, 16, 24, 64, 127, 128, 255, 256, 65535, 1 << 31, (1 << 32) - 1]


def seeds() -> list[bytes]:
    """Valid inputs, each with its first byte saying how it becomes a file."""
    weight = torch.arange(6.0).view(2, 3)
    states = [
        {"a": weight, "tied": weight, "row": weight[1], "t": weight.t(), "none": torch.empty(0)},
        {"model": {"p": torch.nn.Parameter(weight.half())}, "step": 3, "names": ["x", ("y", 1.5)]},
        {"c": torch.ones(2, dtype=torch.complex64).conj(), "u": torch.ones(3, dtype=torch.uint16)},
        torch.nn.BatchNorm1d(2).state_dict(),
    ]
    files = []
    for state in states:
        for zipped in (True, False):
            out = io.BytesIO()
            torch.save(state, out, _use_new_zipfile_serialization=zipped)
            files.append(bytes([AS_IT_IS]) + out.getvalue())
    for mode, fields in ((ZIPPED, ()), (OLDER, (None,))):
        floats = Storage("0", 6, fields=fields)
        state = {
            "a": Tensor(floats, (2, 3), (3, 1)),
            "b": Tensor(floats, (2,), (2,), 1),
            "bytes": Tensor(Storage("1", 16, torch.ByteStorage, fields), (16,)),
            "none": Tensor(Storage("2", 0, fields=fields), (0,)),
            "inner": {"list": [1, 2.5, None, True], "tuple": (1, (2, 3))},
        }
        files.append(bytes([mode]) + pickled(state))
    return files


def file_of(data: bytes) -> bytes:
    """The file that an input stands for."""
    mode, rest = (data[0] % 3, data[1:]) if data else (AS_IT_IS, b"")
    if mode == ZIPPED:
        stored = [Record(f"archive/data/{key}", value) for key, value in STORAGES.items()]
        return zip_bytes(
            [Record("archive/data.pkl", rest), *stored, Record("archive/version", b"3\n")]
        )
    if mode == OLDER:
        storages = [("0", 6, STORAGES["0"]), ("1", 16, STORAGES["1"]), ("2", 0, b"")]
        whole = legacy_bytes(None, storages)
        return whole.replace(pickled(None), rest, 1)
    return rest


def mutated(data: bytes, others: list[bytes], rng: random.Random) -> bytes:
    """`data` with a few changes."""
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 3, 8))):
        at = rng.randrange(1, max(len(out), 2))
        match rng.randrange(8):
            case 0:
                out[at : at + 1] = bytes([rng.randrange(256)])
            case 1:
                out[at : at + 1] = bytes(
                    [(out[at] if at < len(out) else 0) ^ 1 << rng.randrange(8)]
                )
            case 2 | 3:
                size = rng.choice((1, 2, 4, 8))
                number = rng.choice(NUMBERS) + rng.choice((0, 0, 1, -1))
                out[at : at + size] = (number % (1 << 8 * size)).to_bytes(size, "little")
            case 4:
                del out[at : at + rng.randrange(1, 20)]
            case 5:
                out[at:at] = out[at : at + rng.randrange(1, 40)]
            case 6:
                other = rng.choice(others)
                start = rng.randrange(len(other))
                out[at:at] = other[start : start + rng.randrange(1, 40)]
            case _:
                if rng.randrange(8) == 0:
                    del out[at:]
    return bytes(out)


def raw(tensor: torch.Tensor) -> bytes:
    """All bytes of the storage: an expanded tensor may have more elements than fit anywhere."""
    storage = tensor.untyped_storage()
    return bytes(torch.empty(0, dtype=torch.uint8).set_(storage).tolist())  # type: ignore[call-overload]


def describe(tensor: torch.Tensor) -> object:
    """Everything but the values."""
    return (
        *(tensor.dtype, tuple(tensor.shape), tensor.stride()),
        *(tensor.storage_offset(), tensor.is_conj(), tensor.is_neg()),
    )


def holds_tensors(value: object) -> bool:
    """Whether it is a mapping of tensors."""
    return isinstance(value, dict) and any(
        isinstance(item, torch.Tensor) for item in value.values()
    )


def must_name(path: Path, error: Exception) -> None:
    """Fails unless the message says which file."""
    if str(path) not in str(error):
        raise AssertionError(f"the message does not name the file: {error}") from error


def check(data: bytes, path: Path) -> bool:
    """Whether the input is accepted. Raises where anything is wrong with dormant."""
    path.write_bytes(file_of(data))
    try:
        checkpoint = dormant.open_checkpoint(path)
    except (ValueError, NotImplementedError) as error:
        must_name(path, error)
        return False
    state = dict(checkpoint)
    dormant.materialize(state)
    try:
        _ = checkpoint.extra
    except (ValueError, NotImplementedError) as error:
        must_name(path, error)
    try:
        loaded = torch.load(path)
    except Exception:  # torch.load refuses less, but also what has no version, for example
        return True
    mappings = [loaded, *loaded.values()] if isinstance(loaded, dict) else []
    for mapping in mappings:
        if isinstance(mapping, dict) and set(state) <= set(mapping):
            break
    else:  # of nested containers, which have no mapping of tensors
        assert not any(holds_tensors(mapping) for mapping in mappings), list(state)
        return True
    for name, tensor in state.items():
        assert describe(tensor) == describe(mapping[name]), name
        assert raw(tensor) == raw(mapping[name]), name
    return True


def run(runs: int | None, seconds: float, seed: int, folder: Path) -> None:
    """Tries so many inputs, or for so long."""
    rng = random.Random(seed)
    valid = seeds()
    for data in valid:
        assert check(data, folder / "model.pt"), f"a valid file was refused: {data[:60]!r}"
    done = accepted = 0
    end = time.monotonic() + seconds
    while done < runs if runs is not None else time.monotonic() < end:
        data = mutated(rng.choice(valid), valid, rng)
        try:
            accepted += check(data, folder / "model.pt")
        except BaseException:
            kept = Path(tempfile.gettempdir()) / f"torch_zip-{seed}-{done}.input"
            kept.write_bytes(data)
            print(f"run {done} of seed {seed}: the input is kept as {kept}", file=sys.stderr)
            raise
        done += 1
    print(f"{done} inputs, {accepted} accepted, {done - accepted} refused")


def run_atheris(arguments: list[str], folder: Path) -> None:
    """Lets libFuzzer choose inputs; starts from the valid ones."""
    corpus = folder / "corpus"
    corpus.mkdir()
    for number, data in enumerate(seeds()):
        (corpus / str(number)).write_bytes(data)

    def one(data: bytes) -> None:
        check(data, folder / "model.pt")

    atheris.Setup([sys.argv[0], *arguments, str(corpus)], one)
    atheris.Fuzz()


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--runs", type=int, help="inputs to try, instead of --seconds")
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--atheris", action="store_true")
    parser.add_argument("libfuzzer", nargs="*")
    options = parser.parse_args()
    # Pickle protocols other than PyTorch's own.
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as folder:
        if options.atheris:
            run_atheris(options.libfuzzer, Path(folder))
        else:
            run(options.runs, options.seconds, options.seed, Path(folder))


if __name__ == "__main__":
    main()
