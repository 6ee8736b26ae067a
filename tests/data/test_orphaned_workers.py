"""Loader processes end with their rank, whatever ended it."""

import multiprocessing
import os
import time

import psutil
import pytest
from torch.utils.data import Dataset

from stargan_dist.data.workers import iterate, open_loader
from tests.helpers.processes import wait_for_end


class Slow(Dataset):
    """The process ids of workers. The third item takes an hour."""

    def __getitem__(self, i):
        if i > 1:
            time.sleep(3600)
        return os.getpid()


def be_a_rank(start_method, workers, sender):
    loader = open_loader(
        Slow(), [[i] for i in range(4)], list, workers=workers, start_method=start_method
    )
    items = iterate(loader)
    sender.send({next(items)[0], next(items)[0]})
    time.sleep(3600)


@pytest.mark.parametrize(
    ("start_method", "workers"),
    [
        ("fork", 2),
        ("forkserver", 1),
        pytest.param("spawn", 2, marks=pytest.mark.slow),
        pytest.param("forkserver", 2, marks=pytest.mark.slow),
    ],
)
def test_workers_end_when_their_rank_is_killed(start_method, workers):
    """And with them the fork server and the resource tracker."""
    receiver, sender = multiprocessing.Pipe()
    context = multiprocessing.get_context("fork")  # imports nothing again
    rank = context.Process(target=be_a_rank, args=(start_method, workers, sender))
    rank.start()
    pids = receiver.recv()
    started = psutil.Process(rank.pid).children(recursive=True)
    assert pids <= {process.pid for process in started} and len(pids) == workers
    rank.kill()
    rank.join()
    assert not wait_for_end(started)
