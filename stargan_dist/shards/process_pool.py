"""Work shared out among processes."""

import multiprocessing
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


def _start(how: StorageConfig) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the process that started this one answers it
    storage.configure(how)


def map_in_processes(
    function: Callable[[Task], Result], tasks: Sequence[Task], processes: int
) -> Iterator[Result]:
    """Do all tasks; results come in the order of the tasks.

    Raises:
        UserError: a process died.
    """
    if processes == 1 or len(tasks) < 2:
        yield from map(function, tasks)
        return
    pool = ProcessPoolExecutor(
        min(processes, len(tasks)),
        multiprocessing.get_context("spawn"),
        initializer=_start,
        initargs=(storage.current_config(),),
    )
    try:
        yield from pool.map(function, tasks)
    except BrokenProcessPool as error:
        raise UserError(
            "a process died at its work (out of memory?): try again with fewer --processes"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)
