"""Distribution of tasks over processes."""

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

from stargan_dist import storage
from stargan_dist.config import StorageConfig
from stargan_dist.errors import UserError

Task = TypeVar("Task")
Result = TypeVar("Result")


def available_cores() -> int:
    """Return the number of cores that this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)  # on Linux only
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def map_in_processes(
    function: Callable[[Task], Result],
    tasks: Sequence[Task],
    num_processes: int,
    option: str = "--processes",
) -> Iterator[Result]:
    """Run a function on all tasks and yield the results in the order of the tasks.

    Args:
        option: the one that sets the number of processes, for the error.

    Raises:
        UserError: a process died.
    """
    if num_processes == 1 or len(tasks) < 2:
        yield from map(function, tasks)
        return
    pool = ProcessPoolExecutor(
        min(num_processes, len(tasks)),
        multiprocessing.get_context("spawn"),
        initializer=_initialise,
        initargs=(storage.current_config(),),
    )
    try:
        yield from pool.map(function, tasks)
    except BrokenProcessPool as error:
        raise UserError(
            f"a worker process died (out of memory?): try again with fewer {option}"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _initialise(config: StorageConfig) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent process handles Ctrl-C
    storage.configure(config)
