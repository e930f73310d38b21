"""Changes diffusers' `from_pretrained` inside the context: its models keep their own values.

The library constructs on the meta device with initialization turned off, and leaves what no file
has on the meta device. Here, the constructor is recorded, including initialization.
"""

from __future__ import annotations

import functools
from typing import Any

from dormant.loading.construction import call, current
from dormant.recording.patches import Function, Patch, declare


def _in_a_call(original: Function) -> Function:
    @functools.wraps(original)
    def replacement(cls: Any, *args: Any, **kwargs: Any) -> Any:
        with call():
            return original(cls, *args, **kwargs)

    return replacement


def _constructing_lazily(original: Function) -> Function:
    """`ContextManagers.__enter__`; the contexts are those around the constructor."""

    @functools.wraps(original)
    def replacement(self: Any) -> Any:
        here = current()
        if here is not None and not here.has_constructed:
            self.context_managers = [here.constructing(on_meta=False)]
        return original(self)

    return replacement


declare(
    Patch(
        "diffusers.models.modeling_utils:ModelMixin",
        "from_pretrained",
        "its parts do different things for different callers",
        _in_a_call,
    ),
    Patch(
        "diffusers.models.modeling_utils:ContextManagers",
        "__enter__",
        "constructs on the meta device, without initialization",
        _constructing_lazily,
    ),
)
