"""Progress of work that takes several calls, reported as one."""

from __future__ import annotations

from dormant.reporting.progress import Callback


class Tally:
    """Adds up the bytes of several parts towards one total.

    Args:
        total: bytes of the whole.
        tell: a function that is called with (done, total) bytes.

    Example:
        >>> from dormant.reporting.tally import Tally
        >>> tally = Tally(10, print)
        >>> tally.part(4)(1, 2)
        2 10
        >>> tally.rest()(1, 1)
        10 10
    """

    def __init__(self, total: int, tell: Callback) -> None:
        self._total = total
        self._tell = tell
        self._begun = 0
        self._done = 0

    def part(self, nbytes: int) -> Callback:
        """The function for the next part to call with its own (done, total); it has `nbytes`."""
        nbytes = min(nbytes, self._total - self._begun)
        before = self._begun
        self._begun += nbytes

        def on_step(done: int, of: int) -> None:
            # A call begins again if another thread was faster.
            self._done = max(self._done, before + nbytes * done // max(of, 1))
            self._tell(self._done, self._total)

        return on_step

    def rest(self) -> Callback:
        """`part` for the remaining bytes."""
        return self.part(self._total - self._begun)
