"""Ranges of bytes by HTTP. Each response is checked: status, range, length, and file version.

This uses Python's own client, because general clients hide what must be checked here, and because
it reads directly into given memory. Connections are kept and can be reused by any thread.
"""

from __future__ import annotations

import base64
import contextlib
import http.client
import os
import re
import socket
import ssl
import threading
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import SplitResult, unquote, urljoin, urlsplit, urlunsplit

from dormant.checkpoint.ranges import FailedError, TransientError
from dormant.checkpoint.url import without_secrets

# Seconds in which something must arrive.
_TIMEOUT = 30.0
_REDIRECTS = (301, 302, 303, 307, 308)
_MOST_REDIRECTS = 8
# Later they may be another answer.
_RETRIED = (408, 425, 429, 500, 502, 503, 504)
# Of a link that was handed out for a time, where a redirect led to one.
_EXPIRED = (400, 401, 403, 404, 410)
_MOST_IDLE = 32
_LONGEST_REST = 1 << 16  # of a response that is not needed, read so that the connection can be kept
_RANGE = re.compile(r"bytes (\d{1,19})-(\d{1,19})/(\d{1,19}|\*)", re.ASCII)
_NO_RANGE = re.compile(r"bytes \*/(\d{1,19})", re.ASCII)


@dataclass(frozen=True)
class _Identity:
    """Properties that stay the same unless the file is replaced."""

    size: int
    version: str | None  # its ETag, or the time of its last change


class HttpRanges:
    """A file behind an HTTP or HTTPS URL; any thread."""

    def __init__(self, url: str, headers: Mapping[str, str] | None = None) -> None:
        parts = urlsplit(url)
        self._url = urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2], fragment=""))
        self._name = without_secrets(url)
        self._headers = {"User-Agent": "dormant", "Accept-Encoding": "identity", **(headers or {})}
        if parts.username is not None:
            login = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
            code = base64.b64encode(login.encode()).decode()
            self._headers["Authorization"] = f"Basic {code}"
        self._target = self._url  # where the last redirect led
        self._identity: _Identity | None = None

    def open(self, count: int) -> tuple[int, bytes]:
        """The size, and the first `count` bytes or all of them, by one request."""
        # Not before the answer is known to be of one file.
        self._identity = None
        head = bytearray(count)
        connection, response = self._ask(f"bytes=0-{count - 1}")
        try:
            if response.status == 416:  # an empty file has no first byte
                found = _NO_RANGE.fullmatch(response.getheader("Content-Range", ""))
                if found is not None and int(found[1]) == 0:
                    self._identity = _Identity(0, _version(response))
                    _finish(connection, response)
                    return 0, b""
                raise FailedError(ValueError, f"answers {_status(response)} for its first bytes")
            if response.status == 200:
                size = _whole_size(response, count)
            else:
                first, last, total = _range_of(response)
                if total is None:
                    raise FailedError(ValueError, "does not say how many bytes the file has")
                if first != 0 or last != min(count, total) - 1:
                    raise _wrong_range(response, 0, min(count, total))
                size = total
            identity = _Identity(size, _version(response))
            view = memoryview(head)[: min(count, size)]
            _fill(response, view)
            _finish(connection, response)
        except BaseException:
            _pool.drop(connection)
            raise
        self._identity = identity
        return size, bytes(view)

    def read_into(self, offset: int, view: memoryview) -> None:
        """Fills `view` with the bytes from `offset` on, by one request."""
        end = offset + len(view)
        connection, response = self._ask(f"bytes={offset}-{end - 1}")
        try:
            self._check_same(response)
            if response.status != 206:
                raise FailedError(
                    ValueError,
                    f"answers {_status(response)} to a request for a range, expected status 206",
                )
            first, last, _ = _range_of(response)
            if (first, last) != (offset, end - 1):
                raise _wrong_range(response, offset, end)
            _fill(response, view)
            _finish(connection, response)
        except BaseException:
            _pool.drop(connection)
            raise

    def check(self) -> None:
        """Does nothing: every response is checked, and kept data is from the opened file."""

    def _check_same(self, response: http.client.HTTPResponse) -> None:
        opened = self._identity
        if opened is None:
            return
        found = _RANGE.fullmatch(response.getheader("Content-Range", ""))
        empty = _NO_RANGE.fullmatch(response.getheader("Content-Range", ""))
        total = found[3] if found else empty[1] if empty else "*"
        if total != "*" and int(total) != opened.size:
            raise FailedError(
                ValueError,
                f"has {total} bytes, expected {opened.size} as when it was opened",
                changed=True,
            )
        version = _version(response)
        if opened.version is not None and version is not None and version != opened.version:
            raise FailedError(
                ValueError,
                f"has version {version!r}, expected {opened.version!r} as when it was opened",
                changed=True,
            )

    def _ask(self, wanted: str) -> tuple[_Http | _Https, http.client.HTTPResponse]:
        """The response to a range request after redirects; its body is not read yet."""
        target = self._target
        connection, response = _follow(target, self._url, self._headers, wanted)
        if response.status in _EXPIRED and target != self._url:
            _finish(connection, response)
            connection, response = _follow(self._url, self._url, self._headers, wanted)
        try:
            self._judge(response)
        except BaseException:
            _finish(connection, response)
            raise
        self._target = connection.asked_for
        return connection, response

    def _judge(self, response: http.client.HTTPResponse) -> None:
        if response.status in _RETRIED:
            raise TransientError(f"answers {_status(response)}", _seconds(response))
        if response.status in (404, 410):
            raise FailedError(FileNotFoundError, f"answers {_status(response)}: no such file")
        if response.status in (401, 403, 407):
            raise FailedError(
                PermissionError, f"answers {_status(response)}: check the credentials"
            )
        if response.status not in (200, 206, 416):
            raise FailedError(OSError, f"answers {_status(response)}, expected 206")
        encoding = response.getheader("Content-Encoding", "identity")
        if encoding != "identity":
            raise FailedError(
                ValueError, f"is sent with Content-Encoding {encoding!r}, expected none"
            )


class _Connection:
    """A connection that another thread can close; a mixin for those of http.client."""

    asked_for = ""

    def abort(self) -> None:
        """Makes a thread that reads from it fail at once."""
        sock = getattr(self, "sock", None)
        if sock is not None:
            with contextlib.suppress(OSError):  # it is closed already
                sock.shutdown(socket.SHUT_RDWR)


class _Http(_Connection, http.client.HTTPConnection):
    pass


class _Https(_Connection, http.client.HTTPSConnection):
    pass


class _Pool:
    """Idle connections by target, and connections in use, which are aborted at exit."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._idle: dict[tuple[str, str], list[_Http | _Https]] = {}
        self._used: set[_Http | _Https] = set()
        self._tls: ssl.SSLContext | None = None

    def take(self, where: tuple[str, str]) -> _Http | _Https | None:
        """An idle connection, if there is one."""
        with self._lock:
            idle = self._idle.get(where)
            found = idle.pop() if idle else None
            if found is not None:
                self._used.add(found)
            return found

    def add(self, connection: _Http | _Https) -> None:
        """Adds a new connection."""
        with self._lock:
            self._used.add(connection)

    def give_back(self, where: tuple[str, str], connection: _Http | _Https) -> None:
        """Returns a connection whose response was read completely."""
        with self._lock:
            self._used.discard(connection)
            idle = self._idle.setdefault(where, [])
            if connection.sock is not None and len(idle) < _MOST_IDLE:
                idle.append(connection)
                return
        connection.close()

    def drop(self, connection: _Http | _Https) -> None:
        """Removes a connection that cannot be used any more."""
        with self._lock:
            self._used.discard(connection)
        connection.close()

    def abort(self) -> None:
        """Makes every thread that waits for a response fail."""
        with self._lock:
            used = list(self._used)
        for connection in used:
            connection.abort()

    def tls(self) -> ssl.SSLContext:
        """The certificates to trust: those of the system, or of a file named by a variable."""
        with self._lock:
            if self._tls is None:
                named = os.environ.get("REQUESTS_CA_BUNDLE") or os.environ.get("CURL_CA_BUNDLE")
                bundle = Path(named) if named else None
                self._tls = ssl.create_default_context(
                    cafile=bundle if bundle and bundle.is_file() else None,
                    capath=bundle if bundle and bundle.is_dir() else None,
                )
            return self._tls


_pool = _Pool()


def _after_fork() -> None:
    # The parent process uses these connections, and another thread may have held the lock.
    global _pool
    _pool = _Pool()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def abort_all() -> None:
    """Makes every request in progress fail, for the end of the process."""
    _pool.abort()


def _follow(
    url: str, original: str, headers: Mapping[str, str], wanted: str
) -> tuple[_Http | _Https, http.client.HTTPResponse]:
    for _ in range(_MOST_REDIRECTS):
        parts = urlsplit(url)
        own = dict(headers)
        if (parts.scheme, parts.netloc) != urlsplit(original)[:2]:
            own.pop("Authorization", None)  # it is for the first server
        connection, response = _send(parts, {**own, "Range": wanted})
        if response.status not in _REDIRECTS:
            return connection, response
        place = response.getheader("Location")
        _finish(connection, response)
        if place is None:
            raise FailedError(OSError, f"answers {_status(response)} without a Location")
        following = urljoin(url, place)
        scheme = urlsplit(following).scheme
        if scheme not in ("http", "https") or (parts.scheme == "https" and scheme == "http"):
            raise FailedError(
                OSError, f"redirects from {parts.scheme} to {scheme}, which is refused"
            )
        url = following
    raise FailedError(OSError, f"redirects more than {_MOST_REDIRECTS} times")


def _send(
    parts: SplitResult, headers: Mapping[str, str]
) -> tuple[_Http | _Https, http.client.HTTPResponse]:
    where = (parts.scheme, parts.netloc)
    proxy = _proxy_for(parts)
    target = urlunsplit(("", "", parts.path or "/", parts.query, ""))
    if proxy is not None and parts.scheme == "http":
        target = urlunsplit((parts.scheme, parts.netloc, parts.path or "/", parts.query, ""))
    while True:
        connection = _pool.take(where)
        again = connection is not None
        if connection is None:
            connection = _connect(parts, proxy)
            _pool.add(connection)
        connection.asked_for = urlunsplit(parts)
        try:
            connection.request("GET", target, headers=dict(headers))
            return connection, connection.getresponse()
        except (OSError, http.client.HTTPException) as error:
            _pool.drop(connection)
            # A server closes connections that were idle for long; this is not a failure.
            if again and isinstance(error, ConnectionError | http.client.BadStatusLine):
                continue
            raise
        except BaseException:
            _pool.drop(connection)
            raise


def _connect(parts: SplitResult, proxy: SplitResult | None) -> _Http | _Https:
    via = proxy or parts
    host, port = via.hostname or "", via.port
    if parts.scheme == "http":
        return _Http(host, port, timeout=_TIMEOUT)
    if proxy is None:
        return _Https(host, port, timeout=_TIMEOUT, context=_pool.tls())
    connection = _Https(host, port, timeout=_TIMEOUT, context=_pool.tls())
    connection.set_tunnel(parts.hostname or "", parts.port or 443)
    return connection


def _proxy_for(parts: SplitResult) -> SplitResult | None:
    proxy = urllib.request.getproxies().get(parts.scheme)
    if not proxy or urllib.request.proxy_bypass(parts.netloc.rpartition("@")[2]):
        return None
    return urlsplit(proxy if "://" in proxy else f"http://{proxy}")


def _finish(connection: _Http | _Https, response: http.client.HTTPResponse) -> None:
    """Makes the connection reusable if little of the response is left."""
    rest = response.length
    if not response.isclosed():
        if rest is not None and rest <= _LONGEST_REST:
            try:
                response.read()
            except (OSError, http.client.HTTPException):
                rest = None
        if rest is None or rest > _LONGEST_REST:
            _pool.drop(connection)
            return
    if response.will_close:
        _pool.drop(connection)
        return
    parts = urlsplit(connection.asked_for)
    _pool.give_back((parts.scheme, parts.netloc), connection)


def _fill(response: http.client.HTTPResponse, view: memoryview) -> None:
    stated = response.getheader("Content-Length")
    if stated is not None and stated != str(len(view)):
        raise FailedError(
            ValueError, f"states a Content-Length of {stated[:20]} for {len(view)} bytes"
        )
    done = 0
    while done < len(view):
        try:
            count = response.readinto(view[done:])
        except (OSError, http.client.HTTPException) as error:
            what = f"broke off after {done} of {len(view)} bytes: {type(error).__name__}: {error}"
            raise TransientError(what, got=done) from error
        if not count:
            raise TransientError(f"ended the response after {done} of {len(view)} bytes", got=done)
        done += count


def _range_of(response: http.client.HTTPResponse) -> tuple[int, int, int | None]:
    text = response.getheader("Content-Range", "")
    found = _RANGE.fullmatch(text)
    if found is None:
        raise FailedError(
            ValueError,
            f"answers {_status(response)} with the Content-Range {text[:80]!r}, expected "
            "'bytes FIRST-LAST/SIZE'",
        )
    return int(found[1]), int(found[2]), None if found[3] == "*" else int(found[3])


def _wrong_range(response: http.client.HTTPResponse, begin: int, end: int) -> FailedError:
    text = response.getheader("Content-Range", "")
    return FailedError(
        ValueError, f"answers with {text[:80]!r}, expected bytes {begin}-{end - 1}: other bytes"
    )


def _whole_size(response: http.client.HTTPResponse, count: int) -> int:
    """The size of a file that is sent whole."""
    stated = response.getheader("Content-Length", "")
    if stated.isascii() and stated.isdigit() and int(stated) <= count:
        return int(stated)  # all of it is what was asked for
    raise FailedError(
        ValueError,
        f"answers {_status(response)} to a request for a range: the server sends whole files only. "
        "Download the file, and open its path",
    )


def _version(response: http.client.HTTPResponse) -> str | None:
    return response.getheader("ETag") or response.getheader("Last-Modified")


def _status(response: http.client.HTTPResponse) -> str:
    return f"{response.status} {response.reason[:60]}".strip()


def _seconds(response: http.client.HTTPResponse) -> float | None:
    text = response.getheader("Retry-After", "")
    return float(text) if text.isascii() and text.isdigit() and len(text) < 6 else None
