"""Loader processes: how they start, and how they end."""

import signal
from collections.abc import Callable, Generator, Iterable, Sequence
from functools import partial
from typing import Any, TypeVar

from torch.utils.data import DataLoader, Dataset

from stargan_dist import storage
from stargan_dist.config import StorageConfig
from stargan_dist.errors import UserError

T = TypeVar("T")


def _start_worker(how: StorageConfig, _worker: int) -> None:
    """Schedulers signal every process of a job; only the ranks answer, workers end with them."""
    storage.configure(how)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)


def open_loader(
    dataset: Dataset[Any],
    batches: Iterable[Sequence[int]],
    collate: Callable[[list[Any]], T],
    *,
    workers: int,
    start_method: str = "fork",
    pin_memory: bool = False,
) -> DataLoader[T]:
    """Batches of the given items, in order, whatever the number of workers."""
    return DataLoader(
        dataset,
        batch_sampler=batches,  # type: ignore[arg-type]  # any sequence will do
        collate_fn=collate,
        num_workers=workers,
        multiprocessing_context=start_method if workers else None,
        pin_memory=pin_memory,
        worker_init_fn=partial(_start_worker, storage.current_config()),
    )


def iterate(loader: DataLoader[T]) -> Generator[T, None, None]:
    """Iterate a loader, and end its workers when the generator is closed or fails.

    A UserError of a worker is raised as it was, without the traceback that torch adds.
    """
    iterator = iter(loader)
    try:
        yield from iterator
    except UserError as error:
        raise UserError(str(error).rsplit(f"{UserError.__name__}: ", 1)[-1].strip()) from error
    finally:
        # Workers ignore SIGTERM: an interpreter that met them at exit would wait for ever.
        if hasattr(iterator, "_shutdown_workers"):
            iterator._shutdown_workers()
