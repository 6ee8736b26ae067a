"""What a person watches a run by: a progress line and TensorBoard."""

import platform
import resource
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch.utils.tensorboard import SummaryWriter

from stargan_dist import storage
from stargan_dist.console.progress import clock

SHOWN_FIRST = ("real", "fake", "reg", "adv", "cls", "sty", "ds")  # in a progress line
PACKAGES = (
    "torch", "torchvision", "accelerate", "deepspeed", "webdataset", "fsspec", "numpy", "pillow",
)  # fmt: skip


def environment(world_size: int, device: torch.device) -> dict[str, Any]:
    """What a run was made with: versions, git commit, world."""
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: _version(name) for name in ("stargan_dist", *PACKAGES)},
        "git_commit": _git_commit(),
        "command": sys.argv,
        "world_size": world_size,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "torch_threads": torch.get_num_threads(),
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _git_commit() -> str | None:
    """The commit of the checkout that the package lies in, with + if files were changed."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty=+"]
    try:
        return subprocess.run(
            [*command, "--abbrev=40", "--exclude=*"], capture_output=True, text=True, check=True
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def memory_bytes(device: torch.device) -> int:
    """Most memory used so far: of the GPU, or of this process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


class Stopwatch:
    """Times between two log lines: how long in all, and how long waiting for data."""

    def __init__(self) -> None:
        self.began = time.monotonic()
        self.waited = 0.0

    def timed(self, batches: Any) -> Any:
        """Iterate, and count the time until each batch is there."""
        iterator = iter(batches)
        while True:
            asked = time.monotonic()
            try:
                batch = next(iterator)
            except StopIteration:
                return
            self.waited += time.monotonic() - asked
            yield batch

    @contextmanager
    def paused(self) -> Iterator[None]:
        """What is done meanwhile does not count."""
        paused = time.monotonic()
        yield
        self.began += time.monotonic() - paused

    def lap(self) -> tuple[float, float]:
        """Seconds since the last lap, and the share of them spent waiting; starts a new lap."""
        seconds = max(time.monotonic() - self.began, 1e-9)
        share = self.waited / seconds
        self.began, self.waited = time.monotonic(), 0.0
        return seconds, share


def progress_line(
    step: int, steps: int, rate: float, eta_seconds: float, losses: Mapping[str, float]
) -> str:
    """One line about a step. Losses are averaged over the guides."""
    parts = [
        f"step {step}/{steps} ({step / steps:.1%})",
        f"{rate:.1f} img/s",
        f"eta {clock(eta_seconds)}",
    ]
    for side in ("D", "G"):
        means = _means_of_terms(losses, side)
        told = " ".join(f"{term} {mean:.3f}" for term, mean in means.items())
        parts += [f"{side} {told}"] if told else []
    return "  ".join(parts)


def _means_of_terms(losses: Mapping[str, float], side: str) -> dict[str, float]:
    """The terms of a side's loss, `SIDE/GUIDE/TERM`, averaged over guides; those known first."""
    rows: dict[str, list[float]] = {}
    for name, value in losses.items():
        owner, *_, term = name.split("/")
        if owner == side and not term.startswith("grad_norm"):
            rows.setdefault(term, []).append(value)
    order = [*(t for t in SHOWN_FIRST if t in rows), *(t for t in rows if t not in SHOWN_FIRST)]
    return {term: sum(rows[term]) / len(rows[term]) for term in order}


class MetricLogger:
    """Progress and TensorBoard of rank 0. `start` is the step that the run goes on from."""

    def __init__(self, run: str, start: int, steps: int, batch_size: int, config: str) -> None:
        self.start, self.steps, self.batch_size = start, steps, batch_size
        self.last, self.began = start, time.monotonic()
        # Steps that a killed process logged after its last checkpoint will be logged again.
        purge_step = start + 1 if start else 0
        self.board = SummaryWriter(storage.join(run, "tensorboard"), purge_step=purge_step)
        if start == 0:
            indented = "\n".join(f"    {line}" for line in config.splitlines())
            self.board.add_text("config", indented, 0)

    def log(
        self,
        step: int,
        losses: Mapping[str, float],
        *,
        weights: Mapping[str, float],
        seconds: float,
        data_wait_share: float,
        memory: int,
        skipped: int,
        nonfinite: int,
    ) -> None:
        rate = (step - self.last) * self.batch_size / seconds
        pace = (time.monotonic() - self.began) / (step - self.start)
        self.last = step
        print(progress_line(step, self.steps, rate, pace * (self.steps - step), losses), flush=True)
        scalars = {
            **{f"schedule/lambda_{name}": weight for name, weight in weights.items()},
            "speed/images_per_second": rate,
            "speed/data_wait_share": data_wait_share,
            "speed/memory_gib": memory / 2**30,
            "data/skipped_samples": skipped,
            "progress/nonfinite_iterations": nonfinite,
            "progress/images_seen": step * self.batch_size,
        }
        for name, value in {**losses, **scalars}.items():
            self.board.add_scalar(name, value, step)

    def show(self, grids: Mapping[str, Image.Image], step: int) -> None:
        for name, picture in grids.items():
            pixels = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8)
            shape = (picture.height, picture.width, 3)
            self.board.add_image(f"samples/{name}", pixels.view(shape), step, dataformats="HWC")

    def flush(self) -> None:
        """Have everything logged so far on disk."""
        self.board.flush()

    def close(self) -> None:
        self.board.close()
