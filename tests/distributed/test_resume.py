"""A run that was killed at any moment or stopped by a signal resumes to the same bits."""

import json
import shutil
import signal

import psutil
import pytest

from stargan_dist import storage
from stargan_dist.runs import checkpoint as checkpoints
from tests.conftest import PATIENCE_SECONDS, ROOT
from tests.helpers.runs import assert_same_bits, pictures, scalars

KILLED = str(ROOT / "tests" / "distributed" / "killed.py")
# The smoke run has 6 steps and saves at 2, 4 and 6. A checkpoint has three safetensors files.
KILL_POINTS = {
    "before the first checkpoint": "stargan_dist.training.trainer/TrainState:update_averages:1",
    "in a step": "stargan_dist.training.trainer/TrainState:update_averages:4",
    "writing a checkpoint": "stargan_dist.runs.checkpoint:save_file:5",
    "before it is published": "stargan_dist.storage.writing:_rename:2",
    "before it is the latest": "stargan_dist.runs.checkpoint:_point_latest:2",
    "removing an old one": "stargan_dist.storage:remove_folder:1",
    "at the very end": "stargan_dist.training.trainer/Reporter:end:1",
}
KEEP_ONE = ("--checkpoint.keep_last", "1")
FAST = {"in a step", "writing a checkpoint"}


@pytest.mark.parametrize(
    "moment",
    [m if m in FAST else pytest.param(m, marks=pytest.mark.slow) for m in KILL_POINTS],
)
def test_a_killed_and_resumed_run_equals_an_uninterrupted_one(
    train, tmp_path, finished_run, moment
):
    run = tmp_path / "run"
    train(run, *KEEP_ONE, driver=KILLED, KILL_AT=KILL_POINTS[moment], code=-signal.SIGKILL)
    assert json.loads((run / "status.json").read_text())["status"] == "running"
    result = train(run, *KEEP_ONE)
    assert "finished at step 6" in result.stdout
    assert_same_bits(run, finished_run)
    assert scalars(run) == scalars(finished_run)
    assert pictures(run) == pictures(finished_run)
    assert checkpoints.list_steps(str(run)) == [6]
    assert not list((run / "checkpoints").glob(f"{storage.PARTIAL_PREFIX}*"))


def test_two_processes_resume_after_one_was_killed(train, tmp_path, run_of_two):
    run = tmp_path / "run"
    synchronous = ("--checkpoint.background", "false")
    kill_point = {"KILL_AT": KILL_POINTS["in a step"], "KILL_RANK": "1"}
    train(run, *synchronous, processes=2, driver=KILLED, code=1, **kill_point)
    assert checkpoints.find(str(run)).step == 2
    train(run, processes=2)
    assert_same_bits(run, run_of_two)
    assert scalars(run) == scalars(run_of_two)


def ranks(launcher):
    """Return the training processes that a launcher started, by rank."""
    children = psutil.Process(launcher.pid).children(recursive=True)
    processes = {}
    for child in children:
        if "stargan_dist.train" in child.cmdline() and "--run" in child.cmdline():
            processes.setdefault(child.environ().get("RANK"), child)
    return processes


def wait_for_line(process, text):
    for line in process.stdout:
        if text in line:
            return
    raise AssertionError(f"no line with {text}: {process.stderr.read()}")


LONG = ("--steps", "100000", "--monitor.sample_every", "0", "--checkpoint.every", "100000")


@pytest.mark.parametrize(
    "number",
    [
        pytest.param(signal.SIGTERM, marks=pytest.mark.slow),
        pytest.param(signal.SIGINT, marks=pytest.mark.slow),
        signal.SIGUSR1,
    ],
)
def test_a_signal_saves_and_stops_the_run(train, tmp_path, number):
    run, uninterrupted = tmp_path / "run", tmp_path / "uninterrupted"
    process = train.start(run, *LONG, "--data.workers", "1")
    wait_for_line(process, "step 3/")
    workers = psutil.Process(process.pid).children()
    process.send_signal(number)
    for worker in workers:  # schedulers signal every process of a job
        worker.send_signal(number)
    out, err = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 75, err
    assert not err
    status = json.loads((run / "status.json").read_text())
    step = status["step"]
    assert status == {"status": "stopped", "step": step, "signal": int(number)}
    assert f"stopped by {number.name} at step {step}" in out
    assert step >= 3
    train(run, *LONG, "--steps", str(step + 2))
    train(uninterrupted, *LONG, "--steps", str(step + 2))
    assert_same_bits(run, uninterrupted)
    assert scalars(run) == scalars(uninterrupted)


def test_a_signal_to_one_rank_stops_all_ranks_at_the_same_step(train, tmp_path):
    run = tmp_path / "run"
    process = train.start(run, *LONG, processes=2)
    wait_for_line(process, "step 2/")
    ranks(process)["1"].send_signal(signal.SIGUSR1)
    out, err = process.communicate(timeout=PATIENCE_SECONDS)
    meaning = "exit code 75: stopped with the state saved; the same command resumes"
    assert [line for line in err.splitlines() if line.startswith("exit code")] == [meaning]
    step = json.loads((run / "status.json").read_text())["step"]
    assert f"stopped by SIGUSR1 at step {step}" in out
    assert checkpoints.find(str(run)).step == step


@pytest.mark.slow
def test_a_finished_run_is_not_trained_again(train, tmp_path, finished_run):
    run = shutil.copytree(finished_run, tmp_path / "run")
    before = {f: f.stat().st_mtime_ns for f in (run / "checkpoints").rglob("*")}
    for steps in ("6", "5"):
        assert "finished at step 6" in train(run, "--steps", steps).stdout
    assert {f: f.stat().st_mtime_ns for f in (run / "checkpoints").rglob("*")} == before
