"""A task of a Slurm step starts as a rank. (tests/slurm runs Slurm itself.)"""

import os
import subprocess
import sys

import pytest

from stargan_dist.errors import UserError
from stargan_dist.launch import slurm_task
from tests.conftest import ROOT, SMOKE, here

TOWARDS = {"10.0.0.1": "to-the-first", "10.0.0.2": "to-the-second"}


def task_environment(nodes, per_node, rank):
    return {
        "SLURM_PROCID": str(rank),
        "SLURM_LOCALID": str(rank % per_node),
        "SLURM_NODEID": str(rank // per_node),
        "SLURM_STEP_NUM_TASKS": str(nodes * per_node),
        "SLURM_STEP_NUM_NODES": str(nodes),
        "MASTER_PORT": "12345",
        "STARGAN_HOSTS": "10.0.0.1 10.0.0.2 " if nodes > 1 else "10.0.0.1 ",
    }


@pytest.mark.parametrize(("nodes", "per_node"), [(1, 1), (1, 8), (2, 1), (2, 8), (16, 8)])
def test_each_task_becomes_its_rank(monkeypatch, nodes, per_node):
    monkeypatch.setattr(slurm_task, "interface_towards", TOWARDS.__getitem__)
    for rank in range(nodes * per_node):
        environment = slurm_task.rank_environment(task_environment(nodes, per_node, rank))
        assert environment == {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank % per_node),
            "WORLD_SIZE": str(nodes * per_node),
            "MASTER_ADDR": "127.0.0.1" if nodes == 1 else "10.0.0.1",
            "MASTER_PORT": "12345",
            "GLOO_SOCKET_IFNAME": interface(nodes, node=rank // per_node),
            "TORCH_CPP_LOG_LEVEL": "ERROR",
        }


def interface(nodes, node):
    if nodes == 1:
        return "lo"
    return "to-the-second" if node == 0 else "to-the-first"


def test_a_site_may_set_the_interface(monkeypatch):
    monkeypatch.setattr(slurm_task, "interface_towards", TOWARDS.__getitem__)
    environment = task_environment(2, 1, 0) | {"GLOO_SOCKET_IFNAME": "ib0"}
    assert slurm_task.rank_environment(environment)["GLOO_SOCKET_IFNAME"] == "ib0"


def test_outside_a_slurm_step_the_error_names_the_scripts():
    with pytest.raises(UserError, match=r"SLURM_PROCID.*start jobs by the scripts of slurm/"):
        slurm_task.rank_environment({})


def test_the_process_is_replaced_by_the_module():
    program = "import os; print(os.environ['RANK'], os.environ['WORLD_SIZE'])"
    done = subprocess.run(
        [sys.executable, "-m", "stargan_dist.launch.slurm_task", "timeit", "-n1", "-r1", program],
        cwd=ROOT, env=os.environ | task_environment(1, 8, 5),
        text=True, capture_output=True, check=True,
    )  # fmt: skip
    assert done.stdout.startswith("5 8\n")


def status(*words):
    command = [sys.executable, "-m", "stargan_dist.status", "--config", "configs/smoke.yaml"]
    return subprocess.run([*command, *words], cwd=ROOT, text=True, capture_output=True, check=False)


def test_status_prints_the_saved_step(finished_run, tmp_path):
    assert status("--run", finished_run).stdout == f"6 of 6 steps saved in {finished_run}\n"
    empty = here("status", "--config", SMOKE, "--run", tmp_path).stdout
    assert empty == f"0 of 6 steps saved in {tmp_path}\n"


def test_status_reports_an_invalid_option_in_one_line():
    done = here("status", "--config", SMOKE, "--steps", "many", code=2)
    assert done.stderr.startswith("error: steps: invalid literal for int() with base 10: 'many'")
    assert done.stderr.count("\n") == 1
