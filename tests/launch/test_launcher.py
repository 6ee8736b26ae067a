"""A rank and its launcher: which process that is, and what happens when it dies."""

import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

from stargan_dist.launch import launcher
from stargan_dist.launch.launcher import Launcher
from tests.conftest import PATIENCE_SECONDS, ROOT
from tests.helpers.processes import is_alive, wait_for_end

TORCHRUN = {"TORCHELASTIC_RUN_ID": "none", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2"}
ACCELERATE = {"ACCELERATE_MIXED_PRECISION": "no"}
# A launcher that starts two ranks, prints their process ids and waits.
LAUNCHER = """
import subprocess, sys
session = len(sys.argv) > 2 and sys.argv[2] == "session"
for _ in range(2):
    subprocess.Popen([sys.executable, "-c", sys.argv[1]], start_new_session=session)
input()
"""
STOPS = """
import os, signal, time
from stargan_dist.launch.launcher import find_launcher, stop_with_launcher
def stop(*_):
    os.write(1, b"stopped\\n")
    os._exit(0)
signal.signal(signal.SIGTERM, stop)
stop_with_launcher()
os.write(1, f"{find_launcher()}\\n".encode())  # at once
time.sleep(3600)
"""


def start(folder, name, rank, *arguments, **env):
    """Start the launcher as a script of this name."""
    (folder / name).write_text(LAUNCHER)
    return subprocess.Popen(
        [sys.executable, folder / name, rank, *arguments], cwd=ROOT, env=os.environ | env,
        text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("name", "session", "env", "kills", "number"),
    [
        ("torchrun", "session", TORCHRUN, True, signal.SIGKILL),
        ("accelerate", "session", TORCHRUN, True, signal.SIGUSR1),
        ("my_own_launcher", "session", TORCHRUN, False, signal.SIGTERM),
        ("accelerate", "", ACCELERATE, False, signal.SIGTERM),
    ],
)
def test_ranks_are_asked_to_stop_when_their_launcher_dies(
    tmp_path, name, session, env, kills, number
):
    process = start(tmp_path, name, STOPS, session, **env)
    expected = f"Launcher(pid={process.pid}, kills_ranks={kills})\n"
    assert [process.stdout.readline() for _ in range(2)] == [expected] * 2
    ranks = psutil.Process(process.pid).children()
    process.send_signal(number)
    assert not wait_for_end(ranks)
    assert process.communicate(timeout=PATIENCE_SECONDS)[0] == "stopped\n" * 2


@pytest.mark.parametrize(
    ("name", "session", "env"),
    [("nohup", "", {}), ("bash", "", TORCHRUN), ("my_own_launcher", "", ACCELERATE)],
)
def test_a_process_without_a_launcher_goes_on_without_its_parent(tmp_path, name, session, env):
    process = start(tmp_path, name, STOPS, session, **env)
    assert [process.stdout.readline() for _ in range(2)] == ["None\n"] * 2
    ranks = psutil.Process(process.pid).children()
    process.kill()
    process.wait()
    time.sleep(0.3)
    alive = [rank for rank in ranks if is_alive(rank)]
    for rank in alive:
        rank.kill()
    assert len(alive) == 2


def test_a_launcher_that_died_before_is_noticed(monkeypatch):
    received = []
    previous = signal.signal(signal.SIGTERM, lambda number, _: received.append(number))
    monkeypatch.setattr(launcher, "find_launcher", lambda: Launcher(pid=1 << 22))
    monkeypatch.setattr(launcher.ctypes, "CDLL", lambda _: type("C", (), {"prctl": print}))
    launcher.stop_with_launcher()
    signal.signal(signal.SIGTERM, previous)
    assert received == [signal.SIGTERM]


@pytest.mark.parametrize("lost", [False, True])
def test_a_launcher_that_has_lost_a_rank_is_not_ended(tmp_path, monkeypatch, lost):
    """It is ending a broken world then. Otherwise it is killed."""
    process = start(tmp_path, "torchrun", STOPS, "session", **TORCHRUN)
    assert all(process.stdout.readline() for _ in range(2))
    ranks = psutil.Process(process.pid).children()
    if lost:
        ranks[0].kill()
        assert not wait_for_end(ranks[:1])
    monkeypatch.setattr(os, "getppid", lambda: process.pid)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    ended = Launcher(process.pid).end()
    if not ended:
        process.kill()
    assert ended != lost
    assert process.wait(PATIENCE_SECONDS) == -signal.SIGKILL
    assert not Launcher(process.pid + 1).end()


def test_the_patience_of_a_launcher_is_in_the_environment(monkeypatch):
    monkeypatch.delenv(launcher.PATIENCE_VARIABLE, raising=False)
    assert Launcher(1).patience_seconds == 30
    monkeypatch.setenv(launcher.PATIENCE_VARIABLE, "600")
    api = pytest.importorskip("torch.distributed.launcher.api")
    configurable = hasattr(api.LaunchConfig, "shutdown_timeout")
    assert Launcher(1).patience_seconds == (600 if configurable else 30)


@pytest.mark.parametrize(
    ("command", "hides"),
    [
        ("python -m accelerate.commands.launch", True),
        ("torchrun", True),
        ("python -m stargan_dist.launch", False),
        ("python -m stargan_dist.launch.node_agent", False),
        ("bash", False),
    ],
)
def test_launchers_that_hide_exit_codes_are_known(monkeypatch, command, hides):
    monkeypatch.setattr(launcher, "_words", lambda _: command.split())
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    assert launcher.launcher_hides_exit_codes() == hides


def test_a_torchrun_that_handles_no_sigterm_kills_no_ranks(monkeypatch):
    monkeypatch.setattr(launcher, "_words", lambda _: ["python", "-m", "stargan_dist.launch"])
    monkeypatch.setattr(os, "getsid", lambda _: os.getpid())
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    for handled, kills in (("SIGTERM,SIGINT", True), ("SIGQUIT", False)):
        monkeypatch.setenv("TORCHELASTIC_SIGNALS_TO_HANDLE", handled)
        assert launcher.find_launcher() == Launcher(os.getppid(), kills_ranks=kills)
