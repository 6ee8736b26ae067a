from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist

from stargan_dist.distributed import world as worlds
from stargan_dist.distributed.world import World, launched_world_size
from stargan_dist.errors import UserError

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


def test_mean_reads_all_terms(world):
    assert world.all_reduce_mean({"a": torch.tensor(2.0), "b": torch.tensor(0.5)}) == {
        "a": 2.0,
        "b": 0.5,
    }


@pytest.mark.parametrize("name", LAUNCHERS)
def test_processes_without_a_world_are_refused(monkeypatch, name):
    monkeypatch.setenv(name, "4")
    with pytest.raises(UserError, match=f"{name} is 4 but WORLD_SIZE is not set"):
        launched_world_size()
    monkeypatch.setenv("WORLD_SIZE", "8")
    with pytest.raises(UserError, match="WORLD_SIZE is 8 but MASTER_ADDR or RANK is not set"):
        launched_world_size()
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("RANK", "0")
    assert launched_world_size() == 8


def test_a_world_other_than_the_launched_one_is_refused(monkeypatch):
    """What Accelerate does without GPUs when it is not told to use the CPU: a world of one."""
    monkeypatch.setattr(worlds, "launched_world_size", lambda: 2)
    with pytest.raises(UserError, match=r"2 processes were launched.*accelerate launch"):
        World()


def test_a_process_without_a_gpu_of_its_own_is_told():
    worlds._check_gpu(7, 8)
    with pytest.raises(UserError, match=r"process 1 \(from 0\) of .* has no GPU: it sees 1"):
        worlds._check_gpu(1, 1)


def test_what_a_collective_says_that_waited_in_vain_is_understood():
    """Of two at once, as DDP has them, the first to run out of time fails the other, which then
    says neither who nor where."""
    store, options = dist.HashStore(), dist.AllreduceOptions()
    options.timeout = timedelta(seconds=0.5)
    with ThreadPoolExecutor() as pool:
        groups = pool.map(
            lambda rank: dist.ProcessGroupGloo(store, rank, 2, timedelta(seconds=100)), range(2)
        )
        alone, _absent = groups
    works = [alone.allreduce([torch.ones(1)], options) for _ in range(2)]
    for work in works:
        with pytest.raises(RuntimeError) as caught:
            work.wait()
        assert worlds._of_others(caught.value), caught.value
