"""Decisions of slurm/common.sh in the batch shell of a job, with fake clients of Slurm."""

import os
import subprocess

import pytest

from tests.conftest import ROOT

# Slurm's clients. The first FAILING calls fail. The state is RUNNING until `scontrol requeue` is
# processed, whatever exit code it returns (REQUEUE_CODE).
CALL = """#!/usr/bin/env bash
echo "$*" >>calls
(($(wc -l <calls) > ${FAILING:-0})) || exit 1
"""
SCONTROL = f"""{CALL}
touch requeued
exit ${{REQUEUE_CODE:-0}}
"""
SQUEUE = f"""{CALL}
[[ -e requeued ]] && STATE=PENDING
case "${{!#}}" in
  --Format=State:40) printf '%-40s\n' "${{STATE:-RUNNING}}" ;;
  --Format=TimeLimit:40) printf '%-40s\n' "${{LIMIT:-1-00:00:00}}" ;;
  --Format=Requeue:40) printf '%-40s\n' "${{MAY:-1}}" ;;
esac
"""
PREAMBLE = f"source {ROOT}/slurm/common.sh; RETRY_SECONDS=0; FAILURES=failures; START_LOGS=start;"


@pytest.fixture
def shell(tmp_path):
    """Return a function that runs lines in a batch shell."""
    for name, program in {"scontrol": SCONTROL, "squeue": SQUEUE}.items():
        (tmp_path / name).write_text(program)
        (tmp_path / name).chmod(0o755)
    (tmp_path / "calls").touch()

    def run(lines, **env):
        env = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_ID": "7", **env}
        command = ["bash", "-c", PREAMBLE + lines]
        done = subprocess.run(
            command, cwd=tmp_path, env=env, text=True, capture_output=True, check=False, timeout=120
        )
        assert "line " not in done.stderr  # an error of the shell itself
        done.requeues = (tmp_path / "calls").read_text().splitlines().count("requeue 7")
        return done

    return run


@pytest.mark.parametrize(
    ("clock", "seconds"),
    [("0:59", 59), ("09:08", 548), ("23:00:08", 82808), ("2-01:00:00", 176400)],
)
def test_durations_are_converted_to_seconds(shell, clock, seconds):
    assert shell(f"seconds_of {clock}").stdout == f"{seconds}\n"


@pytest.mark.parametrize(
    ("limit", "signal", "error"),
    [
        ("10:00", "", ""),
        ("UNLIMITED", "", ""),
        ("9:00", "", "leaves less time for training than for saving (the last 300 s"),
        ("9:00", "B:USR1@60", ""),
        ("1-00:00:00", "USR2@60", "SBATCH_SIGNAL is USR2@60, not B:USR1@SECONDS"),
        ("1-00:00:00", "B:USR1", "SBATCH_SIGNAL is B:USR1, not"),
    ],
)
def test_a_time_limit_that_leaves_no_time_for_training_is_rejected(shell, limit, signal, error):
    done = shell("check_time_limit", LIMIT=limit, SBATCH_SIGNAL=signal)
    assert done.returncode == (2 if error else 0)
    assert error in done.stderr


@pytest.mark.parametrize(
    ("code", "before", "after", "answers", "requeued", "message"),
    [
        (1, 0, 4, True, True, "failed, but the run advanced from step 0 to 4; requeueing"),
        (137, 4, 4, True, False, "no checkpoint was saved since this start (step 4)"),
        (137, 4, 4, False, True, "failed, and a node of node[1-2] does not answer; requeueing"),
        (2, 0, 0, False, False, "no checkpoint was saved"),  # a user error: nodes are not checked
        (2, 0, 4, True, True, "advanced from step 0 to 4"),  # such as a storage outage
        (74, 4, 4, True, True, "a fault of storage, a disk or a machine that may pass; requeueing"),
        (75, 4, 4, True, True, "stopped before it completed another step; requeueing"),
    ],
)
def test_a_failed_job_is_requeued_if_that_may_help(
    shell, code, before, after, answers, requeued, message
):
    node = "true" if answers else "false"
    lines = f"CODE={code}; nodes_answer() {{ {node}; }}; handle_failure {before} {after}"
    done = shell(lines, SLURM_JOB_NODELIST="node[1-2]")
    assert done.returncode == (0 if requeued else code)
    assert done.requeues == requeued
    assert message in done.stdout


@pytest.mark.parametrize("check", ["before", "after"])
def test_a_check_of_the_saved_step_that_takes_too_long_requeues_the_job(shell, tmp_path, check):
    """It says so, and counts as a failure: the number of requeues is limited."""
    lines = "set_up() { :; }; check_time_limit() { :; }; open_logs() { :; }; nodes_answer() { :; };"
    lines += "check=before; run_ranks() { check=after CODE=1; };"
    slow = "timeout 0.1 sleep 600"
    lines += f"saved_step() {{ if [[ $check == {check} ]]; then {slow}; else echo 4; fi; }};"
    done = shell(f"{lines} train")
    assert (done.returncode, done.requeues) == (0, 1)
    assert "the check of the saved step took more than 120 s; requeueing the job" in done.stdout
    assert (tmp_path / "failures").read_text().count("exit code") == 1


def test_a_job_is_requeued_after_at_most_three_failures(shell, tmp_path):
    for start in range(4):
        (tmp_path / "requeued").unlink(missing_ok=True)
        done = shell(f"CODE=1; handle_failure {start} {start + 1}")
        assert done.returncode == (0 if start < 3 else 1)
    assert done.stdout.count("exit code 1, from step") == 4
    assert done.requeues == 3


def test_faults_of_the_outside_are_bounded_as_other_failures(shell, tmp_path):
    for start in range(4):
        (tmp_path / "requeued").unlink(missing_ok=True)
        done = shell("CODE=74; handle_failure 4 4")
        assert done.returncode == (0 if start < 3 else 74)
    assert done.requeues == 3


@pytest.mark.parametrize(("after", "requeues"), [(4, 0), (8, 1)])
def test_failures_that_cannot_be_counted_requeue_a_job_that_advances(
    shell, tmp_path, after, requeues
):
    """Such as on a full disk. Without progress the number of requeues would have no limit."""
    (tmp_path / "failures").mkdir()
    done = shell(f"CODE=74; handle_failure 4 {after}")
    assert (done.returncode, done.requeues) == (0 if requeues else 74, requeues)
    unwritable = "failed, and failures cannot be written, which counts failures: not requeued"
    assert (unwritable in done.stdout) == (not requeues)


@pytest.mark.parametrize("state", ["COMPLETING", "PREEMPTED", "NODE_FAIL"])
def test_a_job_that_slurm_ends_or_requeues_is_not_requeued(shell, state):
    done = shell("CODE=75; exit_if_slurm_decided; requeue stopped", STATE=state)
    assert (done.returncode, done.requeues) == (75, 0)
    message = "stopped and saved; not requeued by this script: the job's state in Slurm is "
    assert f"{message}{state}\n" in done.stdout


def test_a_job_that_is_being_signalled_counts_as_running(shell):
    assert shell("CODE=75; exit_if_slurm_decided; requeue stopped", STATE="SIGNALING").requeues == 1


@pytest.mark.parametrize(
    ("printed", "step"),
    [("8 of 40 steps saved in r", "8"), ("= A 1 of 2 =\n120 of 200 steps saved in 7 of 8", "120")],
)
def test_the_saved_step_is_found_among_other_output(shell, printed, step):
    lines = 'run_beside() { echo "$PRINTED"; }; saved_step && echo found'
    assert shell(lines, PRINTED=printed).stdout == f"{step}\nfound\n"


def test_output_without_a_saved_step_is_a_failure(shell):
    assert shell("run_beside() { echo hello; }; saved_step || echo none").stdout == "none\n"


def test_a_busy_controller_is_retried(shell):
    done = shell("CODE=75; exit_if_slurm_decided; requeue stopped", FAILING="3")
    assert (done.returncode, done.requeues) == (0, 1)


def test_a_controller_that_never_answers_is_retried_a_limited_number_of_times(shell):
    lines = "CODE=75; CONTROLLER_TRIES=3; exit_if_slurm_decided; requeue stopped"
    done = shell(lines, FAILING="100")
    assert done.returncode == 75
    assert "the job may not be requeued; run the same sbatch command again" in done.stdout


def test_a_job_without_permission_is_not_requeued(shell):
    done = shell("CODE=75; requeue stopped", MAY="0")
    assert (done.returncode, done.requeues) == (75, 0)
    assert "the job may not be requeued; run the same sbatch command again" in done.stdout


def test_a_requeue_whose_answer_was_lost_succeeds(shell):
    """The controller requeued the job, but scontrol received no answer."""
    done = shell("CODE=75; requeue stopped", REQUEUE_CODE="1")
    assert (done.returncode, done.requeues) == (75, 1)
    assert "may not be requeued" not in done.stdout


def test_a_task_of_an_array_is_addressed_by_array_and_task_id(shell):
    task = {"SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "2"}
    assert shell("echo $JOB", **task).stdout == "7_2\n"


@pytest.mark.parametrize(("first", "last", "count"), [(3, 3, 1), (2, 8, 7), (1, 8, 7)])
def test_a_part_of_an_array_requires_the_total_number_of_parts(shell, first, last, count):
    array = {"MIN": first, "MAX": last, "COUNT": count, "ID": first}
    env = {f"SLURM_ARRAY_TASK_{name}": str(value) for name, value in array.items()}
    lines = "set_up() { :; }; build_shards images shards"
    done = shell(lines, **env)
    assert done.returncode == 2
    assert "STARGAN_PARTS" in done.stderr


def test_a_site_file_may_contain_set_e(shell, tmp_path):
    (tmp_path / "site.sh").write_text("set -e\nexport SITE=read\n")
    env = {"STARGAN_SITE": str(tmp_path / "site.sh"), "SLURM_SUBMIT_DIR": str(tmp_path)}
    done = shell("set_up; false; echo $SITE $SLURM_EXPORT_ENV", STARGAN_COMMAND="x", **env)
    assert done.stdout == "read ALL\n"


STUB = 'train() { echo "$TRAIN|${STATUS[*]}|$*"; }; '


def test_a_task_of_an_array_trains_the_pair_of_its_number(shell):
    array = {"SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "3"}
    done = shell(f"{STUB} train_pair --run 'a set'", **array)
    assert done.stdout == "stargan_dist.pairs|stargan_dist.pairs --list|--index 3 --run a set\n"


def test_pairs_outside_of_an_array_are_a_user_error(shell):
    done = shell(f"{STUB} train_pair --run set")
    assert (done.returncode, done.stdout) == (2, "")
    assert "error: this is no job array: sbatch --array=0-N" in done.stderr
