"""An HTTP server for one file that answers like a remote one: with latency and limited speed.

python server.py FILE LATENCY BYTES_PER_SECOND prints its port and serves until its input ends. The
speed applies to each connection separately, as in object stores; 0 sets no limit.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

_CHUNK = 1 << 18


@contextmanager
def serving(file: Path, latency: float, speed: float) -> Iterator[str]:
    """The file's URL on a server in a separate process."""
    arguments = [str(file), str(latency), str(speed)]
    command = [sys.executable, __file__, *arguments]
    server = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        yield f"http://127.0.0.1:{int(server.stdout.readline())}/{file.name}"
    finally:
        server.communicate()


def _main(path: str, latency: str, speed: str) -> None:
    file = os.open(path, os.O_RDONLY)
    size = os.fstat(file).st_size
    wait, most = float(latency), float(speed)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            wanted = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
            begin, end = (int(wanted[1]), min(int(wanted[2]) + 1, size)) if wanted else (0, size)
            time.sleep(wait)
            self.send_response(206 if wanted else 200)
            if wanted:
                self.send_header("Content-Range", f"bytes {begin}-{end - 1}/{size}")
            self.send_header("ETag", '"one"')
            self.send_header("Content-Length", str(end - begin))
            self.end_headers()
            self.wfile.flush()
            started, first = time.perf_counter(), begin
            while begin < end:
                begin += os.sendfile(
                    self.connection.fileno(), file, begin, min(_CHUNK, end - begin)
                )
                if most:
                    ahead = (begin - first) / most - (time.perf_counter() - started)
                    time.sleep(max(0.0, ahead))

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    print(server.server_address[1], flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    _main(*sys.argv[1:])
