"""The unchanged scripts of slurm/ on a real Slurm, with the smoke configuration on CPUs.

Most jobs train the same 40 steps with two processes. After any interruption they must end with the
same bits as the uninterrupted run of the fixture `uninterrupted`.
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
from tests.conftest import ROOT, SMOKE, Trainer, digest, here
from tests.helpers.machines import Machines, script
from tests.helpers.runs import assert_same_bits, pictures, scalars
from tests.slurm.cluster import Cluster, until

TRAIN, NODES = "slurm/train_8gpu.sh", "slurm/train_multinode.sh"
TWO = "--ntasks-per-node=2"
STEPS = 40
OPTIONS = ("--steps", str(STEPS), "--checkpoint.every", "4", "--monitor.sample_every", "8")


@dataclass
class Submitter:
    """Submits scripts from the folder of the repository, as a user does, with logs in `folder`."""

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

    def wait_for_line(self, job, pattern) -> re.Match:
        """Wait until a line of a job's log matches the pattern."""

        def match() -> re.Match | None:
            return re.search(pattern, self.log(job), re.M)

        return until(match, lambda: f"no line {pattern}:\n{self.log(job)}")

    def ranks(self, run) -> dict[str, psutil.Process]:
        """Return the training processes of a run, by rank."""
        processes = {}
        for process in psutil.process_iter(["cmdline"]):
            words = process.info["cmdline"] or []
            if words[1:3] == ["-m", "stargan_dist.train"] and str(run) in words:
                processes[process.environ()["RANK"]] = process
        return processes


@pytest.fixture
def slurm(cluster, tmp_path, shards):
    return Submitter(cluster, tmp_path, shards)


@pytest.fixture(scope="module")
def uninterrupted(cluster, shards, tmp_path_factory):
    """An uninterrupted run on two nodes with one process each."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    slurm = Submitter(cluster, folder, shards)
    job = slurm.train(folder / "run", batch=NODES, sbatch=("--ntasks-per-node=1",))
    slurm.wait(job)
    assert "2 process(es) on cpu" in slurm.log(job)
    return folder / "run"


PAIR = ("--recipe", "cyclegan")  # between two domains


@pytest.fixture(scope="module")
def uninterrupted_pairs(shards, tmp_path_factory):
    """All pairs, each trained in this process."""
    folder = tmp_path_factory.mktemp("pairs") / "set"
    for number in range(3):
        options = Trainer(shards).options(folder)
        here("pairs", "--index", number, *options, *OPTIONS, *PAIR)
    return folder


def assert_equal(run, uninterrupted):
    assert_same_bits(run, uninterrupted)
    assert scalars(run) == scalars(uninterrupted)  # no step is missing or logged twice
    assert pictures(run) == pictures(uninterrupted)


SITE = """
set -e
export STARGAN_COMMAND="nice -n 3" STARGAN_SRUN="--cpu-bind=none"
"""


def test_a_signal_saves_and_requeues_the_job(slurm, uninterrupted, tmp_path):
    """`scancel --batch --signal=USR1` sends what Slurm sends before a time limit. The data loader's
    processes receive the signals, too. The site file sets options of its own. The job's name looks
    like fields of its record."""
    run = tmp_path / "run"
    (tmp_path / "site.sh").write_text(SITE)
    job = slurm.train(
        *(run, "--data.workers", "1"),
        sbatch=(TWO, "--job-name=x JobState=CANCELLED Requeue=0 TimeLimit=00:01:00"),
        STARGAN_SITE=str(tmp_path / "site.sh"),
    )
    slurm.wait_for_line(job, "rank 0  step 6/")
    assert {rank.nice() for rank in slurm.ranks(run).values()} == {os.nice(0) + 3}
    slurm.cluster.client("scancel", "--batch", "--signal=USR1", job)
    record = slurm.wait(job)
    assert record["Restarts"] == "1"
    step = int(slurm.wait_for_line(job, r"rank 0  stopped by SIGUSR1 at step (\d+), saved")[1])
    assert 6 <= step < STEPS
    log = slurm.log(job)
    assert f"stopped and saved at step {step}; requeueing the job" in log
    assert f"steps {step} to {STEPS}, 2 process(es)" in log
    assert "error" not in log.replace("slurmstepd", "").replace(f"error: *** JOB {job}", "")
    assert_equal(run, uninterrupted)


@pytest.mark.slow
def test_a_killed_rank_fails_the_job_which_is_requeued(slurm, uninterrupted, tmp_path):
    run = tmp_path / "run"
    job = slurm.train(run)
    slurm.wait_for_line(job, "rank 0  step 6/")
    slurm.ranks(run)["1"].kill()
    killed = time.monotonic()
    slurm.wait_for_line(
        job, r"first failure: rank 1 on node\d: Exited with exit code 137 \(signal KILL\)"
    )
    assert time.monotonic() - killed < 120  # well below every timeout
    assert slurm.wait(job)["Restarts"] == "1"
    step = resumed_step(slurm.log(job))
    assert f"failed, but the run advanced from step 0 to {step}; requeueing" in slurm.log(job)
    assert (tmp_path / f"slurm-{job}" / "start_0" / "rank_1.log").is_file()
    assert_equal(run, uninterrupted)


def test_an_invalid_option_is_reported_before_ranks_start(slurm, tmp_path):
    job = slurm.train(tmp_path / "run", "--optim.lr", "quick")
    assert slurm.wait(job, "FAILED")["ExitCode"] == "2:0"
    assert "error: optim.lr: expected a finite number or null, not quick" in slurm.log(job)
    assert "process(es)" not in slurm.log(job)


@pytest.mark.slow
def test_a_user_error_of_the_ranks_is_not_requeued(slurm, tmp_path):
    job = slurm.train(tmp_path / "run", "--batch_size", "3")
    record = slurm.wait(job, "FAILED")
    assert (record["ExitCode"], record["Restarts"]) == ("2:0", "0")
    assert slurm.log(job).count("must be a multiple of the number of processes, 2") == 1


def test_a_time_limit_that_leaves_no_time_is_rejected(slurm, tmp_path):
    job = slurm.train(tmp_path / "run", sbatch=("--time=9",))
    assert slurm.wait(job, "FAILED")["ExitCode"] == "2:0"
    error = "error: the time limit, 9:00, leaves less time for training than for saving"
    assert error in slurm.log(job)


@pytest.mark.slow
def test_an_array_builds_the_shards_and_its_last_part_merges_them(slurm, animals, tmp_path):
    options = ("--val-fraction", "0.25", "--shard-images", "4")
    words = ("--array=1-3", "slurm/build_shards.sh", animals, tmp_path / "parts", *options)
    array = slurm.submit(*words)
    for part in (1, 2, 3):
        slurm.wait(f"{array}_{part}")
    build(str(animals), str(tmp_path / "one"), val_fraction=0.25, shard_images=4)
    assert digest(tmp_path / "parts") == digest(tmp_path / "one")


@pytest.mark.slow
def test_an_evaluation_writes_its_result(slurm, uninterrupted):
    job = slurm.submit(TWO, "slurm/evaluate.sh", "--run", uninterrupted, "--protocol", "demo")
    slurm.wait(job)
    assert "latent     mean" in slurm.log(job)
    result = uninterrupted / "evaluation" / "demo" / f"step_{STEPS:08d}_seed_0.json"
    assert json.loads(result.read_text())["score"] > 0


# Tests that take minutes.

ENDLESS = ("--steps", "1000000", "--checkpoint.every", "1000000", "--monitor.log_every", "10")


@pytest.mark.slow
def test_a_job_is_requeued_at_its_time_limit_and_saves_when_cancelled(slurm, train, tmp_path):
    """The limit is two minutes, with one reserved for saving. Slurm's minutes are not exact."""
    run = tmp_path / "run"
    job = slurm.train(run, *ENDLESS, sbatch=(TWO, "--time=2"), SBATCH_SIGNAL="B:USR1@60")
    slurm.wait_for_line(job, "requeueing the job")
    slurm.wait_for_line(job, r"rank 0  \S+: steps [1-9]\d* to")
    slurm.wait_for_line(job, r"(?s)requeueing.*rank 0  step \d+/")
    slurm.cluster.client("scancel", job)
    record = slurm.wait(job, "CANCELLED")
    slurm.wait_for_line(job, "not requeued by this script: the job's state in Slurm is ")
    assert record["Restarts"] == "1"
    step = int(slurm.wait_for_line(job, r"rank 0  stopped by SIGTERM at step (\d+), saved")[1])
    uninterrupted = tmp_path / "uninterrupted"
    train(uninterrupted, *OPTIONS, *ENDLESS, "--steps", str(step), processes=2)
    assert_same_bits(run, uninterrupted)


@pytest.mark.slow
@pytest.mark.parametrize("sent", ["USR1 to the script", "TERM to the ranks"])
def test_a_preempted_job_saves_and_is_requeued(slurm, uninterrupted, tmp_path, sent):
    run, cluster = tmp_path / "run", slurm.cluster
    setting = "SlurmctldParameters=preempt_send_user_signal"
    with cluster.without(setting) if sent[0] == "T" else nullcontext():
        job = slurm.train(run)
        slurm.wait_for_line(job, "rank 0  step 6/")
        urgent = ("--partition=urgent", "--nodes=2", "--gpus-per-node=8", "--wrap", "sleep 3")
        other = slurm.submit(*urgent)
        assert slurm.wait(job)["Restarts"] == "1"
    step = resumed_step(slurm.log(job))
    assert f"stopped by SIG{sent[:4].strip()} at step {step}" in slurm.log(job)
    slurm.wait(other)
    assert_equal(run, uninterrupted)


@pytest.mark.slow
def test_a_signal_during_the_start_saves_and_requeues_the_job(slurm, uninterrupted, tmp_path):
    run = tmp_path / "run"
    job = slurm.train(run)
    slurm.wait_for_line(job, r"2 process\(es\), logs in")
    slurm.cluster.client("scancel", "--batch", "--signal=USR1", job)
    assert slurm.wait(job)["Restarts"] == "1"
    assert_equal(run, uninterrupted)


@pytest.mark.slow
def test_a_check_of_the_saved_step_that_takes_too_long_requeues_the_job(
    slurm, uninterrupted, tmp_path
):
    run = tmp_path / "run"
    program = "#!/bin/bash\n[[ $* == *stargan_dist.status* ]] && mkdir {0}/once && sleep 600\n"
    (tmp_path / "slow").write_text(f'{program.format(tmp_path)}exec "$@"\n')
    (tmp_path / "slow").chmod(0o755)
    (tmp_path / "site.sh").write_text(f"BESIDE_SECONDS=5\nexport STARGAN_COMMAND={tmp_path}/slow\n")
    job = slurm.train(run, STARGAN_SITE=str(tmp_path / "site.sh"))
    slurm.wait_for_line(job, "the check of the saved step took more than 5 s; requeueing the job")
    (tmp_path / "site.sh").write_text("")
    assert slurm.wait(job)["Restarts"] == "1"
    assert_equal(run, uninterrupted)


@pytest.mark.slow
@pytest.mark.parametrize(("batch", "lost"), [(TRAIN, "node1"), (NODES, "node1"), (NODES, "node2")])
def test_a_job_is_requeued_when_a_node_dies(slurm, uninterrupted, tmp_path, batch, lost):
    """It resumes on the other node, or, if it needs both, once the dead node has been restarted."""
    run = tmp_path / "run"
    tasks = 2 if batch == TRAIN else 1
    job = slurm.train(run, batch=batch, sbatch=(f"--ntasks-per-node={tasks}",))
    slurm.wait_for_line(job, "rank 0  step 6/")
    slurm.cluster.machines.kill(lost)
    try:
        slurm.wait(job, "PENDING")
        if batch == TRAIN:
            assert slurm.wait(job)["NodeList"] == "node2"
    finally:
        slurm.cluster.start(lost)
    slurm.wait(job)
    assert_equal(run, uninterrupted)


@pytest.mark.slow
def test_the_number_of_requeues_after_failures_is_limited(slurm, uninterrupted, tmp_path):
    run = tmp_path / "run"
    job = slurm.train(run, STARGAN_MAX_FAILURES="1")
    for start in range(2):
        slurm.wait_for_line(job, rf"(?s)({job}/start_{start}\n.*)\nstep (1[0-9]|9)/")
        slurm.ranks(run)["1"].kill()
    assert slurm.wait(job, "FAILED")["Restarts"] == "1"
    assert "failed too often" in slurm.log(job)
    again = slurm.train(run)
    slurm.wait(again)
    assert_equal(run, uninterrupted)


@pytest.mark.slow
def test_a_failure_without_a_new_checkpoint_is_not_requeued(slurm, tmp_path):
    run = tmp_path / "run"
    job = slurm.train(run, *ENDLESS)
    slurm.wait_for_line(job, "rank 0  step 10/")
    slurm.ranks(run)["1"].kill()
    assert slurm.wait(job, "FAILED")["Restarts"] == "0"
    assert "no checkpoint was saved since this start (step 0): not requeued" in slurm.log(job)


@pytest.mark.slow
def test_two_jobs_share_a_node(slurm, uninterrupted, tmp_path):
    """The port that the first job would use is occupied by a program that never answers."""
    sbatch = (TWO, "--gpus-per-node=2", "--nodelist=node1", "--hold")
    runs = [tmp_path / "one", tmp_path / "other"]
    jobs = [slurm.train(run, sbatch=sbatch) for run in runs]
    listen = f"import socket, time; s = socket.create_server(('', {10000 + int(jobs[0])}))"
    command = [*slurm.cluster.machines.command("node1"), sys.executable, "-c"]
    with subprocess.Popen([*command, f"{listen}; time.sleep(1000)"]) as occupant:
        try:
            slurm.cluster.client("scontrol", "release", *jobs)
            nodes = [slurm.wait(job)["NodeList"] for job in jobs]
        finally:
            occupant.kill()
    assert nodes == ["node1", "node1"]
    for run in runs:
        assert_equal(run, uninterrupted)


@pytest.mark.slow
def test_tasks_of_an_array_of_trainings_are_requeued_separately(slurm, uninterrupted, tmp_path):
    """Only the task whose job id equals the array's id is signalled, and only it is requeued."""
    options = (
        f"--config {SMOKE} --data.shards {slurm.shards} --run {tmp_path}/$SLURM_ARRAY_TASK_ID",
        *OPTIONS,
    )
    lines = ["#!/bin/bash", ". slurm/common.sh", f"train {' '.join(options)}"]
    (tmp_path / "script.sh").write_text("\n".join(lines))
    array = slurm.submit(TWO, "--array=1-2", "--export=STARGAN_LOGS", tmp_path / "script.sh")
    tasks = [f"{array}_{number}" for number in (1, 2)]
    for task in tasks:
        slurm.wait_for_line(task, "rank 0  step 6/")
    (signalled,) = [each for each in tasks if slurm.cluster.job(each)["JobId"] == array]
    slurm.cluster.client("scancel", "--batch", "--signal=USR1", signalled)
    for number, task in enumerate(tasks, start=1):
        restarts = slurm.wait(task)["Restarts"]
        assert restarts == ("1" if task == signalled else "0")
        assert_equal(tmp_path / str(number), uninterrupted)


@pytest.mark.slow
def test_tasks_of_an_array_train_the_pairs_of_a_set(slurm, uninterrupted_pairs, tmp_path):
    """Three species have three pairs, and the array a fourth task. One is signalled, requeued and
    resumed."""
    folder, fixed = tmp_path / "set", uninterrupted_pairs
    array = slurm.train(folder, *PAIR, batch="slurm/pairs.sh", sbatch=("--array=0-3",))
    slurm.wait_for_line(f"{array}_1", "rank 0  step 6/")
    slurm.cluster.client("scancel", "--batch", "--signal=USR1", f"{array}_1")
    restarts = [slurm.wait(f"{array}_{number}")["Restarts"] for number in range(3)]
    assert restarts == ["0", "1", "0"]
    step = int(slurm.wait_for_line(f"{array}_1", r"stopped and saved at step (\d+); requeueing")[1])
    assert 6 <= step < STEPS
    for pair in ("cat-dog", "cat-rabbit", "dog-rabbit"):
        assert_equal(folder / pair, fixed / pair)
    assert slurm.wait(f"{array}_3", "FAILED")["ExitCode"] == "2:0"
    assert "error: --index: there is no pair 3, the last one is 2" in slurm.log(f"{array}_3")


@pytest.mark.slow
@pytest.mark.parametrize(("batch", "per_node", "ranks"), [(TRAIN, 1, 1), (NODES, 2, 4)])
def test_other_numbers_of_tasks_per_node(slurm, tmp_path, batch, per_node, ranks):
    job = slurm.train(tmp_path / "run", batch=batch, sbatch=(f"--ntasks-per-node={per_node}",))
    slurm.wait(job)
    assert f"{ranks} process(es) on cpu" in slurm.log(job)


@pytest.mark.slow
def test_a_finished_run_is_not_trained_again(slurm, uninterrupted):
    def checkpoints():
        return {f: f.stat().st_mtime_ns for f in (uninterrupted / "checkpoints").rglob("*")}

    before = checkpoints()
    job = slurm.train(uninterrupted)
    slurm.wait(job)
    assert f"finished at step {STEPS}" in slurm.log(job)
    assert "\nstep " not in slurm.log(job)
    assert checkpoints() == before


# $1: address of the interface.
DEAD_INTERFACE = """
ip link add name docker0 type bridge
ip address add "$1/24" dev docker0
ip link set docker0 up
"""


@pytest.mark.slow
def test_training_on_nodes_with_a_loopback_name_and_a_dead_interface(
    uninterrupted, shards, tmp_path
):
    """A host name resolves to 127.0.1.1 on its own node, as on Debian; one network is dead."""

    def hosts(name, default):
        return f"127.0.1.1 {name}\n{default}"

    with Machines(["node1", "node2"], hosts) as machines, Cluster(machines) as cluster:
        for i, name in enumerate(machines.names):
            machines.run(name, *script(DEAD_INTERFACE, f"10.99.{i}.1"))
        slurm = Submitter(cluster, tmp_path, shards)
        job = slurm.train(tmp_path / "run", batch=NODES, sbatch=("--ntasks-per-node=1",))
        slurm.wait(job)
    assert_equal(tmp_path / "run", uninterrupted)


def resumed_step(log):
    return int(re.findall(rf"steps (\d+) to {STEPS}, ", log)[-1])
