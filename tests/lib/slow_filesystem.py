"""A folder's files through FUSE, each read after a wait: what a network filesystem is to a reader.

Needs the right to mount; `mounted` says whether the system gives it. Run as a program it serves
until it is stopped: python slow_filesystem.py FOLDER MOUNT SECONDS.
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

# linux/fuse.h
_LOOKUP, _FORGET, _GETATTR, _OPEN, _READ, _STATFS = 1, 2, 3, 14, 15, 17
_RELEASE, _FLUSH, _INIT, _OPENDIR, _READDIR, _RELEASEDIR = 18, 25, 26, 27, 28, 29
_INTERRUPT, _DESTROY, _BATCH_FORGET = 36, 38, 42
_ASYNC_READ, _MAX_PAGES = 1, 1 << 22
_PAGES = 256
_AT_A_TIME = 64
_FOREVER = 1 << 20  # seconds


@contextmanager
def mounted(folder: Path, place: Path, seconds: float) -> Iterator[bool]:
    """Shows the files of `folder` at `place`, each read delayed; False where it may not mount."""
    place.mkdir(parents=True, exist_ok=True)
    server = subprocess.Popen(
        [sys.executable, __file__, str(folder), str(place), str(seconds)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert server.stdout is not None
        yield server.stdout.readline() == "mounted\n"
    finally:
        server.communicate()
        ctypes.CDLL(None).umount2(os.fsencode(place), 2)  # MNT_DETACH


class _Server:
    def __init__(self, folder: Path, device: int, seconds: float) -> None:
        self._device = device
        self._seconds = seconds
        self._files = [os.open(path, os.O_RDONLY) for path in sorted(folder.iterdir())]
        self._nodes = {path.name: i + 2 for i, path in enumerate(sorted(folder.iterdir()))}

    def serve(self) -> None:
        with ThreadPoolExecutor(_AT_A_TIME) as pool:
            while True:
                try:
                    request = os.read(self._device, (1 << 20) + 4096)
                except OSError as error:
                    if error.errno in (errno.EINTR, errno.ENOENT):
                        continue
                    return  # it was unmounted
                length, code, unique, node = struct.unpack_from("<IIQQ", request)
                if code in (_FORGET, _BATCH_FORGET, _INTERRUPT):
                    continue
                body = request[40:length]
                if code == _READ:
                    pool.submit(self._read, unique, node, body)
                else:
                    self._reply(unique, self._answer(code, node, body))

    def _reply(self, unique: int, answer: bytes | int) -> None:
        data, error = (b"", -answer) if isinstance(answer, int) else (answer, 0)
        with suppress(OSError):  # whoever asked is gone
            os.write(self._device, struct.pack("<IiQ", 16 + len(data), error, unique) + data)

    def _read(self, unique: int, node: int, body: bytes) -> None:
        offset, size = struct.unpack_from("<8xQI", body)
        time.sleep(self._seconds)
        self._reply(unique, os.pread(self._files[node - 2], size, offset))

    def _attributes(self, node: int) -> bytes:
        status = os.fstat(self._files[max(node - 2, 0)])
        mode = stat.S_IFDIR | 0o755 if node == 1 else stat.S_IFREG | 0o644
        size = 0 if node == 1 else status.st_size
        times = [int(status.st_mtime)] * 3
        return struct.pack(
            "<6Q10I", node, size, size // 512, *times, 0, 0, 0, mode, 1, 0, 0, 0, 4096, 0
        )

    def _answer(self, code: int, node: int, body: bytes) -> bytes | int:
        if code == _INIT:
            _, minor, ahead, flags = struct.unpack_from("<4I", body)
            wanted = flags & (_ASYNC_READ | _MAX_PAGES)
            return struct.pack(
                "<4IHHIIHHI28x", 7, min(minor, 31), ahead, wanted, 64, 48, 1 << 17, 1, _PAGES, 0, 0
            )
        if code == _LOOKUP:
            found = self._nodes.get(os.fsdecode(body.rstrip(b"\0")))
            if found is None:
                return errno.ENOENT
            entry = struct.pack("<4Q2I", found, 0, _FOREVER, _FOREVER, 0, 0)
            return entry + self._attributes(found)
        if code == _GETATTR:
            return struct.pack("<QII", _FOREVER, 0, 0) + self._attributes(node)
        if code in (_OPEN, _OPENDIR):
            return struct.pack("<QII", node, 0, 0)
        if code == _STATFS:
            return struct.pack("<5Q4I24x", 0, 0, 0, 0, 0, 4096, 255, 4096, 0)
        if code in (_RELEASE, _FLUSH, _RELEASEDIR, _READDIR, _DESTROY):
            return b""
        return errno.ENOSYS


def _main(folder: str, place: str, seconds: str) -> None:
    try:
        device = os.open("/dev/fuse", os.O_RDWR)
    except OSError:
        return
    options = f"fd={device},rootmode=40000,user_id={os.getuid()},group_id={os.getgid()}"
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(b"slow", os.fsencode(place), b"fuse", 6, options.encode()) != 0:
        return
    server = threading.Thread(
        target=_Server(Path(folder), device, float(seconds)).serve, daemon=True
    )
    server.start()
    print("mounted", flush=True)
    sys.stdin.read()
    libc.umount2(os.fsencode(place), 2)


if __name__ == "__main__":
    _main(*sys.argv[1:])
