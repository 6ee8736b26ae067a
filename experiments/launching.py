"""Starts trainings for the experiments, one after the other: their lines pass, signals reach them.

A training that is stopped saves its state, and the experiment's own command goes on from there.
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
    """Two on CPUs; on GPUs as many as there are, down to a power of two, and no more than 8."""
    count = torch.cuda.device_count() or 2
    return min(8, 1 << count.bit_length() - 1)


def launcher(processes: int) -> list[str]:
    """The command that starts a module in so many processes."""
    several = ["--multi_gpu", "--main_process_port", "0"] if processes > 1 else []
    sizes = ["--num_processes", str(processes), "--num_machines", "1"]
    plain = ["--mixed_precision", "no", "--dynamo_backend", "no"]
    return [sys.executable, "-m", "accelerate.commands.launch", *several, *sizes, *plain]


def train(options: Sequence[str], processes: int) -> None:
    """Train a run, or go on with it.

    Raises:
        UserError: the training failed, and has told why.
        SystemExit: it was stopped by a signal, and its state is saved.
    """
    quiet = {"TORCH_CPP_LOG_LEVEL": "ERROR"}  # DDP tells every rank of its unused parameters
    environment = {"OMP_NUM_THREADS": "1", **os.environ, **quiet}
    command = [*launcher(processes), "-m", "stargan_dist.train", *options]
    # A group of its own: a Ctrl-C reaches it once, through us, however it was sent.
    child = subprocess.Popen(command, env=environment, start_new_session=True)
    with _passed_on(child) as received:
        code = child.wait()
    if received:
        print("the same command goes on", flush=True)
        raise SystemExit(STOPPED)
    if code:
        raise UserError(f"the training ended with exit code {code}: {' '.join(options)}")


@contextmanager
def _passed_on(child: "subprocess.Popen[bytes]") -> Iterator[list[int]]:
    """Pass signals on to all processes of the child's group; the list holds those that came."""
    received: list[int] = []

    def pass_on(number: int, _frame: FrameType | None) -> None:
        received.append(number)
        with suppress(ProcessLookupError):
            os.killpg(child.pid, number)

    before = {number: signal.signal(number, pass_on) for number in SIGNALS}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
