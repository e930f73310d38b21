"""What libraries print while a progress bar is shown."""

from __future__ import annotations

import sys
from typing import Any, TextIO


class BesideBars:
    """Writes whole lines above the bars of tqdm that a stream shows, so that neither breaks.

    Streams are bound when a library creates a handler for its log, so this has to replace
    `sys.stderr` before libraries are imported.

    Attributes:
        bar_stream: the stream, to which bars themselves write.
    """

    def __init__(self, stream: TextIO) -> None:
        self.bar_stream = stream
        self._begun = ""  # a line without an end

    def write(self, text: str) -> int:
        """Writes the text; while bars are shown, only up to its last newline."""
        tqdm = getattr(sys.modules.get("tqdm"), "tqdm", None)
        if tqdm is None:  # not imported, or not yet
            return self.bar_stream.write(text)
        with tqdm.get_lock():
            lines, newline, self._begun = (self._begun + text).rpartition("\n")
            with tqdm.external_write_mode(file=self.bar_stream, nolock=True):
                self.bar_stream.write(lines + newline)
            if not tqdm._instances:
                self.finish()
        return len(text)

    def finish(self) -> None:
        """Writes a line that was not ended."""
        self.bar_stream.write(self._begun)
        self._begun = ""

    def __getattr__(self, name: str) -> Any:
        return getattr(self.bar_stream, name)
