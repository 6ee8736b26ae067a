import pytest
import torch

from stargan_dist import config as configs
from stargan_dist import engine as engines
from stargan_dist.batch import Batch
from stargan_dist.engine import Engine, launched_world_size
from stargan_dist.errors import UserError
from stargan_dist.shards.index import Index
from stargan_dist.state import Training

LAUNCHERS = ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE")


@pytest.fixture
def engine():
    engine = Engine()
    yield engine
    engine.close()


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch):
    for name in (*LAUNCHERS, "WORLD_SIZE", "MASTER_ADDR", "RANK"):
        monkeypatch.delenv(name, raising=False)


def test_an_iteration_never_reads_from_the_device(engine):
    """On the meta device every read (`.item()`, a comparison, a copy to the host) raises."""
    options = ["--model.image_size", "32", "--model.base_width", "4", "--model.max_width", "8"]
    config = configs.parse(["--run", "r", "--data.shards", "s", *options])
    training = Training(config, Index(["a", "b"], {}, ""), torch.device("meta"))
    engine.prepare(training.objective.sides, training.networks, training.optimizers)
    image, label = torch.empty(4, 3, 32, 32, dtype=torch.uint8), torch.empty(4, dtype=torch.int64)
    batch = Batch(image, label, image, image, label, torch.empty(4, 16), torch.empty(4, 16))
    on_device = batch.to(torch.device("meta"), torch.float32)
    terms = training.objective.iterate(engine, on_device, step=0)
    training.update_ema()
    with pytest.raises((RuntimeError, NotImplementedError)):
        engine.mean(terms)  # this is the one place that reads


def test_mean_reads_all_terms(engine):
    assert engine.mean({"a": torch.tensor(2.0), "b": torch.tensor(0.5)}) == {"a": 2.0, "b": 0.5}


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
    monkeypatch.setattr(engines.Accelerator, "num_processes", property(lambda self: 1))
    monkeypatch.setattr(engines, "launched_world_size", lambda: 2)
    with pytest.raises(UserError, match=r"2 processes were launched.*accelerate launch"):
        Engine()
