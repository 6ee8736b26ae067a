"""Two trainings of one run: one of them wins, and the run has the bits of an undisturbed one."""

import os
import signal
import time
from pathlib import Path

import pytest

from stargan_dist.runs import checkpoint as checkpoints
from tests.conftest import PATIENCE_SECONDS
from tests.helpers.runs import assert_same_bits

KILLED = str(Path(__file__).with_name("killed.py"))
# Where the first training is suspended while the second one starts.
POINTS = {
    "after its claim": "stargan_dist.runs.checkpoint:find:2",
    "in a step": "stargan_dist.objectives.objective/Objective:iterate:3",
    "writing a checkpoint": "stargan_dist.runs.checkpoint:save_file:4",
    "before it publishes": "stargan_dist.runs.owner/Owner:check:3",
    "before retention": "stargan_dist.runs.checkpoint:apply_retention:2",
}


def suspended(train, run, point, *args, **env):
    """Start a training that is suspended at a point; return it once it is."""
    env |= {"KILL_AT": POINTS[point], "KILL_BY": "SIGSTOP"}
    process = train.start(run, *args, driver=KILLED, **env)
    end = time.monotonic() + PATIENCE_SECONDS
    while not os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WNOWAIT | os.WNOHANG):
        assert time.monotonic() < end
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    return process


def finish(process):
    process.send_signal(signal.SIGCONT)
    out, err = process.communicate(timeout=PATIENCE_SECONDS)
    lines = (out + err).splitlines()
    return process.returncode, [line for line in lines if line.startswith("error")]


def only_in_full_runs(points):
    """All but one of the points are slow to test."""
    first, *others = points
    return [first, *(pytest.param(point, marks=pytest.mark.slow) for point in others)]


@pytest.mark.slow
@pytest.mark.parametrize("point", only_in_full_runs(reversed(POINTS)))
def test_on_a_local_disk_the_first_training_wins(train, finished_run, tmp_path, point):
    run = tmp_path / "run"
    first = suspended(train, run, point)
    (error,) = train(run, code=2).stderr.splitlines()
    assert "another process is training" in error
    assert finish(first) == (0, [])
    assert_same_bits(run, finished_run)


@pytest.mark.parametrize("point", only_in_full_runs(reversed(POINTS)))
def test_in_an_object_store_the_last_training_wins(train, finished_run, s3, s3_address, point):
    """The first one says in one line that it was taken over, and publishes nothing more."""
    options = ["--storage.options", f"{{s3: {{endpoint_url: {s3_address}}}}}"]
    tensorboard = {"AWS_ENDPOINT_URL": s3_address}  # it has a client of its own
    first = suspended(train, f"{s3}/run", point, *options, **tensorboard)
    train(f"{s3}/run", *options, **tensorboard)
    code, errors = finish(first)
    if point == "after its claim":  # it then reads that the run is finished
        assert (code, errors) == (0, [])
    else:
        assert (code, len(errors)) == (2, 1), errors
        assert "was taken over by another training" in errors[0]
    assert checkpoints.find(f"{s3}/run").manifest.fence == 2
    assert_same_bits(f"{s3}/run", finished_run)
