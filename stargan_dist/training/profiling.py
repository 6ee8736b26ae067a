"""A profile of a few iterations: which operations take the time."""

import logging
from collections.abc import Iterable, Iterator
from typing import TypeVar

import torch
from torch.profiler import ProfilerActivity, profile, schedule

from stargan_dist import storage
from stargan_dist.training.tolerance import Tolerance

T = TypeVar("T")
WARM_UP = 3  # iterations before it, in which memory is reserved and kernels are chosen
OPERATIONS = 10  # in the table
FILE = "profile/iterations.pt.trace.json.gz"

logger = logging.getLogger(__name__)


def profiled(batches: Iterable[T], iterations: int, run: str, tolerance: Tolerance) -> Iterator[T]:
    """Iterate, and profile what happens between the batches of some iterations.

    Args:
        iterations: their number, after `WARM_UP` others.
        run: gets `FILE`, a trace for https://ui.perfetto.dev or TensorBoard. The log gets a table
            of the costliest operations.
        tolerance: of a trace that cannot be written.
    """

    def report(profiler: profile) -> None:
        kind = "device" if torch.cuda.is_available() else "cpu"
        averages = profiler.key_averages()
        table = averages.table(sort_by=f"self_{kind}_time_total", row_limit=OPERATIONS)
        logger.info("profile of %d iterations, in %s\n%s", iterations, FILE, table)
        with tolerance.of(FILE), storage.published_file(storage.join(run, FILE)) as path:
            profiler.export_chrome_trace(f"{path}.gz")
            path.with_name(f"{path.name}.gz").rename(path)

    activities = [ProfilerActivity.CPU]
    activities += [ProfilerActivity.CUDA] if torch.cuda.is_available() else []
    plan = schedule(skip_first=WARM_UP - 1, wait=0, warmup=1, active=iterations, repeat=1)
    with profile(activities=activities, schedule=plan, on_trace_ready=report) as profiler:
        for batch in batches:
            yield batch
            profiler.step()
