"""The Hugging Face Hub, as far as checkpoints go: a server that answers alike."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import safetensors.torch
import torch

from range_server import RangeServer, serving

pytest.importorskip("huggingface_hub")

NAME = "model.safetensors"
STATE = {"a": torch.arange(300_000.0), "b": torch.arange(5)}
DATA = safetensors.torch.save(STATE)
TOKEN = "hf_secret"

_CODE = """
import json, sys, dormant
checkpoint = dormant.open_checkpoint(sys.argv[1])
state = dict(checkpoint)
dormant.materialize(state)
print(json.dumps([checkpoint.files, float(state["a"].double().sum()), state["b"].tolist()]))
"""


class _Hub:
    """The questions about a repository that huggingface_hub asks; files are on another server."""

    def __init__(self, store: RangeServer) -> None:
        self.tokens: set[str | None] = set()
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                path = self.path.partition("?")[0]
                if path.startswith("/api/models/org/repo"):
                    hub.tokens.add(self.headers.get("Authorization"))
                if path.startswith("/api/models/org/repo/tree"):
                    self._send(
                        200,
                        [
                            {"type": "file", "path": NAME, "size": len(DATA), "oid": "b" * 40},
                            {"type": "file", "path": "README.md", "size": 2, "oid": "c" * 40},
                        ],
                    )
                elif path.startswith("/api/models/org/repo"):
                    self._send(200, {"id": "org/repo", "sha": "a" * 40, "siblings": []})
                elif path.startswith("/org/repo/resolve/"):
                    hub.tokens.add(self.headers.get("Authorization"))
                    self._send(302, {}, {"Location": f"{store.url}/{NAME}?signature=secret"})
                else:
                    self._send(404, {})

            def _send(
                self, status: int, answer: object, more: dict[str, str] | None = None
            ) -> None:
                data = json.dumps(answer).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                for key, value in (more or {}).items():
                    self.send_header(key, value)
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, format: str, *args: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()


@pytest.fixture
def store() -> Iterator[RangeServer]:
    with serving({NAME: DATA}) as server:
        yield server


@pytest.mark.parametrize("place", ["org/repo", f"org/repo/{NAME}", f"org/repo@v1/{NAME}"])
def test_a_repository_is_a_folder(place: str, store: RangeServer, tmp_path: Path) -> None:
    hub = _Hub(store)
    offline = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
    environment = {key: value for key, value in os.environ.items() if key not in offline}
    environment |= {
        "HF_ENDPOINT": f"http://127.0.0.1:{hub.server.server_address[1]}",
        "HF_TOKEN": TOKEN,
        "HF_HOME": str(tmp_path),
    }
    try:
        done = subprocess.run(
            [sys.executable, "-c", _CODE, f"hf://{place}"],
            capture_output=True,
            text=True,
            env=environment,
            timeout=120,
            check=False,
        )
    finally:
        hub.server.shutdown()
        hub.server.server_close()
    assert done.returncode == 0, done.stderr
    files, total, steps = json.loads(done.stdout)
    assert total == STATE["a"].double().sum().item()
    assert steps == [0, 1, 2, 3, 4]
    assert files == [f"hf://{place.removesuffix('/' + NAME)}/{NAME}"]
    assert hub.tokens == {f"Bearer {TOKEN}"}
    assert all("Authorization" not in request.headers for request in store.requests)
    assert store.most_often(NAME) == 1
