"""URLs of checkpoints: their names, without any access."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote, unquote, urlsplit, urlunsplit

# A letter first and at least two characters: "C:\\" is a path of Windows. fsspec chains with "::".
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+(::[A-Za-z][A-Za-z0-9+.-]+)*://")
HTTP = ("http", "https")


def is_url(text: str) -> bool:
    """Whether `text` is a URL."""
    return _URL.match(text) is not None


def without_secrets(url: str) -> str:
    """A URL that may be printed: without user, password and fragment, and with its query hidden.

    Example:
        >>> without_secrets("https://me:secret@host/model.safetensors?signature=abc")
        'https://host/model.safetensors?...'
        >>> without_secrets("hf://org/repo@revision")
        'hf://org/repo@revision'
    """
    try:
        scheme, place, path, query, _ = urlsplit(url)
    except ValueError:  # a port or an address that is none
        return url.partition("://")[0] + "://..."
    place = place.rpartition("@")[2]
    return urlunsplit((scheme, place, path, "", "")) + ("?..." if query else "")


@dataclass(frozen=True)
class Url:
    """A file or folder at a URL, with the part of `pathlib.Path`'s interface that is needed here.

    Attributes:
        full: the full URL, including secrets.
        options: options for the filesystem of fsspec; for HTTP, `headers`.
    """

    full: str = field(repr=False)
    options: Mapping[str, Any] = field(default_factory=dict, repr=False, compare=False)

    @property
    def scheme(self) -> str:
        """The part before "://", in lower case."""
        return self.full.partition("://")[0].lower()

    @property
    def is_http(self) -> bool:
        """Whether it is accessed by HTTP."""
        return self.scheme in HTTP

    @property
    def name(self) -> str:
        """The last part of the path; "" for a folder that ends with a slash."""
        if self.is_http:
            return unquote(urlsplit(self.full).path.rpartition("/")[2])
        return self.full.partition("://")[2].rpartition("/")[2]

    @property
    def parent(self) -> Url:
        """The folder."""
        if not self.is_http:
            scheme, _, path = self.full.partition("://")
            return Url(f"{scheme}://{path.rpartition('/')[0]}", self.options)
        scheme, place, path, query, _ = urlsplit(self.full)
        return Url(urlunsplit((scheme, place, path.rpartition("/")[0], query, "")), self.options)

    def __truediv__(self, name: str) -> Url:
        """The URL of a file in the folder, with the same query, which may authorize the access."""
        if not self.is_http:
            return Url(f"{self.full.rstrip('/')}/{name}", self.options)
        scheme, place, path, query, _ = urlsplit(self.full)
        inside = f"{path.rstrip('/')}/{quote(name)}"
        return Url(urlunsplit((scheme, place, inside, query, "")), self.options)

    def __str__(self) -> str:
        """The URL without secrets."""
        return without_secrets(self.full)
