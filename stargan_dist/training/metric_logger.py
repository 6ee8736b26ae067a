"""Metrics of a run: TensorBoard and RUN/metrics.jsonl."""

import json
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cached_property, partial
from pathlib import Path

import torch
from PIL import Image
from torch.utils.tensorboard import SummaryWriter

from stargan_dist import storage
from stargan_dist.console.progress import clock
from stargan_dist.training.tolerance import Tolerance

TENSORBOARD, METRICS_FILE = "metrics in TensorBoard", "metrics.jsonl"  # as faults name them
RETRY_SECONDS = 60.0
MAX_UNSAVED = 1000  # entries of TensorBoard kept while they cannot be written
FIRST_TERMS = ("real", "fake", "reg", "adv", "cls", "sty", "ds")  # order in a progress line


def progress_line(
    step: int,
    steps: int,
    rate: float,
    wait_share: float,
    eta_seconds: float,
    losses: Mapping[str, float],
) -> str:
    """Format one line about a step. Losses are averaged over guides.

    Args:
        step: number of finished steps.
        steps: number of all steps.
        rate: images per second.
        wait_share: share of the time that was spent waiting for data.
        eta_seconds: time to the end.
        losses: terms by name.
    """
    columns = [
        f"step {step}/{steps} ({step / steps:.1%})",
        f"{rate:.1f} img/s",
        f"data wait {wait_share:.0%}",
        f"eta {clock(eta_seconds)}",
    ]
    for module in ("D", "C", "G"):
        means = _means_over_guides(losses, module)
        if means:
            terms = " ".join(f"{term} {mean:.3f}" for term, mean in means.items())
            columns.append(f"{module} {terms}")
    return "  ".join(columns)


def _means_over_guides(losses: Mapping[str, float], module: str) -> dict[str, float]:
    """Average each term of a loss, `MODULE/GUIDE/TERM`, over the guides. FIRST_TERMS come first."""
    values: dict[str, list[float]] = {}
    for name, value in losses.items():
        owner, *_, term = name.split("/")
        if owner == module and not term.startswith("grad_norm"):
            values.setdefault(term, []).append(value)
    order = [*(t for t in FIRST_TERMS if t in values), *(t for t in values if t not in FIRST_TERMS)]
    return {term: sum(values[term]) / len(values[term]) for term in order}


class MetricsFile:
    """RUN/metrics.jsonl: one JSON object per logged step, with `step` and every scalar.

    On a local disk lines are appended at once. Elsewhere the file is replaced at each `flush`.

    Args:
        start: number of finished steps. Lines of later steps, which a killed process logged after
            its last checkpoint, are removed.
    """

    def __init__(self, run: str, start: int) -> None:
        self.url, self.start = storage.join(run, "metrics.jsonl"), start
        self.is_local = storage.is_local(run)
        self._added: list[str] = []
        self._complete = False  # the file holds exactly the lines that it should

    @cached_property
    def _former(self) -> list[str]:
        """The lines of finished steps. Raises OSError if they cannot be read."""
        with suppress(FileNotFoundError):
            # A killed process may leave half a line at the end.
            complete, _, _ = storage.read_bytes(self.url).rpartition(b"\n")
            lines = complete.decode(errors="replace").splitlines()
            return [line for line in lines if 0 < _step_of(line) <= self.start]
        return []

    def append(self, step: int, scalars: Mapping[str, float]) -> None:
        """Add a line. Raises OSError if it cannot be written; the next call writes it as well."""
        line = json.dumps({"step": step, **scalars})
        self._added.append(line)
        if self.is_local and self._complete:
            self._complete = False
            with Path(storage.filesystem(self.url)[1]).open("a") as file:
                file.write(f"{line}\n")
            self._complete = True
        elif self.is_local:
            self.flush()

    def flush(self) -> None:
        """Write the whole file, unless it is complete. Raises OSError if that fails."""
        if not (self.is_local and self._complete):
            lines = (f"{line}\n" for line in self._former + self._added)
            storage.write_bytes(self.url, "".join(lines).encode())
            self._complete = True


def _step_of(line: str) -> int:
    """Return the step of a line; 0 if it is not a line of this file."""
    with suppress(ValueError, KeyError, TypeError):
        return int(json.loads(line)["step"])
    return 0


Entry = tuple[int, Callable[[SummaryWriter], None]]  # a step, and what it adds to a board


class Board:
    """TensorBoard's event file of a run, begun again after a fault.

    Entries since the last `flush` are kept in memory. If a write fails, as on a full disk, the next
    call opens another file and adds them again; TensorBoard drops what it had of their steps.

    Args:
        start: number of finished steps, at which a resumed run continues.
    """

    def __init__(self, run: str, start: int) -> None:
        self.folder, self._saved_step = storage.join(run, "tensorboard"), start
        self._writer: SummaryWriter | None = None
        self._unsaved: deque[Entry] = deque(maxlen=MAX_UNSAVED)
        self._fault: tuple[float, Exception] | None = None  # when, by time.monotonic()

    def add(self, step: int, entry: Callable[[SummaryWriter], None]) -> None:
        """Add an entry. Raises an error if this or an earlier one cannot be written.

        After an error nothing is tried for a while: an object store may take long to fail.
        """
        self._unsaved.append((step, entry))
        if self._fault and time.monotonic() - self._fault[0] < RETRY_SECONDS:
            raise self._fault[1]
        with self._writing() as (writer, is_new):
            for _, unsaved in [*self._unsaved] if is_new else [self._unsaved[-1]]:
                unsaved(writer)
            if is_new:
                writer.flush()  # otherwise a disk that is still full is noticed later

    def flush(self) -> None:
        """Write all entries to disk. Raises an error if that fails."""
        with self._writing() as (writer, is_new):
            for _, unsaved in self._unsaved if is_new else ():
                unsaved(writer)
            writer.flush()
        while self._unsaved:
            self._saved_step, _ = self._unsaved.popleft()

    def close(self) -> None:
        """Write all entries to disk and end. Raises an error if that fails."""
        self.flush()
        with self._writing() as (writer, _):
            writer.close()

    @contextmanager
    def _writing(self) -> Iterator[tuple[SummaryWriter, bool]]:
        """Yield the writer, and whether it is new. After an error, forget it."""
        is_new = self._writer is None
        try:
            if self._writer is None:
                # Steps that a killed process logged after its last checkpoint are logged again.
                purge_step = self._saved_step + 1 if self._saved_step else 0
                self._writer = SummaryWriter(self.folder, purge_step=purge_step)
            yield self._writer, is_new
            self._fault = None
        except Exception as error:
            self._writer, self._fault = None, (time.monotonic(), error)
            raise


def _ignore_writer_threads(arguments: threading.ExceptHookArgs) -> None:
    """Print no traceback of TensorBoard's thread: the next call of its writer raises the error."""
    if type(arguments.thread).__name__ != "_AsyncWriterThread":
        threading.__excepthook__(arguments)


class MetricLogger:
    """Scalars and images of rank 0, in TensorBoard and in metrics.jsonl.

    Args:
        start: number of finished steps, at which a resumed run continues.
        config: YAML of the configuration, which a new run shows in TensorBoard.
        tolerance: receives faults, which do not end the training.
        tensorboard: False leaves TensorBoard out.
    """

    def __init__(
        self, run: str, start: int, config: str, tolerance: Tolerance, tensorboard: bool = True
    ) -> None:
        threading.excepthook = _ignore_writer_threads
        self.tolerance = tolerance
        self.board = Board(run, start) if tensorboard else None
        self.file = MetricsFile(run, start)
        with tolerance.of(METRICS_FILE):
            self.file.flush()  # without the lines of steps that will be logged again
        if start == 0:
            indented = "\n".join(f"    {line}" for line in config.splitlines())
            self._add(0, lambda writer: writer.add_text("config", indented, 0))

    def _add(self, step: int, entry: Callable[[SummaryWriter], None]) -> None:
        self._on_board(lambda board: board.add(step, entry))

    def _on_board(self, call: Callable[[Board], None]) -> None:
        if self.board:
            with self.tolerance.of(TENSORBOARD):
                call(self.board)

    def log(self, step: int, scalars: Mapping[str, float]) -> None:
        self._add(step, partial(_add_scalars, step, scalars))
        with self.tolerance.of(METRICS_FILE):
            self.file.append(step, scalars)

    def show(self, grids: Mapping[str, Image.Image], step: int) -> None:
        self._add(step, partial(_add_grids, step, grids))

    def flush(self) -> None:
        """Write everything logged so far to disk."""
        self._on_board(Board.flush)
        with self.tolerance.of(METRICS_FILE):
            self.file.flush()

    def close(self) -> None:
        self._on_board(Board.close)
        with self.tolerance.of(METRICS_FILE):
            self.file.flush()


def _add_scalars(step: int, scalars: Mapping[str, float], writer: SummaryWriter) -> None:
    for name, value in scalars.items():
        writer.add_scalar(name, value, step)


def _add_grids(step: int, grids: Mapping[str, Image.Image], writer: SummaryWriter) -> None:
    for name, grid in grids.items():
        pixels = torch.frombuffer(bytearray(grid.tobytes()), dtype=torch.uint8)
        shape = (grid.height, grid.width, 3)
        writer.add_image(f"samples/{name}", pixels.view(shape), step, dataformats="HWC")
