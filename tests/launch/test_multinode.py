"""launchers/multinode.sh trains on two machines as on one, and ends well: on pretended machines."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import suppress

import psutil
import pytest

from tests.conftest import PATIENCE_SECONDS, ROOT, SMOKE
from tests.helpers import machines as pretended
from tests.helpers.machines import Machines
from tests.helpers.runs import assert_same_bits

SCRIPT = ROOT / "launchers" / "multinode.sh"
NAMES = ("one", "two")
LONG = ("--steps", "1000", "--checkpoint.every", "1000")
DEAD_CARD = """
ip link add dead type veth peer name nowhere
ip link set dead up
ip address add "172.31.9.$1/24" dev dead
"""


def as_on_debian(name, usual):
    """A machine's own name means a loopback address there, ahead of the true one."""
    return f"127.0.1.1 {name}\n" + "".join(
        line for line in usual.splitlines(keepends=True) if not line.endswith(f" {name}\n")
    )


@pytest.fixture(scope="module")
def network():
    """Two machines, each with a second card that leads nowhere."""
    if pretended.unavailable():
        pytest.skip(f"no pretended machines: {pretended.unavailable()}")
    with Machines(NAMES, hosts=as_on_debian) as machines:
        for number, name in enumerate(NAMES, start=1):
            machines.run(name, *pretended.script(DEAD_CARD, number))
        yield machines


class Launcher:
    """Starts launchers/multinode.sh as a user would, whose ssh leads to pretended machines."""

    def __init__(self, machines, shards, folder) -> None:
        self.shards, self.folder, self.run = shards, folder, folder / "run"
        # The logs are made where the command is given, and the package must be there.
        (folder / "stargan_dist").symlink_to(ROOT / "stargan_dist")
        ways = [f'{n}) exec {" ".join(machines.command(n))} sh -c "$2" ;;' for n in NAMES]
        (folder / "rsh").write_text("\n".join(["#!/bin/sh", 'case "$1" in', *ways, "esac", ""]))
        (folder / "rsh").chmod(0o755)
        self.hosts("one slots=1", "two slots=1")

    def hosts(self, *lines) -> None:
        (self.folder / "hosts").write_text("\n".join(["# a comment", "", *lines]))

    def start(self, *args) -> subprocess.Popen:
        training = ["--config", SMOKE, "--run", self.run, "--data.shards", self.shards, *args]
        return subprocess.Popen(
            # A shell does not answer signals that whoever started it had ignored.
            ["env", "--default-signal=INT", SCRIPT, "hosts", "-m", "stargan_dist.train", *training],
            env=os.environ | {"STARGAN_RSH": "./rsh", "STARGAN_VENV": sys.prefix},
            cwd=self.folder, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            start_new_session=True,
        )  # fmt: skip

    def __call__(self, *args, code=0) -> str:
        """Run to the end and check the exit code. Returns what was shown."""
        return self.end(self.start(*args), code)

    def end(self, process, code) -> str:
        out = process.communicate(timeout=PATIENCE_SECONDS)[0]
        assert process.returncode == code, out
        return out

    def status(self) -> dict:
        return json.loads((self.run / "status.json").read_text())

    def rank(self, number) -> psutil.Process:
        """A rank of this run, on whichever machine."""
        (found,) = [
            each for each in psutil.process_iter()
            if str(self.run) in (words := each.cmdline())
            and "stargan_dist.launch.node_agent" not in words
            and each.environ().get("RANK") == str(number)
        ]  # fmt: skip
        return found


@pytest.fixture
def multinode(network, shards, tmp_path):
    return Launcher(network, shards, tmp_path)


def until(process, pattern):
    """Read what a process shows until a line has the pattern."""
    for line in process.stdout:
        if re.search(pattern, line):
            return
    raise AssertionError(f"ended with {process.wait()} and without {pattern}")


def test_two_machines_train_what_one_does(multinode, run_of_two, tmp_path):
    """Though a machine's own name means 127.0.1.1 there, and one of its cards leads nowhere."""
    out = multinode()
    assert "one: finished at step 6" in out
    assert out.splitlines()[-1] == "finished on 2 machines"
    assert_same_bits(multinode.run, run_of_two)
    (log,) = tmp_path.glob("multinode-logs/*/one.log")
    assert "\nfinished at step 6" in log.read_text()


@pytest.mark.slow
def test_machines_may_differ_in_size(multinode, train, tmp_path):
    train(tmp_path / "one_machine", "--batch_size", "6", processes=3)
    multinode.hosts("one slots=1", "root@two slots=2  # with a user's name")
    rsh = tmp_path / "rsh"
    rsh.write_text(rsh.read_text().replace("two)", "root@two)"))
    assert "3 process(es) on cpu" in multinode("--batch_size", "6")
    assert_same_bits(multinode.run, tmp_path / "one_machine")


@pytest.mark.slow
@pytest.mark.parametrize("number", [0, 1])
def test_the_machine_of_a_killed_rank_is_named(multinode, number):
    process = multinode.start(*LONG)
    until(process, "step 3/")
    multinode.rank(number).kill()
    began = time.monotonic()
    out = multinode.end(process, code=137)
    assert time.monotonic() - began < 120  # by far less than any time-out
    last = out.splitlines()[-1]
    assert last.startswith(f"error: {NAMES[number]} failed first, with exit code 137; its output: ")


@pytest.mark.slow
@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_stopped_and_resumed_is_unbroken(multinode, train, tmp_path, sent):
    """Ctrl-C is for all processes that have the terminal, as the signals here."""
    steps = ("--steps", "30", "--checkpoint.every", "30")
    train(tmp_path / "unbroken", *steps, processes=2)
    process = multinode.start(*steps)
    until(process, "step 3/")
    os.killpg(process.pid, sent)
    out = multinode.end(process, code=75)
    assert out.splitlines()[-1] == "stopped, the state is saved: the same command goes on"
    assert multinode.status()["status"] == "stopped"
    assert 3 <= multinode.status()["step"] < 30
    multinode(*steps)
    assert_same_bits(multinode.run, tmp_path / "unbroken")


@pytest.mark.slow
def test_a_killed_script_leaves_a_saved_run(multinode):
    """What it showed is read by nobody then, as when a connection breaks."""
    process = multinode.start(*LONG)
    until(process, "step 3/")
    for child in psutil.Process(process.pid).children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            if child.name() in {"tee", "sed"}:
                child.kill()
    process.kill()
    deadline = time.monotonic() + PATIENCE_SECONDS
    while multinode.status()["status"] != "stopped" and time.monotonic() < deadline:
        time.sleep(0.2)
    assert multinode.status()["status"] == "stopped"


@pytest.mark.slow
def test_a_mistake_in_the_configuration_is_one_line(multinode):
    out = multinode("--batch_size", "5", code=2)
    assert out.count("batch_size") == 2  # told by each machine
    assert "Traceback" not in out


def told(tmp_path, *words, **env):
    """What the script says, that finds a mistake ahead of any connection."""
    done = subprocess.run(
        [SCRIPT, *words], cwd=tmp_path, env=os.environ | env,
        text=True, capture_output=True, check=False, timeout=PATIENCE_SECONDS,
    )  # fmt: skip
    assert done.returncode == 2, done
    assert not (tmp_path / "multinode-logs").exists()
    return done.stderr


@pytest.mark.parametrize(
    ("hosts", "mistake"),
    [
        ("", "hosts: names no machine"),
        ("# one\n\n", "hosts: names no machine"),
        ("one\ntwo 4", 'hosts, line 2: "4" is not slots=N'),
        ("one slots=0", 'hosts, line 1: "slots=0" is not slots=N'),
        ("one\n\ntwo\none slots=2", "hosts, line 4: one is there twice"),
    ],
)
def test_mistakes_in_the_hostfile_are_told(tmp_path, hosts, mistake):
    (tmp_path / "hosts").write_text(hosts)
    assert told(tmp_path, "hosts", "-m", "x") == f"error: {mistake}\n"


def test_other_mistakes_are_told(tmp_path):
    (tmp_path / "hosts").write_text("one")
    assert "hosts2: no such file" in told(tmp_path, "hosts2", "-m", "x")
    assert "--help" in told(tmp_path, "hosts")
    assert "no such folder" in told(tmp_path, "hosts", "-m", "x", STARGAN_VENV="venv2")


# Stands for ssh: "two" ends with a code, "one" keeps what comes in until it is ordered to end.
FAKE = """
import os, sys, time
if sys.argv[1] == "two":
    time.sleep(0.5)
    print("hello")
    sys.exit(int(os.environ["CODE"]))
read = b""
while b"\\0\\0" not in read or not read.endswith(b"\\n"):
    read += os.read(0, 1)
open("input", "wb").write(read)
open("command", "w").write(sys.argv[2])
"""


@pytest.mark.parametrize(("code", "order"), [("3", b"END\n"), ("255", b"TERM\n")])
def test_when_a_machine_fails_the_others_get_an_order(tmp_path, code, order):
    """To end; or to save, where it may be that only a connection failed."""
    (tmp_path / "fake.py").write_text(FAKE)
    (tmp_path / "hosts").write_text("one\ntwo")
    env = os.environ | {"STARGAN_RSH": f"{sys.executable} fake.py", "CODE": code}
    done = subprocess.run(
        [SCRIPT, "hosts", "-m", "x", "it's"], cwd=tmp_path, check=False, timeout=PATIENCE_SECONDS,
        env=env | {"NCCL_DEBUG": "two\nlines", "SECRET": "kept"}, text=True, capture_output=True,
    )  # fmt: skip
    assert done.returncode == int(code)
    (log,) = tmp_path.glob("multinode-logs/*/two.log")
    told = f"error: two failed first, with exit code {code}; its output: "
    assert done.stderr == f"{told}{log.relative_to(tmp_path)}\n"
    assert (done.stdout, log.read_text()) == ("two: hello\n", "hello\n")
    *entries, nothing, received = (tmp_path / "input").read_bytes().split(b"\0")
    assert (nothing, received) == (b"", order)
    assert b"NCCL_DEBUG=two\nlines" in entries
    assert not [entry for entry in entries if entry.startswith((b"SECRET", b"PATH"))]
    command = (tmp_path / "command").read_text()
    assert command.endswith(r" '--' '-m' 'x' 'it'\''s'") and "SECRET" not in command


def test_help_is_the_header():
    done = subprocess.run([SCRIPT, "--help"], text=True, capture_output=True, check=True)
    assert done.stdout.startswith("Trains on several machines")
    assert "Exit code" in done.stdout and "set -e" not in done.stdout
