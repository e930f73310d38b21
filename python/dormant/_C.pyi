"""The C++ core as Python sees it (csrc/bindings)."""

from collections.abc import Callable, Iterable, Sequence
from os import PathLike
from typing import Any, Literal, Protocol, TypedDict

import torch

class MaterializedStorage(TypedDict):
    storage: int
    nbytes: int
    operators: int
    seconds: float
    # None for what was only written to a file, "received" for what another rank has read.
    way: Literal["tiles", "mapped", "replay", "received"] | None
    read_bytes: int
    initialized_bytes: int
    sources: list[str]

# Recording, per thread.
def recording() -> bool: ...
def set_recording(on: bool, /) -> bool: ...
def value_reads() -> dict[str, int]: ...

# What a tensor is.
def is_lazy(tensor: torch.Tensor, /) -> bool: ...
def carries_key(tensor: torch.Tensor, /) -> bool: ...
def storage_id(tensor: torch.Tensor, /) -> int: ...
def storage_nbytes(tensor: torch.Tensor, /) -> int: ...
def operators(tensor: torch.Tensor, /) -> list[str]: ...
def is_statistic(tensor: torch.Tensor, /) -> bool:
    """Whether it is lazy and a statistic that quantizing computes besides the codes."""

def sources(tensor: torch.Tensor, /) -> set[str]: ...
def live_storages() -> int: ...
def digest(tensor: torch.Tensor, /) -> int | None:
    """A digest of the draws and constants in its history; None if there are none."""

def history_digest(tensor: torch.Tensor, /) -> int:
    """A digest of all that its bytes come from, including places in files; 0 if it has memory."""

def file_ranges(tensor: torch.Tensor, /) -> list[tuple[str, int, int]]:
    """(name, begin, end) of the tensors of files that its history reads, in ascending order."""

class Twin:
    """The bytes of a lazy storage, computed or received in separate memory."""

    def __init__(self, tensor: torch.Tensor, /) -> None: ...
    @property
    def bytes(self) -> torch.Tensor:
        """Flat uint8, lazy until materialized."""
    def give(self) -> None:
        """Gives this memory to the storage, if the storage is still as lazy as it was."""

def tensor_over(storage: torch.UntypedStorage, /) -> torch.Tensor: ...

# Materializing storages.
def materialize(
    tensors: Sequence[torch.Tensor],
    values: Literal["exact", "fast", "empty"],
    on_step: Callable[[int, int], None] | None,
    memory_budget: int | None = None,
    mmap: Literal["auto", "always", "never"] = "auto",
    held: HeldTensors | None = None,
) -> list[MaterializedStorage]:
    """Afterwards, also after an error, no given tensor carries the key unless it is lazy."""

def write_to_device(
    tensor: torch.Tensor,
    destination: torch.Tensor,
    on_step: Callable[[int, int], None] | None,
    memory_budget: int | None = None,
) -> list[MaterializedStorage]:
    """Writes a lazy tensor, which stays lazy, to a dense tensor on another device."""

class Turn:
    """If two threads load the same things (addresses), the second one waits for the first."""

    def __init__(self, things: Sequence[int], /) -> None: ...
    def end(self) -> None: ...
    @staticmethod
    def ended() -> int:
        """The number of turns of all threads that have ended so far."""

class HeldTensors:
    def __init__(self, tensors: Sequence[torch.Tensor], /) -> None: ...
    def restore(self) -> None: ...
    def keep(self) -> None: ...
    def prepare_to_keep(self) -> None: ...
    def begun(self) -> list[int]: ...
    def touched(self) -> list[int]:
        """The storages (`storage_id`) that were written to or materialized since."""

def read_of(tensor: torch.Tensor, /) -> torch.Tensor: ...
def quantize(
    tensor: torch.Tensor, quantizer: Quantizer, outputs: Sequence[torch.Tensor] = ()
) -> list[torch.Tensor]: ...
def exact_path() -> str: ...
def settle(tensor: torch.Tensor, /) -> None: ...
def check_write_budget(tensors: Sequence[torch.Tensor], memory_budget: int, /) -> None: ...
def write(
    tensors: Sequence[tuple[torch.Tensor, int]],
    descriptor: int,
    path: str,
    on_step: Callable[[int, int], None] | None,
    memory_budget: int | None = None,
    /,
) -> None: ...

# Copies and recipes.
def clone_storage(tensor: torch.Tensor, /) -> torch.Tensor: ...
def view_as(
    flat: torch.Tensor,
    dtype: torch.dtype,
    sizes: Sequence[int],
    strides: Sequence[int],
    storage_offset: int,
    /,
) -> torch.Tensor: ...
def dump(tensor: torch.Tensor, /) -> tuple[bytes, list[torch.Tensor]]: ...
def load(document: bytes, tensors: Sequence[torch.Tensor], /) -> torch.Tensor: ...

version: str

def torch_version() -> str: ...

# What an object holds.
def attributes(object: object, /) -> dict[object, object] | None:
    """Its own attributes, whatever its class does with `__dict__`; None if it cannot have any."""

def holders(
    objects: list[object], followed: tuple[type, ...], ignored: tuple[type, ...], /
) -> list[int]:
    """Positions of the objects that may hold a tensor; runs none of their code.

    Objects of a type in `followed` always may; objects of a type in `ignored` never do.
    """

# For tests.
def set_faults(text: str, /) -> dict[str, int]:
    """Makes calls fail (csrc/system/faults.h); returns the counts since the last call."""

# Files, and what the formats of checkpoints say about them.
class RangeReader(Protocol):
    """Any number of threads call it at the same time, and hold nothing but Python's lock."""

    def read_into(self, offset: int, view: memoryview, /) -> None:
        """Fills `view` with the bytes from `offset` on, or raises. Then the view is released."""
    def check(self) -> None:
        """Raises ValueError if the bytes have changed since the reader was created."""

class File:
    """An open regular file. Raises OSError or ValueError if `path` is not one."""

    def __init__(self, path: str | PathLike[str]) -> None: ...
    @staticmethod
    def over(reader: RangeReader, name: str, size: int) -> File:
        """A file of `size` bytes that `reader` supplies; `name` becomes its path."""
    @property
    def path(self) -> str: ...
    @property
    def is_remote(self) -> bool:
        """Whether it was created by `over`."""
    @property
    def size(self) -> int: ...
    def part(self, offset: int, size: int) -> File:
        """Some of its bytes as a separate file; raises ValueError if it has no such bytes."""
    def copy_always(self) -> None:
        """With mmap="auto", its bytes are not mapped from now on."""
    def check(self) -> None:
        """Raises ValueError if the file changed since it was opened."""
    def read(self, offset: int, count: int) -> bytes: ...
    def storage(self, dtype: torch.dtype, offset: int, nbytes: int) -> FileStorage: ...

class FileStorage:
    def tensor(self) -> torch.Tensor:
        """All of it, flat and lazy; on one storage as long as that is alive, lazy and unwritten."""
    def check(self) -> None:
        """Raises ValueError if its files changed, or hold something else than was described."""

def finish_background() -> None:
    """Waits for reads whose result is not needed, and prevents new ones in the background."""

class GgufArray:
    def __len__(self) -> int: ...
    def values(self) -> list[Any]: ...

def gguf_entries(
    file: File,
) -> tuple[
    list[tuple[str, torch.dtype, tuple[int, ...], int, int, str]],
    dict[str, int | float | bool | str | GgufArray],
]: ...
def safetensors_entries(
    file: File,
) -> tuple[list[tuple[str, torch.dtype, tuple[int, ...], int, int]], dict[str, str]]: ...
def safetensors_dtypes() -> dict[torch.dtype, int]:
    """How many elements of the format one element of each dtype is; only dtypes that it has."""

def lay_out_safetensors(
    tensors: Sequence[tuple[bytes, torch.dtype, tuple[int, ...]]],
    metadata: Sequence[tuple[bytes, bytes]],
    /,
) -> tuple[bytes, list[int], int]:
    """The bytes before the first tensor, the position of each tensor, and the size of the file."""

def index_entries(
    path_or_file: str | PathLike[str] | File,
) -> tuple[dict[str, str], dict[str, object]]:
    """Files by tensor, and the metadata. Files of a path exist; those of a file are relative."""

# (name, dtype, shape, bytes, storage, (number of a file, byte, bytes, shape) of each part)
DistributedTensor = tuple[
    str, torch.dtype, tuple[int, ...], int, FileStorage, list[tuple[int, int, int, tuple[int, ...]]]
]
# Tensors; (name, number of a file, byte, bytes) of everything else; the position of each name in
# what was saved; the files; the checkpoint's description of itself.
DistributedEntries = tuple[
    list[DistributedTensor],
    list[tuple[str, int, int, int]],
    dict[str, tuple[str | int, ...]],
    list[File],
    dict[str, str],
]

def distributed_entries(metadata: File, open: Callable[[str], File]) -> DistributedEntries: ...
def distributed_safetensors_entries(files: list[File]) -> DistributedEntries: ...
def archive_records(file: File, offset: int, length: int) -> list[tuple[str, int, int, int]]:
    """(name, byte of the file, bytes, CRC-32) of each record of a zip archive."""

# Decoders compute a tensor from the tensors in which a checkpoint stores it.
class Decoder:
    @property
    def name(self) -> str: ...

def decode(parts: Sequence[torch.Tensor], decoder: Decoder, /) -> torch.Tensor:
    """The decoded tensor; lazy if one of the parts is lazy."""

def find_encoded(
    tensors: Sequence[tuple[str, torch.dtype, Sequence[int], str]],
    *,
    config: bytes | None,
    config_path: bytes,
    quantization_files: Sequence[tuple[bytes, bytes]],
    dtype: torch.dtype | None,
    where: bytes,
    read: Callable[[str], bytes],
) -> tuple[
    list[tuple[str, list[str], Decoder, tuple[int, ...], torch.dtype, bool]], set[str], list[str]
]:
    """Finds the tensors that are encoded.

    Args:
        tensors: the tensors of the files: name, dtype, sizes, and the name of the encoding in the
            file's format.
        config: the contents of the config.json beside them.
        config_path: its path.
        quantization_files: paths and contents of files that state what config.json may lack.
        dtype: the dtype of decoded tensors; None leaves it to the library concerned.
        where: the files, for messages.
        read: returns the bytes of a small tensor by name.

    Returns:
        For each plain tensor: name, names of the parts, decoder, its sizes, the dtype to cast to,
        and whether the last two dimensions must be swapped. Then the tensors that plain layers do
        not use, and warnings.
    """

def parse_pickle(
    data: bytes,
    where: str,
    global_: Callable[[str, str], object],
    record: Callable[[object, tuple[object, ...]], object],
    persistent: Callable[[object], object],
) -> object: ...

class TorchTensor:
    @property
    def dtype(self) -> torch.dtype: ...
    @property
    def sizes(self) -> tuple[int, ...]: ...
    @property
    def strides(self) -> tuple[int, ...]: ...
    @property
    def storage(self) -> FileStorage: ...
    @property
    def storage_offset(self) -> int: ...
    @property
    def offset(self) -> int: ...
    @property
    def nbytes(self) -> int: ...
    @property
    def conjugated(self) -> bool: ...
    @property
    def negated(self) -> bool: ...
    @property
    def requires_grad(self) -> bool: ...
    @property
    def is_parameter(self) -> bool: ...
    @property
    def has_attributes(self) -> bool: ...

class TorchState(TypedDict):
    tensors: list[tuple[str, int]]
    beside: list[tuple[int | None, int]]
    modules: list[tuple[str, str]]
    mapping: int | None

class TorchArchive:
    def __init__(self, file: File) -> None: ...
    @property
    def root(self) -> int: ...
    @property
    def where(self) -> str: ...
    def find_state(
        self, key: str | None, fits: Callable[[Iterable[str]], int] | None
    ) -> TorchState: ...
    def tensor(self, id: int, where: str) -> TorchTensor: ...
    def tensors(self) -> list[int]: ...
    def globals(self) -> list[tuple[str, int]]: ...
    def checksums(self) -> list[tuple[str, int, int, int | None]]: ...
    def locations(self) -> dict[str, str]: ...
    def values(
        self,
        global_: Callable[[str, str], object],
        record: Callable[[object, tuple[object, ...]], object],
        persistent: Callable[[object], object],
    ) -> list[Any]: ...

def is_torch_file(first_bytes: bytes) -> bool: ...

# Quantizers compute what bitsandbytes does on a CPU, bit for bit.
class Quantizer:
    @property
    def name(self) -> str: ...

class FourBit(Quantizer):
    """Outputs: packed codes and absmax; nested: packed codes, absmax codes, their absmax, offset.

    Raises ValueError if `values` is not the values of 16 codes, `nested_map` is not 256 ascending
    values, or `block_size` is not a power of two from 32 to 4096.
    """

    def __init__(
        self,
        kind: str,
        block_size: int,
        values: torch.Tensor,
        nested_map: torch.Tensor | None = None,
    ) -> None: ...
    def nest(self, absmax: torch.Tensor, threads: int, /) -> list[torch.Tensor]:
        """The codes of the absmax of all blocks, their absmax, and the offset."""

class Int8Rows(Quantizer):
    """Outputs: codes and the absmax of each row."""

    def __init__(self) -> None: ...

def quantize_now(
    tensor: torch.Tensor, quantizer: Quantizer, threads: int, /
) -> list[torch.Tensor]: ...
