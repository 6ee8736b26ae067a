import pytest
import torch

from stargan_dist import world as worlds
from stargan_dist.errors import UserError
from stargan_dist.world import World, launched_world_size

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
    assert world.mean({"a": torch.tensor(2.0), "b": torch.tensor(0.5)}) == {"a": 2.0, "b": 0.5}


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
