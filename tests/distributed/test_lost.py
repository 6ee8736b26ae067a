"""A rank that dies or hangs ends all ranks, in time, with one line that names it."""

import json
import re
import socket
import time

import pytest

from stargan_dist.runs import checkpoint as checkpoints
from tests.distributed.test_resume import KILLED, LONG

IN_STEP_4 = {"KILL_AT": "stargan_dist.training.trainer/TrainState:update_averages:4"}


def error_lines(stderr):
    return [line for line in stderr.splitlines() if line.startswith("error")]


@pytest.mark.parametrize("rank", ["0", pytest.param("1", marks=pytest.mark.slow)])
def test_a_killed_rank_is_named(train, tmp_path, rank):
    began = time.monotonic()
    done = train(
        tmp_path / "run", *LONG, processes=2, driver=KILLED, KILL_RANK=rank, code=1, **IN_STEP_4
    )
    assert time.monotonic() - began < 300  # the timeout for a rank that is alive is 600 s
    (line,) = error_lines(done.stderr)
    other = 1 - int(rank)
    # The activity is up to a second old.
    last = r"last heartbeat at \d\d:\d\d:\d\d \(\d+ s ago\), in (startup|step \d)"
    assert re.fullmatch(rf"error \(rank {other}\): lost rank {rank}: {last}", line)
    assert "stargan_dist/training/trainer.py" not in done.stderr  # only the launcher's traceback


@pytest.mark.slow
def test_a_stuck_rank_is_named_and_ended(train, tmp_path):
    """It has its batch and makes no progress. The other rank waits in the all-reduce of gradients,
    with a timeout longer than the start of rank 0 takes on a busy machine."""
    began = time.monotonic()
    done = train(
        *(tmp_path / "run", *LONG, "--engine.timeout_seconds", "30"),
        processes=2, driver=KILLED, KILL_RANK="1", KILL_BY="sleep", code=1,
        KILL_AT="stargan_dist.data.batch/Batch:to:4",
    )  # fmt: skip
    assert time.monotonic() - began < 300  # it would hang for an hour
    assert len(error_lines(done.stderr)) == 1, done.stderr
    (line,) = error_lines(done.stderr)
    assert line == (
        "error (rank 0): rank 1 is stuck in step 4: it is alive, but has not reached the point "
        "where the other ranks wait"
    )


def test_a_rank_that_never_joins_is_an_error_after_the_timeout(train, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    alone = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
    options = (*LONG, "--engine.timeout_seconds", "2")
    done = train(tmp_path / "run", *options, code=1, **alone, MASTER_PORT=str(port))
    (line,) = done.stderr.splitlines()
    message = "not all of the 2 processes joined the process group within 2 s: "
    assert line.startswith(f"error (rank 0): {message}")


NAN = """
import sys
sys.argv[0] = "train"
from stargan_dist.objectives import losses
from stargan_dist.errors import run_command
from stargan_dist.train import main
original, calls = losses.r1, []
def r1(logits, images):
    calls.append(None)
    bad = len(calls) == 7 and {rank} == int(__import__("os").environ.get("RANK", "0"))
    return original(logits, images) * (float("nan") if bad else 1.0)
losses.r1 = r1
run_command(main)
"""


@pytest.fixture
def nan_driver(tmp_path):
    """Return a driver in which R1 is NaN in step 4 (in its first D step), on rank 1 only."""
    path = tmp_path / "nan.py"
    path.write_text(NAN.format(rank=1))
    return str(path)


@pytest.mark.slow
def test_a_nonfinite_gradient_stops_all_ranks(train, tmp_path, nan_driver):
    run = tmp_path / "run"
    done = train(run, processes=2, driver=nan_driver, code=1)
    (line,) = error_lines(done.stderr)
    assert "step 4: the gradient of D/latent/D was not finite" in line
    assert "--optim.on_nonfinite skip" in line
    report = json.loads((run / "nonfinite" / "step_00000004.json").read_text())
    assert report["unchanged_networks"] == ["D/latent/D"]
    assert "D/latent/reg" in report["terms_by_rank"][1]
    assert "D/latent/reg" not in report["terms_by_rank"][0]
    assert [sample["slot"] for sample in report["samples"]] == [12, 13, 14, 15]
    species = {sample["x"].split("/")[1].split("-")[1] for sample in report["samples"]}
    assert species <= {"cat", "dog", "rabbit"}
    assert checkpoints.find(str(run)).step == 2  # the last checkpoint with finite weights


@pytest.mark.slow
def test_a_step_with_a_nonfinite_gradient_may_be_skipped(train, tmp_path, nan_driver):
    run = tmp_path / "run"
    done = train(run, "--optim.on_nonfinite", "skip", processes=2, driver=nan_driver)
    assert "step 4: the gradient of D/latent/D was not finite" in done.stderr
    assert checkpoints.find(str(run)).step == 6
