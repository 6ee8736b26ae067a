"""Launch trainings for the experiments, one after the other, and forward signals to them.

Their output passes through. A training that is stopped by a signal saves its state, and the
experiment's own command resumes it.
"""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

import torch

from stargan_dist.errors import STOPPED, UserError

ROOT = Path(__file__).resolve().parent.parent
CONFIGS = ROOT / "configs"
SIGNALS = (signal.SIGTERM, signal.SIGINT)


def default_processes() -> int:
    """Return two on CPUs; on GPUs their number, rounded down to a power of two, at most 8."""
    count = torch.cuda.device_count() or 2
    return min(8, 1 << count.bit_length() - 1)


def launcher(processes: int) -> list[str]:
    """Return the command that starts a module in `processes` processes."""
    distributed = ["--multi_gpu", "--main_process_port", "0"] if processes > 1 else []
    counts = ["--num_processes", str(processes), "--num_machines", "1"]
    defaults = ["--mixed_precision", "no", "--dynamo_backend", "no"]
    return [sys.executable, "-m", "stargan_dist.launch", *distributed, *counts, *defaults]


def train(options: Sequence[str], processes: int) -> None:
    """Train a run, or resume it.

    Args:
        options: of `stargan_dist.train`.
        processes: number of processes.

    Raises:
        UserError: the training failed; it has printed why.
        SystemExit: it was stopped by a signal, and its state is saved.
    """
    quiet = {"TORCH_CPP_LOG_LEVEL": "ERROR"}  # DDP warns on every rank of unused parameters
    environment = {"OMP_NUM_THREADS": "1", **os.environ, **quiet}
    command = [*launcher(processes), "-m", "stargan_dist.train", *options]
    # In a process group of its own, so that a Ctrl-C reaches it exactly once: forwarded by us.
    child = subprocess.Popen(command, env=environment, start_new_session=True)
    with _forwarded_signals(child) as received:
        code = child.wait()
    if received or code == STOPPED:
        print("stopped; run the same command to resume", flush=True)
        raise SystemExit(STOPPED)
    if code:
        raise UserError(
            f"training failed with exit code {code}; its error is printed above: "
            f"stargan_dist.train {' '.join(options)}"
        )


@contextmanager
def _forwarded_signals(child: "subprocess.Popen[bytes]") -> Iterator[list[int]]:
    """Forward signals to the child's process group; yields the list of those received."""
    received: list[int] = []

    def forward(number: int, _frame: FrameType | None) -> None:
        received.append(number)
        with suppress(ProcessLookupError):
            os.killpg(child.pid, number)

    before = {number: signal.signal(number, forward) for number in SIGNALS}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
