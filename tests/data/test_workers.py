"""Loader processes that are killed, and a full shared memory."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import fsspec
import psutil
import pytest
import torch
from torch.utils.data import DataLoader, Dataset, default_collate

from stargan_dist import storage
from stargan_dist.data import workers
from stargan_dist.data.workers import iterate, open_loader
from stargan_dist.errors import OutsideFault, as_user_error

DRIVER = Path(__file__).with_name("imports_of_worker.py")
KILLED = r"^a loader process .* out of memory; use fewer loader processes \(--data.workers\) or"


class Items(Dataset):
    """Tensors; the worker that loads item 3 calls `end`."""

    def __init__(self, end):
        self.end = end

    def __getitem__(self, number):
        if number == 3:
            self.end()
        return torch.zeros(1000)


def die():
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("place", ["local", "http", "s3"])
def test_a_worker_imports_nothing(place, request, shards):
    """A thread that imports a module while a worker is forked makes it wait forever for that."""
    url, options = shards, {}
    if place == "http":
        url = request.getfixturevalue("far").url
    if place == "s3":
        url, options = request.getfixturevalue("s3"), storage.current_config().options
        fsspec.filesystem("s3").put(f"{shards}/", f"{url}/", recursive=True)
    command = [sys.executable, str(DRIVER), url, json.dumps(options)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert {*done.stdout.splitlines()} == {"[]"}


@pytest.mark.parametrize(
    "start_method", ["fork", pytest.param("forkserver", marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("end", [die, partial(os._exit, 1)], ids=["killed", "exited"])
def test_a_killed_worker_is_explained_in_one_line(start_method, end):
    """Depending on the moment, torch raises a RuntimeError or the connection breaks."""
    batches = [[i] for i in range(8)]
    loader = open_loader(Items(end), batches, default_collate, workers=1, start_method=start_method)
    with pytest.raises((RuntimeError, OutsideFault)) as caught:
        list(iterate(loader))
    with pytest.raises(OutsideFault, match=KILLED):
        raise as_user_error(caught.value)


def signal_loader(number):
    """Send a signal to every process that a loader has started, as a scheduler does."""
    for process in psutil.Process().children(recursive=True):
        if not any("resource_tracker" in word for word in process.cmdline()):
            process.send_signal(number)


@pytest.mark.parametrize(
    ("start_method", "number"),
    [
        ("forkserver", signal.SIGTERM),
        ("spawn", signal.SIGUSR1),
        pytest.param("forkserver", signal.SIGUSR1, marks=pytest.mark.slow),
        pytest.param("spawn", signal.SIGTERM, marks=pytest.mark.slow),
    ],
)
def test_no_signal_to_all_processes_ends_a_worker(monkeypatch, start_method, number):
    """Neither a worker that still imports, nor the server that forks them."""
    start = DataLoader.__iter__

    def start_and_signal(loader):
        iterator = start(loader)
        signal_loader(number)
        return iterator

    monkeypatch.setattr(DataLoader, "__iter__", start_and_signal)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    loader = open_loader(
        Items(int), [[i] for i in range(8)], default_collate, workers=1, start_method=start_method
    )
    batches = iterate(loader)
    next(batches)
    assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == before
    signal_loader(number)
    assert len(list(batches)) == 7


@pytest.mark.parametrize("error", [ConnectionResetError(104, "reset"), EOFError()])
def test_a_worker_that_dies_while_it_passes_a_batch_is_explained(monkeypatch, error):
    def fail(_loader):
        yield 1
        raise error

    monkeypatch.setattr(DataLoader, "__iter__", fail)
    loader = open_loader(Items(die), [[0]], default_collate, workers=0)
    with pytest.raises(OutsideFault, match=KILLED):
        list(iterate(loader))


FULL = "the shared memory of this machine, /dev/shm, is full"


@pytest.mark.parametrize(
    "message",
    [
        "unable to allocate shared memory(shm) for file </torch_7_1_0>: Success (0)",
        "unable to write to file </torch_7_1_0>: No space left on device (28)",
        "unable to open shared memory object </torch_7_1_0> in read-write mode: No space left",
        "DataLoader worker (pid 7) is killed by signal: Bus error. It is possible that "
        "dataloader's workers are out of shared memory.",
    ],
)
def test_a_full_shared_memory_is_explained(message):
    assert str(as_user_error(RuntimeError(message))).startswith(FULL)


LOAD = """
import sys, torch
from tests.data.test_workers import Items
from stargan_dist.data.workers import iterate, open_loader
from stargan_dist.errors import run_command
loader = open_loader(Items(None), [[i] * 300 for i in range(3)], torch.utils.data.default_collate,
    workers=1)
run_command(lambda: list(iterate(loader)))
"""


@pytest.mark.slow
@pytest.mark.parametrize("size", ["16k", "600k"])
def test_a_shared_memory_that_is_full_ends_with_one_line(size):
    """Needs the right to mount a small file system over /dev/shm."""
    mount = f"mount -t tmpfs -o size={size} tmpfs /dev/shm"
    if subprocess.run(["unshare", "-m", "sh", "-c", mount], check=False).returncode:
        pytest.skip("mounting a file system is not permitted")
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", f'{mount} && exec "$@"', "sh", sys.executable, "-c", LOAD],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 74, done.stderr
    assert done.stderr.startswith(f"error: {FULL}")


def test_other_errors_are_not_explained():
    error = RuntimeError("CUDA error: No space left on device")
    assert as_user_error(error) is error


@pytest.mark.parametrize("alive", [True, False])
@pytest.mark.parametrize("error", [ConnectionResetError(104, "reset"), EOFError(), KeyError(1)])
def test_a_worker_of_a_killed_rank_prints_nothing(monkeypatch, capsys, alive, error):
    """Its connections to the rank are reset a moment before it ends itself."""
    rank = SimpleNamespace(join=lambda _seconds: None, is_alive=lambda: alive)
    monkeypatch.setattr(multiprocessing, "parent_process", lambda: rank)
    workers._report_unless_rank_ended(type(error), error, None)
    assert (capsys.readouterr().err == "") == (not alive)
