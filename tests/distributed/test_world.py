"""World: which launches it rejects, and its collectives in one process."""

import errno
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from unittest.mock import Mock

import pytest
import torch
import torch.distributed as dist

from stargan_dist.distributed import world as worlds
from stargan_dist.distributed.world import World, launched_world_size
from stargan_dist.errors import (
    OUTSIDE_FAULT,
    USER_ERROR,
    OutsideFault,
    RankError,
    UserError,
    WorldError,
)

LAUNCHERS = ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE")


@pytest.fixture
def world():
    world = World()
    yield world
    world.close()


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch):
    for name in (*LAUNCHERS, "WORLD_SIZE", "MASTER_ADDR", "RANK"):
        monkeypatch.delenv(name, raising=False)


def test_all_reduce_mean_returns_every_term(world):
    assert world.all_reduce_mean({"a": torch.tensor(2.0), "b": torch.tensor(0.5)}) == {
        "a": 2.0,
        "b": 0.5,
    }


@pytest.mark.parametrize("name", LAUNCHERS)
def test_processes_without_a_world_are_rejected(monkeypatch, name):
    monkeypatch.setenv(name, "4")
    with pytest.raises(UserError, match=f"{name} is 4 but WORLD_SIZE is not set"):
        launched_world_size()
    monkeypatch.setenv("WORLD_SIZE", "8")
    with pytest.raises(UserError, match="WORLD_SIZE is 8 but MASTER_ADDR or RANK is not set"):
        launched_world_size()
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("RANK", "0")
    assert launched_world_size() == 8


def test_a_world_of_another_size_than_launched_is_rejected(monkeypatch):
    """Accelerate forms a world of one without GPUs, unless the CPU is requested explicitly."""
    monkeypatch.setattr(worlds, "launched_world_size", lambda: 2)
    with pytest.raises(UserError, match=r"2 processes were launched.*accelerate launch"):
        World()


def test_a_process_without_its_own_gpu_is_rejected():
    worlds._check_gpu(7, 8)
    expected = r"process 1 of this machine \(counted from 0\) has no GPU: it sees 1"
    with pytest.raises(UserError, match=expected):
        worlds._check_gpu(1, 1)


def test_timed_out_gloo_collectives_are_peer_failures():
    """DDP runs two collectives at once. The first to time out fails the other one, whose message
    then names neither a peer nor a source file."""
    store, options = dist.HashStore(), dist.AllreduceOptions()
    options.timeout = timedelta(seconds=0.5)
    with ThreadPoolExecutor() as pool:
        groups = pool.map(
            lambda rank: dist.ProcessGroupGloo(store, rank, 2, timedelta(seconds=100)), range(2)
        )
        present, _absent = groups
    works = [present.allreduce([torch.ones(1)], options) for _ in range(2)]
    for work in works:
        with pytest.raises(RuntimeError) as caught:
            work.wait()
        assert worlds._is_peer_failure(caught.value), caught.value


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (UserError("a"), USER_ERROR),
        (OutsideFault("b"), OUTSIDE_FAULT),
        (OSError(errno.ENOSPC, "c"), OUTSIDE_FAULT),
        (FileNotFoundError("d"), USER_ERROR),
    ],
)
def test_the_exit_code_of_an_error_reaches_all_ranks(world, error, code):
    """As an error of a task, of rank 0, and of one rank alone."""

    def fail():
        raise error

    for collective in (world.run_on_all_ranks, world.broadcast_from_main):
        with pytest.raises(WorldError) as caught:
            collective(fail)
        assert caught.value.exit_code == code
    world._heartbeat = Mock()
    told = world.report_error(error)
    assert isinstance(told, RankError)
    assert told.exit_code == code
    assert str(error) in str(told)
