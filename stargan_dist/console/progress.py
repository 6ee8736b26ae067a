"""Progress of work that takes more than a few seconds: done, rate and time left."""

import sys
import time


def clock(seconds: float) -> str:
    """Seconds as h:mm:ss."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"


class Progress:
    """One line on stderr: rewritten on a terminal; elsewhere a plain line now and then.

    Args:
        total: units of work in all.
        unit: their name.
        what: the work, ahead of the line.
        every_seconds: between plain lines; a terminal's is rewritten ten times a second.
        shown: False for ranks that keep still.
        brief: say nothing at all about work that is done before the first line is due.
    """

    def __init__(
        self,
        total: int,
        unit: str,
        *,
        what: str,
        every_seconds: float = 5.0,
        shown: bool = True,
        brief: bool = False,
    ) -> None:
        self.total, self.unit, self.what, self.shown = total, unit, what, shown
        self.terminal = sys.stderr.isatty()
        self.every_seconds = 0.1 if self.terminal else every_seconds
        self.done, self.brief = 0, brief
        self.began = self.told = time.monotonic()

    def advance(self, units: int) -> None:
        self.done += units
        if time.monotonic() - self.told >= self.every_seconds:
            self._tell()

    def _tell(self) -> None:
        self.told = time.monotonic()
        rate = self.done / max(self.told - self.began, 1e-9)
        left = clock((self.total - self.done) / rate) if rate else "?"
        line = f"{self.what}  {self.done}/{self.total}  {rate:.1f} {self.unit}/s  eta {left}"
        if self.shown:
            print(f"\r\033[K{line}" if self.terminal else line, end=self._end(), file=sys.stderr)
            sys.stderr.flush()

    def _end(self) -> str:
        return "" if self.terminal else "\n"

    def close(self) -> None:
        """Leave the last state standing."""
        if self.brief and self.told == self.began:
            return
        self._tell()
        if self.shown and self.terminal:
            print(file=sys.stderr)
