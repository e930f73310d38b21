"""Calls a function after certain modules have been imported."""

from __future__ import annotations

import importlib.abc
import sys
from collections.abc import Callable, Iterable
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any


class LaterImports(importlib.abc.MetaPathFinder):
    """A finder that is in `sys.meta_path` while it waits for any module.

    Args:
        then: a function that is called after each of the modules was executed, in the thread that
            imports it.
    """

    def __init__(self, then: Callable[[], None]) -> None:
        self._then = then
        self._names: frozenset[str] = frozenset()

    def wait_for(self, names: Iterable[str]) -> None:
        """Waits for these modules, and no longer for any others."""
        self._names = frozenset(names)
        if not self._names:
            if self in sys.meta_path:
                sys.meta_path.remove(self)
        elif self not in sys.meta_path:
            sys.meta_path.insert(0, self)

    def find_spec(self, fullname: str, path: Any, target: ModuleType | None = None) -> Any:
        """Returns the spec of the next finder; after the module is loaded, `then` is called."""
        if fullname not in self._names:
            return None
        for finder in list(sys.meta_path):
            find = None if finder is self else getattr(finder, "find_spec", None)
            spec = None if find is None else find(fullname, path, target)
            if spec is not None:
                if hasattr(spec.loader, "exec_module"):
                    spec.loader = _Loader(spec.loader, self._then)
                return spec
        return None


class _Loader(importlib.abc.Loader):
    def __init__(self, loader: Any, then: Callable[[], None]) -> None:
        self._loader = loader
        self._then = then

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        made: ModuleType | None = self._loader.create_module(spec)
        return made

    def exec_module(self, module: ModuleType) -> None:
        module.__loader__ = self._loader
        if module.__spec__ is not None:
            module.__spec__.loader = self._loader
        self._loader.exec_module(module)
        self._then()
