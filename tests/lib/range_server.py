"""A server of files by HTTP on this machine that counts what it is asked for, and can misbehave."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


@dataclass
class Request:
    """What was asked for: bytes [begin, end) of a file."""

    name: str
    begin: int
    end: int
    headers: dict[str, str]
    number: int = 0  # of the requests for that file, from 0


@dataclass
class Answer:
    """How an answer differs from the right one."""

    status: int = 206
    headers: dict[str, str | None] = field(default_factory=dict)
    bytes_sent: int | None = None  # then the connection is closed
    reset: bool = False
    seconds: float = 0.0  # before the first byte
    stall: bool = False  # after the headers, until the server is closed


class RangeServer:
    """Files by name; `misbehave` may give another answer than the right one."""

    def __init__(self, files: dict[str, bytes]) -> None:
        self.files = dict(files)
        self.tags: dict[str, str] = {}
        self.requests: list[Request] = []
        self.misbehave: Callable[[Request], Answer | None] = lambda request: None
        self.latency = 0.0
        self.at_a_time = 0
        self.most_at_a_time = 0
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._server = _QuietServer(("127.0.0.1", 0), _handler(self))
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def close(self) -> None:
        self._closed.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def count(self, request: Request) -> None:
        with self._lock:
            request.number = sum(each.name == request.name for each in self.requests)
            self.requests.append(request)
            self.at_a_time += 1
            self.most_at_a_time = max(self.most_at_a_time, self.at_a_time)

    def leave(self) -> None:
        with self._lock:
            self.at_a_time -= 1

    def wait(self, seconds: float | None) -> None:
        self._closed.wait(seconds)

    def asked(self, name: str) -> list[tuple[int, int]]:
        """The ranges of a file that were asked for, in order of bytes."""
        return sorted((each.begin, each.end) for each in self.requests if each.name == name)

    def most_often(self, name: str) -> int:
        """How often the byte was asked for that was asked for most often."""
        times = sorted(
            [(b, 1) for b, _ in self.asked(name)] + [(e, -1) for _, e in self.asked(name)]
        )
        most = now = 0
        for _, step in times:
            now += step
            most = max(most, now)
        return most

    def nbytes(self, name: str) -> int:
        """How many bytes of a file were asked for."""
        return sum(end - begin for begin, end in self.asked(name))


class _QuietServer(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        pass  # clients go away in the middle, as they may


@contextmanager
def serving(files: dict[str, bytes] | Path) -> Iterator[RangeServer]:
    """A server of some bytes by name, or of what lies in a folder."""
    if isinstance(files, Path):
        files = {path.name: path.read_bytes() for path in sorted(files.iterdir())}
    server = RangeServer(files)
    try:
        yield server
    finally:
        server.close()


def _handler(server: RangeServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize = 1 << 16
        disable_nagle_algorithm = True

        def do_GET(self) -> None:
            name = self.path.partition("?")[0].lstrip("/")
            data = server.files.get(name)
            wanted = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
            size = 0 if data is None else len(data)
            begin, end = (int(wanted[1]), min(int(wanted[2]) + 1, size)) if wanted else (0, size)
            request = Request(name, begin, end, dict(self.headers))
            server.count(request)
            try:
                if server.latency:
                    time.sleep(server.latency)
                self._answer(data, request, server.misbehave(request))
            finally:
                server.leave()

        def _answer(self, data: bytes | None, request: Request, answer: Answer | None) -> None:
            answer = answer or Answer()
            if answer.seconds:
                server.wait(answer.seconds)
            if answer.reset:
                self.close_connection = True
                return
            status = answer.status
            begin, end = request.begin, request.end
            if data is None and status == 206:
                status = 404
            elif data is not None and status == 206 and begin >= len(data):
                status = 416
            body = b""
            headers: dict[str, str | None] = {}
            if status == 206 and data is not None:
                body = data[begin:end]
                headers["Content-Range"] = f"bytes {begin}-{end - 1}/{len(data)}"
                headers["ETag"] = server.tags.get(request.name, '"one"')
            elif status == 200 and data is not None:
                body = data
            elif status == 416 and data is not None:
                headers["Content-Range"] = f"bytes */{len(data)}"
            headers["Content-Length"] = str(len(body))
            headers.update(answer.headers)
            self.send_response(status)
            for key, value in headers.items():
                if value is not None:
                    self.send_header(key, value)
            self.end_headers()
            if answer.stall:
                self.wfile.flush()
                server.wait(None)
                self.close_connection = True
                return
            if answer.bytes_sent is not None:
                body = body[: answer.bytes_sent]
                self.close_connection = True
            try:
                self.wfile.write(body)
            except OSError:
                self.close_connection = True

        def log_message(self, format: str, *args: object) -> None:
            pass

    return Handler
