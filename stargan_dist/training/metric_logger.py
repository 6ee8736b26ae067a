"""Metrics of a run: TensorBoard and RUN/metrics.jsonl."""

import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import torch
from PIL import Image
from torch.utils.tensorboard import SummaryWriter

from stargan_dist import storage
from stargan_dist.console.progress import clock

FIRST_TERMS = ("real", "fake", "reg", "adv", "cls", "sty", "ds")  # order in a progress line


def progress_line(
    step: int, steps: int, rate: float, eta_seconds: float, losses: Mapping[str, float]
) -> str:
    """Format one line about a step. rate: images per second. Losses are averaged over guides."""
    columns = [
        f"step {step}/{steps} ({step / steps:.1%})",
        f"{rate:.1f} img/s",
        f"eta {clock(eta_seconds)}",
    ]
    for module in ("D", "G"):
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
        self.url = storage.join(run, "metrics.jsonl")
        self.is_local = storage.is_local(run)
        self.lines = [line for line in self._read() if 0 < _step_of(line) <= start]
        self._write()

    def _read(self) -> list[str]:
        with suppress(FileNotFoundError):
            # A killed process may leave half a line at the end.
            complete, _, _ = storage.read_bytes(self.url).rpartition(b"\n")
            return complete.decode(errors="replace").splitlines()
        return []

    def _write(self) -> None:
        storage.write_bytes(self.url, "".join(f"{line}\n" for line in self.lines).encode())

    def append(self, step: int, scalars: Mapping[str, float]) -> None:
        self.lines.append(json.dumps({"step": step, **scalars}))
        if self.is_local:
            with Path(storage.filesystem(self.url)[1]).open("a") as file:
                file.write(f"{self.lines[-1]}\n")

    def flush(self) -> None:
        if not self.is_local:
            self._write()


def _step_of(line: str) -> int:
    """Return the step of a line; 0 if it is not a line of this file."""
    with suppress(ValueError, KeyError, TypeError):
        return int(json.loads(line)["step"])
    return 0


class MetricLogger:
    """Scalars and images of rank 0, in TensorBoard and in metrics.jsonl.

    Args:
        start: number of finished steps, at which a resumed run continues.
        config: YAML of the configuration, which a new run shows in TensorBoard.
    """

    def __init__(self, run: str, start: int, config: str) -> None:
        # Steps that a killed process logged after its last checkpoint will be logged again.
        purge_step = start + 1 if start else 0
        self.board = SummaryWriter(storage.join(run, "tensorboard"), purge_step=purge_step)
        self.file = MetricsFile(run, start)
        if start == 0:
            indented = "\n".join(f"    {line}" for line in config.splitlines())
            self.board.add_text("config", indented, 0)

    def log(self, step: int, scalars: Mapping[str, float]) -> None:
        for name, value in scalars.items():
            self.board.add_scalar(name, value, step)
        self.file.append(step, scalars)

    def show(self, grids: Mapping[str, Image.Image], step: int) -> None:
        for name, grid in grids.items():
            pixels = torch.frombuffer(bytearray(grid.tobytes()), dtype=torch.uint8)
            shape = (grid.height, grid.width, 3)
            self.board.add_image(f"samples/{name}", pixels.view(shape), step, dataformats="HWC")

    def flush(self) -> None:
        """Write everything logged so far to disk."""
        self.board.flush()
        self.file.flush()

    def close(self) -> None:
        self.board.close()
        self.file.flush()
