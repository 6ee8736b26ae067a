"""Launch trainings for the experiments, one after the other, and pass signals on to them.

A training that is stopped by a signal saves its state, and the experiment's own command resumes it.
"""

from collections.abc import Sequence
from pathlib import Path

import torch

from stargan_dist.errors import STOPPED, UserError
from stargan_dist.launch.children import Children, launcher

ROOT = Path(__file__).resolve().parent.parent
CONFIGS = ROOT / "configs"


def default_processes() -> int:
    """Return two on CPUs; on GPUs their number, rounded down to a power of two, at most 8."""
    count = torch.cuda.device_count() or 2
    return min(8, 1 << count.bit_length() - 1)


def train(options: Sequence[str], processes: int) -> None:
    """Train a run, or resume it.

    Args:
        options: of `stargan_dist.train`.
        processes: number of processes.

    Raises:
        UserError: the training failed; it has printed why.
        SystemExit: it was stopped by a signal, and its state is saved.
    """
    with Children() as children:
        code = children.run([*launcher(processes), "-m", "stargan_dist.train", *options])
    if children.received or code == STOPPED:
        print("stopped; run the same command to resume", flush=True)
        raise SystemExit(STOPPED)
    if code:
        raise UserError(
            f"training failed with exit code {code}; its error is printed above: "
            f"stargan_dist.train {' '.join(options)}"
        )
