"""Loader processes: start and shutdown."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Generator, Iterable, Sequence
from functools import partial
from typing import Any, TypeVar

from torch.utils.data import DataLoader, Dataset

from stargan_dist import storage
from stargan_dist.config import StorageConfig
from stargan_dist.errors import UserError

T = TypeVar("T")


def _init_worker(storage_config: StorageConfig, _worker_id: int) -> None:
    """Configure storage, ignore signals, and watch the rank.

    Schedulers signal every process of a job. Only the ranks respond, and they end their workers.
    """
    storage.configure(storage_config)
    for signal_number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP):
        signal.signal(signal_number, signal.SIG_IGN)
    threading.Thread(target=_end_with_rank, name="end-with-rank", daemon=True).start()


def _end_with_rank() -> None:
    """End this worker when its rank has ended, however that happened.

    torch compares the parent's process id every 5 s. But the parent of a worker of a fork server is
    the server, which lives as long as its workers.
    """
    rank = multiprocessing.parent_process()
    assert rank is not None
    rank.join()
    os._exit(1)


def open_loader(
    dataset: Dataset[Any],
    batches: Iterable[Sequence[int]],
    collate: Callable[[list[Any]], T],
    *,
    workers: int,
    start_method: str = "fork",
    pin_memory: bool = False,
) -> DataLoader[T]:
    """Return a loader of the given batches of items.

    The order of the batches does not depend on the number of workers.
    """
    return DataLoader(
        dataset,
        batch_sampler=batches,  # type: ignore[arg-type]  # any iterable of sequences works
        collate_fn=collate,
        num_workers=workers,
        multiprocessing_context=start_method if workers else None,
        pin_memory=pin_memory,
        worker_init_fn=partial(_init_worker, storage.current_config()),
    )


def iterate(loader: DataLoader[T]) -> Generator[T, None, None]:
    """Iterate over a loader. Its workers end when the generator is closed or fails.

    Raises:
        UserError: as raised by a worker, without the traceback that torch adds.
    """
    iterator = iter(loader)
    try:
        yield from iterator
    except UserError as error:
        raise UserError(str(error).rsplit(f"{UserError.__name__}: ", 1)[-1].strip()) from error
    finally:
        # Workers ignore SIGTERM: an interpreter that finds them at exit would wait forever.
        if hasattr(iterator, "_shutdown_workers"):
            iterator._shutdown_workers()
