"""Checkpoints by HTTP: values, what is asked for, and servers that fail or lie."""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch

import dormant
from compare import assert_same_bits
from range_server import Answer, RangeServer, Request, serving

STATE = {
    "bias": torch.randn(33),
    "experts.0.weight": torch.randn(700, 300),
    "experts.1.weight": torch.randn(700, 300),
    "head.weight": torch.randn(1000, 5000),  # 20 MB: several requests
    "scale": torch.tensor(2.0),
    "steps": torch.arange(10),
}
NAME = "model.safetensors"


def _written(folder: Path, state: dict[str, torch.Tensor] = STATE, name: str = NAME) -> Path:
    if name.endswith(".safetensors"):
        safetensors.torch.save_file(state, folder / name)
    else:
        torch.save(state, folder / name)
    return folder / name


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return _written(tmp_path_factory.mktemp("written")).read_bytes()


def _assert_holds(state: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert state.keys() == expected.keys()
    for name, tensor in expected.items():
        assert_same_bits(tensor, state[name], name)


def _assert_asked_once(server: RangeServer, name: str = NAME) -> None:
    """All bytes of the file, each once."""
    assert server.most_often(name) == 1
    assert server.nbytes(name) == len(server.files[name])


@pytest.mark.parametrize("name", [NAME, "model.pt"])
def test_every_byte_is_asked_for_once(name: str, tmp_path: Path) -> None:
    path = _written(tmp_path, name=name)
    with serving({name: path.read_bytes()}) as server:
        checkpoint = dormant.open_checkpoint(f"{server.url}/{name}")
        assert server.nbytes(name) < 1 << 19
        state = dict(checkpoint)
        assert all(dormant.is_lazy(tensor) for tensor in state.values())
        dormant.materialize(state)
        _assert_holds(state, STATE)
        assert server.most_often(name) == 1
        assert len(server.asked(name)) <= 12


def test_load_gives_what_a_path_gives_and_reads_once(data: bytes) -> None:
    model = torch.nn.Linear(5000, 1000, bias=False)
    with serving({NAME: data}) as server:
        dormant.load(
            model,
            f"{server.url}/{NAME}",
            rename={"head.weight": "weight"},
            missing="init",
            unexpected="ignore",
        )
        assert_same_bits(STATE["head.weight"], model.weight.detach())
        assert server.most_often(NAME) == 1


def test_opening_takes_one_request_for_a_file(data: bytes) -> None:
    with serving({NAME: data}) as server:
        checkpoint = dormant.open_checkpoint(f"{server.url}/{NAME}")
        assert server.asked(NAME) == [(0, 1 << 16)]
        assert checkpoint.files == (f"{server.url}/{NAME}",)
        assert checkpoint.entries["bias"].file == f"{server.url}/{NAME}"


def test_a_long_header_takes_two_requests_and_no_byte_twice(tmp_path: Path) -> None:
    state = {f"layers.{i}.{'x' * 60}": torch.full((8,), float(i)) for i in range(1000)}
    with serving({NAME: _written(tmp_path, state).read_bytes()}) as server:
        loaded = dict(dormant.open_checkpoint(f"{server.url}/{NAME}"))
        assert len(server.asked(NAME)) == 2
        dormant.materialize(loaded)
        _assert_holds(loaded, state)
        assert len(server.asked(NAME)) == 3
        _assert_asked_once(server)


def test_requests_are_large_and_under_way_at_the_same_time(data: bytes) -> None:
    with serving({NAME: data}) as server:
        state = dict(dormant.open_checkpoint(f"{server.url}/{NAME}"))
        server.latency = 0.2
        dormant.materialize(state)
        assert server.most_at_a_time >= 3
        assert len(server.asked(NAME)) <= 6


def test_pieces_casts_and_stacks_read_what_they_need_once(data: bytes) -> None:
    with serving({NAME: data}) as server:
        checkpoint = dormant.open_checkpoint(f"{server.url}/{NAME}")
        opened = len(server.asked(NAME))
        tensors = {
            "rows": checkpoint["head.weight"][100:200].bfloat16(),
            "stack": torch.stack([checkpoint[f"experts.{i}.weight"] for i in range(2)]),
            "transposed": checkpoint["head.weight"][300:400].t().contiguous(),
        }
        assert all(dormant.is_lazy(tensor) for tensor in tensors.values())
        dormant.materialize(tensors)
        head, experts = STATE["head.weight"], [STATE[f"experts.{i}.weight"] for i in range(2)]
        assert_same_bits(head[100:200].bfloat16(), tensors["rows"])
        assert_same_bits(torch.stack(experts), tensors["stack"])
        assert_same_bits(head[300:400].t().contiguous(), tensors["transposed"])
        assert server.most_often(NAME) == 1
        wanted = 200 * 5000 * 4 + 2 * 700 * 300 * 4
        assert server.nbytes(NAME) <= wanted + (1 << 16) * opened + (1 << 18)


def test_columns_are_read_in_one_sweep(data: bytes) -> None:
    with serving({NAME: data}) as server:
        checkpoint = dormant.open_checkpoint(f"{server.url}/{NAME}")
        columns = checkpoint["head.weight"][:, 100:200].contiguous()
        dormant.materialize(columns)
        assert_same_bits(STATE["head.weight"][:, 100:200].contiguous(), columns)
        assert server.most_often(NAME) == 1
        assert len(server.asked(NAME)) <= 6


def test_a_small_budget_makes_small_requests(data: bytes) -> None:
    with serving({NAME: data}) as server:
        state = dict(dormant.open_checkpoint(f"{server.url}/{NAME}"))
        dormant.materialize(state, memory_budget=4 << 20)
        _assert_holds(state, STATE)
        _assert_asked_once(server)
        assert max(end - begin for begin, end in server.asked(NAME)[1:]) <= 1 << 18


def _the_first_time(answer: Answer) -> Callable[[Request], Answer | None]:
    """That answer to the first request for the bytes up to some place, right ones after it."""
    seen: set[int] = set()

    def misbehave(request: Request) -> Answer | None:
        new = request.end not in seen
        seen.add(request.end)
        return answer if new else None

    return misbehave


@pytest.mark.parametrize(
    "answer",
    [
        Answer(status=500),
        Answer(status=503, headers={"Retry-After": "0"}),
        Answer(status=429),
        Answer(reset=True),
        Answer(bytes_sent=10_000),
        Answer(bytes_sent=0),
    ],
)
def test_what_fails_for_a_time_is_tried_again(answer: Answer, data: bytes) -> None:
    with serving({NAME: data}) as server:
        server.misbehave = _the_first_time(answer)
        state = dict(dormant.open_checkpoint(f"{server.url}/{NAME}"))
        dormant.materialize(state)
        _assert_holds(state, STATE)


def test_after_an_answer_that_was_cut_off_the_rest_is_asked_for(data: bytes) -> None:
    with serving({NAME: data}) as server:
        state = dict(dormant.open_checkpoint(f"{server.url}/{NAME}"))
        server.misbehave = lambda request: Answer(bytes_sent=5) if request.number == 1 else None
        dormant.materialize(state)
        _assert_holds(state, STATE)
        cut_off = next(request for request in server.requests if request.number == 1)
        assert (cut_off.begin + 5, cut_off.end) in server.asked(NAME)


@pytest.mark.parametrize(
    ("answer", "kind", "number", "text"),
    [
        (Answer(status=500), OSError, errno.EIO, "answers 500 Internal Server Error. It was tried"),
        (Answer(reset=True), OSError, errno.EIO, "It was tried 6 times"),
        (Answer(bytes_sent=0), OSError, errno.EIO, "ended the response after 0 of"),
        (Answer(status=403), PermissionError, errno.EACCES, "403 Forbidden"),
        (Answer(status=404), FileNotFoundError, errno.ENOENT, "404 Not Found"),
        (Answer(status=418), OSError, errno.EIO, "answers 418"),
        (Answer(status=200), ValueError, None, "expected status 206"),
        (Answer(headers={"Content-Range": "bytes 0-9/20"}), ValueError, None, "20 bytes, expected"),
        (Answer(headers={"Content-Range": "bytes 0-9/*"}), ValueError, None, "other bytes"),
        (Answer(headers={"Content-Range": "bytes 9-0"}), ValueError, None, "FIRST-LAST/SIZE"),
        (Answer(headers={"Content-Range": None}), ValueError, None, "FIRST-LAST/SIZE"),
        (Answer(headers={"Content-Length": "12"}), ValueError, None, "a Content-Length of 12"),
        (Answer(headers={"ETag": '"two"'}), ValueError, None, "was replaced later"),
        (Answer(headers={"Content-Encoding": "gzip"}), ValueError, None, "Content-Encoding 'gzip'"),
    ],
)
def test_a_server_that_fails_or_lies_leaves_everything_lazy(
    answer: Answer, kind: type[Exception], number: int | None, text: str, data: bytes
) -> None:
    with serving({NAME: data}) as server:
        url = f"{server.url.replace('//', '//user:secret@')}/{NAME}?signature=secret"
        checkpoint = dormant.open_checkpoint(url)
        with dormant.lazy_init():
            model = torch.nn.Linear(5000, 1000, bias=False)
        options = {"rename": {"head.weight": "weight"}, "missing": "init", "unexpected": "ignore"}
        server.misbehave = lambda request: answer
        with pytest.raises(kind) as caught:
            dormant.load(model, checkpoint, **options)
        message = str(caught.value)
        assert text in message
        assert f"{server.url}/{NAME}" in message
        assert "'head.weight'" in message
        assert "reading bytes" in message
        assert "secret" not in message
        assert "secret" not in repr(checkpoint)
        if number is not None:
            assert isinstance(caught.value, OSError)
            assert caught.value.errno == number
        assert dormant.is_lazy(model.weight)
        server.misbehave = lambda request: None
        dormant.load(model, checkpoint, **options)
        assert_same_bits(STATE["head.weight"], model.weight.detach())


def test_a_file_that_changed_before_it_is_read_is_noticed(data: bytes) -> None:
    with serving({NAME: data}) as server:
        tensor = dormant.open_checkpoint(f"{server.url}/{NAME}")["head.weight"]
        server.tags[NAME] = '"two"'
        with pytest.raises(ValueError, match="has version '\"two\"', expected '\"one\"'"):
            dormant.materialize(tensor)
        assert dormant.is_lazy(tensor)


def test_a_server_without_ranges_is_refused_unless_the_file_is_small(data: bytes) -> None:
    small = safetensors.torch.save({"a": torch.arange(3)})
    with serving({NAME: data, "small.safetensors": small}) as server:
        server.misbehave = lambda request: Answer(status=200)
        with pytest.raises(ValueError, match=r"whole files only\. Download the file"):
            dormant.open_checkpoint(f"{server.url}/{NAME}")
        checkpoint = dormant.open_checkpoint(f"{server.url}/small.safetensors")
        assert checkpoint["a"].tolist() == [0, 1, 2]


def test_login_and_headers_are_sent(data: bytes) -> None:
    with serving({NAME: data}) as server:
        dormant.open_checkpoint(f"{server.url.replace('//', '//me:p%40ss@')}/{NAME}")
        assert server.requests[-1].headers["Authorization"] == "Basic bWU6cEBzcw=="
        dormant.open_checkpoint(
            f"{server.url}/{NAME}", storage_options={"headers": {"X-Token": "t"}}
        )
        assert server.requests[-1].headers["X-Token"] == "t"
        with pytest.raises(ValueError, match="not supported for http"):
            dormant.open_checkpoint(f"{server.url}/{NAME}", storage_options={"anon": True})


def test_a_redirect_is_followed_without_the_login_and_asked_again_when_it_expires(
    data: bytes,
) -> None:
    with serving({NAME: data}) as store, serving({NAME: data}) as hub:
        link = 0

        def lead_on(request: Request) -> Answer:
            nonlocal link
            link += 1
            return Answer(302, {"Location": f"{store.url}/{NAME}?link={link}"})

        hub.misbehave = lead_on
        options = {"headers": {"Authorization": "Bearer secret"}}
        state = dict(dormant.open_checkpoint(f"{hub.url}/{NAME}", storage_options=options))
        dormant.materialize(state["experts.0.weight"])
        assert link == 1
        assert hub.requests[0].headers["Authorization"] == "Bearer secret"
        assert all("Authorization" not in request.headers for request in store.requests)
        first = True

        def expire(request: Request) -> Answer | None:
            nonlocal first
            was_first, first = first, False
            return Answer(403) if was_first else None

        store.misbehave = expire
        dormant.materialize(state)
        assert link >= 2
        _assert_holds(state, STATE)


def test_redirects_in_a_circle_end(data: bytes) -> None:
    with serving({NAME: data}) as server:
        server.misbehave = lambda request: Answer(302, {"Location": f"/{NAME}"})
        with pytest.raises(OSError, match="redirects more than 8 times"):
            dormant.open_checkpoint(f"{server.url}/{NAME}")


def test_an_index_and_a_folder(tmp_path: Path) -> None:
    dormant.save(STATE, tmp_path, max_shard_size=1 << 20)
    with serving(tmp_path) as server:
        shards = sorted(name for name in server.files if name.endswith(".safetensors"))
        for url in (f"{server.url}/model.safetensors.index.json", server.url, f"{server.url}/"):
            server.requests.clear()
            state = dict(dormant.open_checkpoint(url))
            for shard in shards:
                assert len(server.asked(shard)) == 1
            dormant.materialize(state)
            _assert_holds(state, STATE)
            for shard in shards:
                _assert_asked_once(server, shard)


def test_what_is_not_there_is_an_error_of_the_system() -> None:
    with serving({}) as server:
        with pytest.raises(FileNotFoundError, match="404 Not Found") as caught:
            dormant.open_checkpoint(f"{server.url}/{NAME}")
        assert caught.value.errno == errno.ENOENT
        with pytest.raises(ValueError, match="contains no checkpoint"):
            dormant.open_checkpoint(server.url)


def test_two_urls_make_one_checkpoint(tmp_path: Path) -> None:
    halves = [dict(list(STATE.items())[i::2]) for i in range(2)]
    for i, half in enumerate(halves):
        _written(tmp_path, half, f"{i}.safetensors")
    with serving(tmp_path) as server:
        state = dict(
            dormant.open_checkpoint([f"{server.url}/0.safetensors", tmp_path / "1.safetensors"])
        )
        dormant.materialize(state)
        assert state.keys() == STATE.keys()
        for name, tensor in STATE.items():
            assert_same_bits(tensor, state[name], name)


@pytest.mark.threads
def test_two_threads_load_from_one_checkpoint(data: bytes) -> None:
    with serving({NAME: data}) as server:
        checkpoint = dormant.open_checkpoint(f"{server.url}/{NAME}")
        found: list[dict[str, torch.Tensor]] = [{}, {}]
        errors: list[BaseException] = []

        def load(place: int) -> None:
            try:
                # Casts, so that the two do not make the same storages.
                found[place] = {name: checkpoint[name].double() for name in checkpoint}
                dormant.materialize(found[place])
            except BaseException as error:
                errors.append(error)

        threads = [threading.Thread(target=load, args=(i,)) for i in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not errors
        for state in found:
            _assert_holds(state, {name: tensor.double() for name, tensor in STATE.items()})
        assert server.nbytes(NAME) <= 2 * len(data)


def test_verify_reads_all_of_it(data: bytes) -> None:
    with serving({NAME: data}) as server:
        result = dormant.open_checkpoint(f"{server.url}/{NAME}").verify()
        assert result.nbytes == len(data)
        assert result.files == (f"{server.url}/{NAME}",)
        _assert_asked_once(server)
