"""The scripts of slurm/, unchanged, on a real Slurm: the smoke configuration on CPUs.

All jobs train the same 40 steps by two processes, so whatever befell one, it has to end with the
bits of `whole`, which nothing befell.
"""

import json
import os
import re
import subprocess
import sys
import time
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from stargan_dist.shards.build import build
from tests.conftest import ROOT, SMOKE, digest
from tests.helpers.machines import Machines, script
from tests.helpers.runs import assert_same_bits, pictures, scalars
from tests.slurm.cluster import Cluster, until

TRAIN, NODES = "slurm/train_8gpu.sh", "slurm/train_multinode.sh"
TWO = "--ntasks-per-node=2"
STEPS = 40
OPTIONS = ("--steps", str(STEPS), "--checkpoint.every", "4", "--monitor.sample_every", "8")


@dataclass
class Submitter:
    """Submits scripts from the repository's folder, as a user would; logs go to a folder."""

    cluster: Cluster
    folder: Path
    shards: str

    def submit(self, *words, **env: str) -> str:
        words = (f"--output={self.folder}/%A_%a.out", *words)
        env = {"STARGAN_LOGS": str(self.folder), **env}
        return self.cluster.sbatch(*words, cwd=ROOT, env=env)

    def train(self, run, *options, batch=TRAIN, sbatch=(TWO,), **env) -> str:
        training = ("--config", SMOKE, "--data.shards", self.shards, "--run", run)
        return self.submit(*sbatch, batch, *training, *OPTIONS, *options, **env)

    def wait(self, job, state="COMPLETED") -> dict[str, str]:
        return self.cluster.wait(job, state)

    def log(self, job) -> str:
        return self.cluster.log(job)

    def see(self, job, pattern) -> re.Match:
        """Wait for a line in a job's log."""

        def found() -> re.Match | None:
            return re.search(pattern, self.log(job), re.M)

        return until(found, lambda: f"no {pattern}:\n{self.log(job)}")

    def ranks(self, run) -> dict[str, psutil.Process]:
        """The training processes of a run, by rank."""
        found = {}
        for process in psutil.process_iter(["cmdline"]):
            words = process.info["cmdline"] or []
            if words[1:3] == ["-m", "stargan_dist.train"] and str(run) in words:
                found[process.environ()["RANK"]] = process
        return found


@pytest.fixture
def slurm(cluster, tmp_path, shards):
    return Submitter(cluster, tmp_path, shards)


@pytest.fixture(scope="module")
def whole(cluster, shards, tmp_path_factory):
    """The run that nothing befell: two nodes of one process each."""
    folder = tmp_path_factory.mktemp("whole")
    slurm = Submitter(cluster, folder, shards)
    job = slurm.train(folder / "run", batch=NODES, sbatch=("--ntasks-per-node=1",))
    slurm.wait(job)
    assert "2 process(es) on cpu" in slurm.log(job)
    return folder / "run"


def assert_equal(run, whole):
    assert_same_bits(run, whole)
    assert scalars(run) == scalars(whole)  # neither a gap nor a double
    assert pictures(run) == pictures(whole)


SITE = """
set -e
export STARGAN_COMMAND="nice -n 3" STARGAN_SRUN="--cpu-bind=none"
"""


def test_asked_to_end_it_saves_and_goes_on_by_itself(slurm, whole, tmp_path):
    """`scancel --batch --signal=USR1` is what Slurm sends ahead of a time limit. The ranks' loader
    processes get their signals, too. The site has habits of its own."""
    run = tmp_path / "run"
    (tmp_path / "site.sh").write_text(SITE)
    job = slurm.train(run, "--data.workers", "1", STARGAN_SITE=str(tmp_path / "site.sh"))
    slurm.see(job, "^step 6/")
    assert {rank.nice() for rank in slurm.ranks(run).values()} == {os.nice(0) + 3}
    slurm.cluster.client("scancel", "--batch", "--signal=USR1", job)
    record = slurm.wait(job)
    assert record["Restarts"] == "1"
    step = int(slurm.see(job, r"^stopped by SIGUSR1 at step (\d+), saved")[1])
    assert 6 <= step < STEPS
    log = slurm.log(job)
    assert f"stopped and saved at step {step}; requeueing the job" in log
    assert f"steps {step} to {STEPS}, 2 process(es)" in log
    assert "error" not in log.replace("slurmstepd", "").replace(f"error: *** JOB {job}", "")
    assert_equal(run, whole)


def test_a_killed_rank_ends_the_job_which_goes_on(slurm, whole, tmp_path):
    run = tmp_path / "run"
    job = slurm.train(run)
    slurm.see(job, "^step 6/")
    slurm.ranks(run)["1"].kill()
    killed = time.monotonic()
    slurm.see(job, r"first to fail: rank 1 on node\d: Exited with exit code 137 \(signal KILL\)")
    assert time.monotonic() - killed < 120  # by far less than any time-out
    assert slurm.wait(job)["Restarts"] == "1"
    step = checkpoint_of(slurm.log(job))
    assert f"failed, but the run had got from step 0 to {step}; requeueing" in slurm.log(job)
    assert (tmp_path / f"slurm-{job}" / "start_0" / "rank_1.log").is_file()
    assert_equal(run, whole)


def test_a_mistake_is_told_before_ranks_start(slurm, tmp_path):
    job = slurm.train(tmp_path / "run", "--optim.lr", "quick")
    assert slurm.wait(job, "FAILED")["ExitCode"] == "2:0"
    assert 'error: Parser key "optim.lr"' in slurm.log(job)
    assert "process(es)" not in slurm.log(job)


@pytest.mark.slow
def test_a_mistake_of_the_ranks_is_not_repeated(slurm, tmp_path):
    job = slurm.train(tmp_path / "run", "--batch_size", "3")
    record = slurm.wait(job, "FAILED")
    assert (record["ExitCode"], record["Restarts"]) == ("2:0", "0")
    assert slurm.log(job).count("must be a multiple of the number of processes, 2") == 1


def test_a_time_limit_that_leaves_no_time_is_refused(slurm, tmp_path):
    job = slurm.train(tmp_path / "run", sbatch=("--time=9",))
    assert slurm.wait(job, "FAILED")["ExitCode"] == "2:0"
    told = "error: the time limit, 00:09:00, leaves less time for training than for saving"
    assert told in slurm.log(job)


def test_an_array_builds_the_shards_and_the_last_part_merges(slurm, animals, tmp_path):
    options = ("--val-fraction", "0.25", "--shard-images", "4")
    words = ("--array=1-3", "slurm/build_shards.sh", animals, tmp_path / "parts", *options)
    array = slurm.submit(*words)
    for part in (1, 2, 3):
        slurm.wait(f"{array}_{part}")
    build(str(animals), str(tmp_path / "one"), val_fraction=0.25, shard_images=4)
    assert digest(tmp_path / "parts") == digest(tmp_path / "one")


@pytest.mark.slow
def test_an_evaluation(slurm, whole):
    job = slurm.submit(TWO, "slurm/evaluate.sh", "--run", whole, "--protocol", "demo")
    slurm.wait(job)
    assert "latent     mean" in slurm.log(job)
    result = whole / "evaluation" / "demo" / f"step_{STEPS:08d}_seed_0.json"
    assert json.loads(result.read_text())["score"] > 0


# What takes minutes.

ENDLESS = ("--steps", "1000000", "--checkpoint.every", "1000000", "--monitor.log_every", "10")


@pytest.mark.slow
def test_the_time_limit_itself_and_then_a_cancellation(slurm, train, tmp_path):
    """Two minutes, the last of which is for saving. A scheduler's minutes are not exact."""
    run = tmp_path / "run"
    job = slurm.train(run, *ENDLESS, sbatch=(TWO, "--time=2"), SBATCH_SIGNAL="B:USR1@60")
    slurm.see(job, "requeueing the job")
    slurm.see(job, r"^\S+: steps [1-9]\d* to")
    slurm.see(job, r"(?s)requeueing.*\nstep \d+/")
    slurm.cluster.client("scancel", job)
    record = slurm.wait(job, "CANCELLED")
    slurm.see(job, "not requeued by this script: Slurm calls the job")
    assert record["Restarts"] == "1"
    step = int(slurm.see(job, r"^stopped by SIGTERM at step (\d+), saved")[1])
    whole = tmp_path / "whole"
    train(whole, *OPTIONS, *ENDLESS, "--steps", str(step), processes=2)
    assert_same_bits(run, whole)


@pytest.mark.slow
@pytest.mark.parametrize("told", ["USR1 to the script", "TERM to the ranks"])
def test_preempted_it_saves_and_goes_on(slurm, whole, tmp_path, told):
    run, cluster = tmp_path / "run", slurm.cluster
    setting = "SlurmctldParameters=preempt_send_user_signal"
    with cluster.without(setting) if told[0] == "T" else nullcontext():
        job = slurm.train(run)
        slurm.see(job, "^step 6/")
        urgent = ("--partition=urgent", "--nodes=2", "--gpus-per-node=8", "--wrap", "sleep 3")
        other = slurm.submit(*urgent)
        assert slurm.wait(job)["Restarts"] == "1"
    step = checkpoint_of(slurm.log(job))
    assert f"stopped by SIG{told[:4].strip()} at step {step}" in slurm.log(job)
    slurm.wait(other)
    assert_equal(run, whole)


@pytest.mark.slow
def test_told_to_end_before_it_listens(slurm, whole, tmp_path):
    run = tmp_path / "run"
    job = slurm.train(run)
    slurm.see(job, r"2 process\(es\), logs in")
    slurm.cluster.client("scancel", "--batch", "--signal=USR1", job)
    assert slurm.wait(job)["Restarts"] == "1"
    assert_equal(run, whole)


@pytest.mark.slow
@pytest.mark.parametrize(("batch", "lost"), [(TRAIN, "node1"), (NODES, "node1"), (NODES, "node2")])
def test_a_dead_node(slurm, whole, tmp_path, batch, lost):
    """The job goes on: on the other node, or, where it needs both, when that one is back."""
    run = tmp_path / "run"
    tasks = 2 if batch == TRAIN else 1
    job = slurm.train(run, batch=batch, sbatch=(f"--ntasks-per-node={tasks}",))
    slurm.see(job, "^step 6/")
    slurm.cluster.machines.kill(lost)
    try:
        slurm.wait(job, "PENDING")
        if batch == TRAIN:
            assert slurm.wait(job)["NodeList"] == "node2"
    finally:
        slurm.cluster.start(lost)
    slurm.wait(job)
    assert_equal(run, whole)


@pytest.mark.slow
def test_failures_are_bounded(slurm, whole, tmp_path):
    run = tmp_path / "run"
    job = slurm.train(run, STARGAN_MAX_FAILURES="1")
    for start in range(2):
        slurm.see(job, rf"(?s)({job}/start_{start}\n.*)\nstep (1[0-9]|9)/")
        slurm.ranks(run)["1"].kill()
    assert slurm.wait(job, "FAILED")["Restarts"] == "1"
    assert "failed too often" in slurm.log(job)
    again = slurm.train(run)
    slurm.wait(again)
    assert_equal(run, whole)


@pytest.mark.slow
def test_a_failure_that_gained_nothing_is_not_repeated(slurm, tmp_path):
    run = tmp_path / "run"
    job = slurm.train(run, *ENDLESS)
    slurm.see(job, "^step 10/")
    slurm.ranks(run)["1"].kill()
    assert slurm.wait(job, "FAILED")["Restarts"] == "0"
    assert "no checkpoint was saved since this start (step 0): not requeued" in slurm.log(job)


@pytest.mark.slow
def test_two_jobs_on_one_node(slurm, whole, tmp_path):
    """And the port that the first one would take is taken, by somebody who does not answer."""
    where = (TWO, "--gpus-per-node=2", "--nodelist=node1", "--hold")
    runs = [tmp_path / "one", tmp_path / "other"]
    jobs = [slurm.train(run, sbatch=where) for run in runs]
    listen = f"import socket, time; s = socket.create_server(('', {10000 + int(jobs[0])}))"
    command = [*slurm.cluster.machines.command("node1"), sys.executable, "-c"]
    with subprocess.Popen([*command, f"{listen}; time.sleep(1000)"]) as taker:
        try:
            slurm.cluster.client("scontrol", "release", *jobs)
            nodes = [slurm.wait(job)["NodeList"] for job in jobs]
        finally:
            taker.kill()
    assert nodes == ["node1", "node1"]
    for run in runs:
        assert_equal(run, whole)


@pytest.mark.slow
def test_an_array_of_trainings(slurm, whole, tmp_path):
    """The member whose number is that of the array is asked to end: it speaks for itself alone."""
    options = (
        f"--config {SMOKE} --data.shards {slurm.shards} --run {tmp_path}/$SLURM_ARRAY_TASK_ID",
        *OPTIONS,
    )
    lines = ["#!/bin/bash", ". slurm/common.sh", f"train {' '.join(options)}"]
    (tmp_path / "script.sh").write_text("\n".join(lines))
    array = slurm.submit(TWO, "--array=1-2", "--export=STARGAN_LOGS", tmp_path / "script.sh")
    members = [f"{array}_{number}" for number in (1, 2)]
    for member in members:
        slurm.see(member, "^step 6/")
    (asked,) = [each for each in members if slurm.cluster.job(each)["JobId"] == array]
    slurm.cluster.client("scancel", "--batch", "--signal=USR1", asked)
    for number, member in enumerate(members, start=1):
        restarts = slurm.wait(member)["Restarts"]
        assert restarts == ("1" if member == asked else "0")
        assert_equal(tmp_path / str(number), whole)


@pytest.mark.slow
@pytest.mark.parametrize(("batch", "per_node", "ranks"), [(TRAIN, 1, 1), (NODES, 2, 4)])
def test_other_shapes(slurm, tmp_path, batch, per_node, ranks):
    job = slurm.train(tmp_path / "run", batch=batch, sbatch=(f"--ntasks-per-node={per_node}",))
    slurm.wait(job)
    assert f"{ranks} process(es) on cpu" in slurm.log(job)


@pytest.mark.slow
def test_a_finished_run_does_not_start_again(slurm, whole):
    def checkpoints():
        return {f: f.stat().st_mtime_ns for f in (whole / "checkpoints").rglob("*")}

    before = checkpoints()
    job = slurm.train(whole)
    slurm.wait(job)
    assert f"finished at step {STEPS}" in slurm.log(job)
    assert "\nstep " not in slurm.log(job)
    assert checkpoints() == before


# $1 its address.
DEAD_END = """
ip link add name docker0 type bridge
ip address add "$1/24" dev docker0
ip link set docker0 up
"""


@pytest.mark.slow
def test_names_and_networks_that_mislead(whole, shards, tmp_path):
    """Debian's line for a machine's own name, and a network that leads nowhere."""

    def hosts(name, usual):
        return f"127.0.1.1 {name}\n{usual}"

    with Machines(["node1", "node2"], hosts) as machines, Cluster(machines) as cluster:
        for i, name in enumerate(machines.names):
            machines.run(name, *script(DEAD_END, f"10.99.{i}.1"))
        slurm = Submitter(cluster, tmp_path, shards)
        job = slurm.train(tmp_path / "run", batch=NODES, sbatch=("--ntasks-per-node=1",))
        slurm.wait(job)
    assert_equal(tmp_path / "run", whole)


def checkpoint_of(log):
    return int(re.findall(rf"steps (\d+) to {STEPS}, ", log)[-1])
