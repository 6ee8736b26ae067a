"""Loader processes: start and shutdown."""

import errno
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from multiprocessing import resource_tracker
from types import TracebackType
from typing import Any, TypeVar

from torch.utils.data import DataLoader, Dataset

from stargan_dist import storage
from stargan_dist.config import StorageConfig
from stargan_dist.errors import LOADER_ENDED, SHARED_MEMORY_FULL, OutsideFault, UserError

RANK_ENDS_SECONDS = 2.0  # until a killed rank has gone, after its connections were reset
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)

T = TypeVar("T")


def _init_worker(storage_config: StorageConfig, _worker_id: int) -> None:
    """Configure storage, ignore signals, and watch the rank.

    Schedulers signal every process of a job. Only the ranks respond, and they end their workers.
    """
    storage.configure(storage_config)
    sys.excepthook = _report_unless_rank_ended
    for signal_number in STOP_SIGNALS:
        signal.signal(signal_number, signal.SIG_IGN)
    threading.Thread(target=_end_with_rank, name="end-with-rank", daemon=True).start()


def _report_unless_rank_ended(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    """Print no traceback of a connection to a rank that was killed."""
    rank = multiprocessing.parent_process()
    assert rank is not None
    if issubclass(kind, ConnectionError | EOFError):
        rank.join(RANK_ENDS_SECONDS)
    if rank.is_alive():
        sys.__excepthook__(kind, error, trace)


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


@contextmanager
def _signals_blocked(loader: DataLoader[Any]) -> Iterator[None]:
    """Block signals while workers are started, which inherit the mask: none can end them.

    A spawned worker ignores signals only after its imports, and the server of forked ones, without
    which they end, never does.
    """
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        if loader.num_workers and loader.multiprocessing_context.get_start_method() != "fork":
            resource_tracker.ensure_running()  # its start unblocks some of them
            signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def iterate(loader: DataLoader[T]) -> Generator[T, None, None]:
    """Iterate over a loader. Its workers end when the generator is closed or fails.

    Raises:
        UserError: as raised by a worker, of its type, without the traceback that torch adds.
        OutsideFault: a worker was killed, or the shared memory is full. For some of these faults
            it is torch's RuntimeError, possibly elsewhere in the process (`errors.as_user_error`).
    """
    iterator: Iterator[T] | None = None
    try:
        with _signals_blocked(loader):
            iterator = iter(loader)
        yield from iterator
    except UserError as error:
        kind = type(error)
        raise kind(str(error).rsplit(f"{kind.__name__}: ", 1)[-1].strip()) from error
    except (ConnectionError, EOFError) as error:  # while a batch was passed
        raise OutsideFault(LOADER_ENDED.format("ended unexpectedly")) from error
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        raise OutsideFault(SHARED_MEMORY_FULL.format(error.strerror)) from error
    finally:
        # Workers ignore SIGTERM: an interpreter that finds them at exit would wait forever.
        shutdown = getattr(iterator, "_shutdown_workers", None)
        if shutdown:
            shutdown()
