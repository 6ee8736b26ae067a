"""Progress of work that takes more than a few seconds: units done, rate and time left."""

import sys
from typing import Any

from tqdm import tqdm

BAR_SECONDS = 0.1  # time between two updates of a bar
BAR = (
    "{desc}: {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} "
    "[{elapsed}<{remaining}, {rate_noinv_fmt}]"
)
LINE = "{desc}  {n_fmt}/{total_fmt}  {rate_noinv_fmt}  eta {remaining}"


def clock(seconds: float) -> str:
    """Format seconds as h:mm:ss."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"


class ProgressBar(tqdm):
    """A bar on a terminal."""

    monitor_interval = 0  # No monitor thread: with miniters=1 every update reads the clock.


class ProgressLines(ProgressBar):
    """Plain lines for logs, each ended by a newline.

    Requires leave=False: the last line is printed here, not by tqdm, which adds an empty line.
    """

    def __init__(self, *args: Any, brief: bool, **kwargs: Any) -> None:
        self.brief = brief
        super().__init__(*args, **kwargs)

    def display(self, msg: str | None = None, pos: int | None = None) -> None:
        """Print a line, unless tqdm clears the bar. The position on the terminal is unused."""
        if msg is None:
            print(self, file=self.fp, flush=True)

    def close(self) -> None:
        """Print the last line, unless the work is brief and no line has been printed."""
        if not self.disable and not (self.brief and self.last_print_t == self.start_t):
            self.display()
        super().close()


def progress_bar(
    total: int,
    unit: str,
    *,
    description: str,
    every_seconds: float = 5.0,
    shown: bool = True,
    brief: bool = False,
) -> ProgressBar:
    """Show progress on stderr: a bar on a terminal, elsewhere a plain line every few seconds.

    Use it as a context manager and call `update(n)`. Rates are averages since the start. Change
    the description by `set_description_str(text, refresh=False)`.

    Args:
        total: units of work.
        unit: their name in the plural.
        description: name of the work, printed first.
        every_seconds: time between plain lines.
        shown: False for ranks that print nothing.
        brief: print nothing if the work ends before the first line is due, that is after
            `every_seconds`, or on a terminal after `BAR_SECONDS`.
    """
    common: dict[str, Any] = {
        "total": total, "unit": f" {unit}", "desc": description, "disable": not shown,
        "miniters": 1, "smoothing": 0,
    }  # fmt: skip
    if sys.stderr.isatty():
        return ProgressBar(
            **common, bar_format=BAR, mininterval=BAR_SECONDS, delay=BAR_SECONDS if brief else 0,
            leave=None, dynamic_ncols=True,
        )  # fmt: skip
    return ProgressLines(
        **common, bar_format=LINE, mininterval=every_seconds, delay=every_seconds,
        leave=False, brief=brief,
    )  # fmt: skip
