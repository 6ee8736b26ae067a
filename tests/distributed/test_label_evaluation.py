"""Evaluation of labels by real processes, and in training."""

import dataclasses
import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from stargan_dist.data.index import read_index
from stargan_dist.runs import checkpoint as checkpoints
from tests.conftest import PATIENCE_SECONDS, ROOT, SMOKE, here, launch
from tests.distributed.test_evaluation import assert_equal
from tests.helpers import labelled

DRIVER = Path(__file__).parent / "short_training.py"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return labelled.write(tmp_path_factory.mktemp("labelled"))


@pytest.fixture(scope="module")
def run(data, tmp_path_factory):
    """A run on both datasets that was evaluated at steps 2 and 4, in one process."""
    run = tmp_path_factory.mktemp("trained") / "run"
    sources = {name: dataclasses.asdict(s) for name, s in labelled.sources(data).items()}
    options = ["--config", SMOKE, "--run", run, "--data.sources", json.dumps(sources)]
    options += ["--recipe", "c_acgan", "--steps", "4", "--evaluation.every", "2"]
    options += ["--evaluation.protocol", "demo", "--evaluation.cache", run / "cache"]
    with pytest.MonkeyPatch.context() as monkeypatch:
        labelled.shorten_training(monkeypatch)
        here("train", *options, "--data.shards", "", "--loss.ds_iter", "100000")
    return run


def read(run, step):
    file = run / "evaluation" / "demo-labels" / f"step_{step:08d}_seed_0.json"
    return json.loads(file.read_text())


def evaluate(run, cache, code=0):
    """Evaluate a copy of a run by two processes."""
    command = [*launch(2), DRIVER, "--run", run, "--cache", cache, "--checkpoint", "4"]
    done = subprocess.run(
        list(map(str, command)), cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, check=False, timeout=PATIENCE_SECONDS,
    )  # fmt: skip
    assert done.returncode == code, done.stdout + done.stderr
    return done


def copy(run, folder):
    return shutil.copytree(run, folder / "run", ignore=shutil.ignore_patterns("evaluation"))


def test_a_training_evaluates_labels(run):
    """The best checkpoint is that with the lowest Fréchet distance."""
    results = {step: read(run, step) for step in (2, 4)}
    assert all(result["score"] is not None for result in results.values())
    best = min(results, key=lambda step: results[step]["score"])
    assert checkpoints.find(str(run), "best").step == best


@pytest.mark.slow
def test_two_processes_measure_the_same_as_one(run, tmp_path):
    """Rank 0 trains the classifiers, and both read the labels."""
    copied = copy(run, tmp_path)
    done = evaluate(copied, tmp_path / "cache")
    assert "demo_classification_error" in done.stdout
    assert_equal(read(copied, 4), read(run, 4))


@pytest.fixture
def damaged_shard(data):
    """The last shard of training tiles, which is empty during a test."""
    folder = data / "tiles_shards"
    shard = folder / read_index(str(folder)).splits["train"]["tile"][-1].name
    content = shard.read_bytes()
    shard.write_bytes(b"")
    yield shard
    shard.write_bytes(content)


@pytest.mark.slow
def test_a_label_that_one_rank_cannot_read_ends_both(run, damaged_shard, tmp_path):
    """The second rank reads the labels of the damaged shard. One line says so."""
    copied = copy(run, tmp_path)
    for entry in (copied / "cache").glob("*.json"):
        if json.loads(entry.read_text())["what"] == "labels of images":
            entry.unlink()
    done = evaluate(copied, copied / "cache", code=1)
    errors = [line for line in done.stderr.splitlines() if line.startswith("error")]
    assert len(errors) == 1
    assert f"{damaged_shard}: " in errors[0]
    assert "(rank 1)" in errors[0]
