"""launchers/multinode.sh: same training on two machines as on one, signals, failures, exit codes.

The machines are simulated (tests/helpers/machines.py).
"""

import json
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from tests.conftest import PATIENCE_SECONDS, ROOT, SMOKE
from tests.helpers.machines import Machines, script, unavailable
from tests.helpers.runs import assert_same_bits

SCRIPT = ROOT / "launchers" / "multinode.sh"
NAMES = ("one", "two")
LONG = ("--steps", "1000", "--checkpoint.every", "1000")
DEAD_INTERFACE = """
ip link add dead type veth peer name nowhere
ip link set dead up
ip address add "172.31.9.$1/24" dev dead
"""


def debian_hosts(name, default):
    """Return /etc/hosts as on Debian: a machine's own name resolves to a loopback address there."""
    return f"127.0.1.1 {name}\n" + "".join(
        line for line in default.splitlines(keepends=True) if not line.endswith(f" {name}\n")
    )


@pytest.fixture(scope="module")
def network():
    """Two machines, each with a second network interface that leads nowhere."""
    if unavailable():
        pytest.skip(f"no simulated machines: {unavailable()}")
    with Machines(NAMES, hosts=debian_hosts) as machines:
        for number, name in enumerate(NAMES, start=1):
            machines.run(name, *script(DEAD_INTERFACE, number))
        yield machines


class Launcher:
    """Starts launchers/multinode.sh, with a replacement for ssh that enters simulated machines."""

    def __init__(self, machines, shards, folder) -> None:
        self.shards, self.folder, self.run = shards, folder, folder / "run"
        # The logs are written to the current folder, which must also hold the package.
        (folder / "stargan_dist").symlink_to(ROOT / "stargan_dist")
        cases = [f'{n}) exec {" ".join(machines.command(n))} sh -c "$2" ;;' for n in NAMES]
        (folder / "rsh").write_text("\n".join(["#!/bin/sh", 'case "$1" in', *cases, "esac", ""]))
        (folder / "rsh").chmod(0o755)
        self.hosts("one slots=1", "two slots=1")

    def hosts(self, *lines) -> None:
        (self.folder / "hosts").write_text("\n".join(["# a comment", "", *lines]))

    def start(self, *args) -> subprocess.Popen:
        training = ["--config", SMOKE, "--run", self.run, "--data.shards", self.shards, *args]
        return subprocess.Popen(
            # A shell cannot trap signals that were ignored when it started.
            ["env", "--default-signal=INT", SCRIPT, "hosts", "-m", "stargan_dist.train", *training],
            env=os.environ | {"STARGAN_RSH": "./rsh", "STARGAN_VENV": sys.prefix},
            cwd=self.folder, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            start_new_session=True,
        )  # fmt: skip

    def __call__(self, *args, code=0) -> str:
        """Run to the end and check the exit code. Returns the output."""
        return self.end(self.start(*args), code)

    def end(self, process, code) -> str:
        out = process.communicate(timeout=PATIENCE_SECONDS)[0]
        assert process.returncode == code, out
        return out

    def status(self) -> dict:
        return json.loads((self.run / "status.json").read_text())

    def rank(self, number) -> psutil.Process:
        """Return the process of a rank of this run, on either machine."""
        (process,) = [
            each for each in psutil.process_iter()
            if str(self.run) in (words := each.cmdline())
            and "stargan_dist.launch.node_agent" not in words
            and each.environ().get("RANK") == str(number)
        ]  # fmt: skip
        return process


@pytest.fixture
def multinode(network, shards, tmp_path):
    return Launcher(network, shards, tmp_path)


def until(process, pattern):
    """Read the output of a process until a line matches the pattern."""
    for line in process.stdout:
        if re.search(pattern, line):
            return
    raise AssertionError(f"ended with exit code {process.wait()} and without a line {pattern}")


def test_two_machines_train_the_same_bits_as_one(multinode, run_of_two, tmp_path):
    """Although a machine's own name resolves to 127.0.1.1 and one interface leads nowhere."""
    out = multinode()
    assert re.search(r"^one: [0-9:]{8} rank 0  finished at step 6", out, re.MULTILINE)
    assert out.splitlines()[-1] == "finished on 2 machines"
    assert_same_bits(multinode.run, run_of_two)
    (log,) = tmp_path.glob("multinode-logs/*/one.log")
    assert "rank 0  finished at step 6" in log.read_text()


@pytest.mark.slow
def test_machines_may_have_different_numbers_of_slots(multinode, train, tmp_path):
    train(tmp_path / "one_machine", "--batch_size", "6", processes=3)
    multinode.hosts("one slots=1", "root@two slots=2  # with a user name")
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
    assert time.monotonic() - began < 120  # well below every timeout
    last = out.splitlines()[-1]
    assert last.startswith(f"error: {NAMES[number]} failed first, with exit code 137; its output: ")


@pytest.mark.slow
@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_a_stopped_and_resumed_run_equals_an_uninterrupted_one(multinode, train, tmp_path, sent):
    """The signal is sent to the whole process group, as a terminal does on Ctrl-C."""
    steps = ("--steps", "30", "--checkpoint.every", "30")
    train(tmp_path / "uninterrupted", *steps, processes=2)
    process = multinode.start(*steps)
    until(process, "step 3/")
    os.killpg(process.pid, sent)
    out = multinode.end(process, code=75)
    assert out.splitlines()[-1] == "stopped, the state is saved; run the same command to resume"
    assert multinode.status()["status"] == "stopped"
    assert 3 <= multinode.status()["step"] < 30
    multinode(*steps)
    assert_same_bits(multinode.run, tmp_path / "uninterrupted")


@pytest.mark.slow
def test_the_run_is_saved_when_the_script_is_killed(multinode):
    """Nobody reads the output of the ranks then, as when a connection breaks."""
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
def test_an_invalid_configuration_is_reported_in_one_line_per_machine(multinode):
    out = multinode("--batch_size", "5", code=2)
    assert out.count("batch_size") == 2  # once per machine
    assert "Traceback" not in out


def error_of(tmp_path, *words, **env):
    """Return the error of the script. It must be found before any connection is made."""
    done = subprocess.run(
        [SCRIPT, *words], cwd=tmp_path, env=os.environ | env,
        text=True, capture_output=True, check=False, timeout=PATIENCE_SECONDS,
    )  # fmt: skip
    assert done.returncode == 2, done
    assert not (tmp_path / "multinode-logs").exists()
    return done.stderr


@pytest.mark.parametrize(
    ("hosts", "error"),
    [
        ("", "hosts: lists no machine"),
        ("# one\n\n", "hosts: lists no machine"),
        ("one\ntwo 4", 'hosts, line 2: "4" is not slots=N'),
        ("one slots=0", 'hosts, line 1: "slots=0" is not slots=N'),
        ("one\n\ntwo\none slots=2", "hosts, line 4: one is listed twice"),
        ("one slots=4444444", 'hosts, line 1: "slots=4444444" is not slots=N'),
        ("-oProxyCommand=x", "hosts, line 1: -oProxyCommand=x is not the name of a machine"),
        ("me@-l", "hosts, line 1: me@-l is not the name of a machine"),
        ("one\n../one", "hosts, line 2: ../one is not the name of a machine"),
        ("one\r\ntwo\r\n", "hosts, line 1: $'one\\r' is not the name of a machine"),
        ("one \x1b[31m", "hosts, line 1: \"$'\\E[31m'\" is not slots=N"),
        ("a" * 300, f"hosts, line 1: {'a' * 100} is not the name of a machine"),
    ],
)
def test_an_invalid_hostfile_is_an_error(tmp_path, hosts, error):
    (tmp_path / "hosts").write_text(hosts)
    assert error_of(tmp_path, "hosts", "-m", "x") == f"error: {error}\n"


def test_missing_files_and_arguments_are_errors(tmp_path):
    (tmp_path / "hosts").write_text("one")
    assert "hosts2: no such file" in error_of(tmp_path, "hosts2", "-m", "x")
    assert ".: no such file" in error_of(tmp_path, ".", "-m", "x")
    assert "--help" in error_of(tmp_path, "hosts")
    assert "no such folder" in error_of(tmp_path, "hosts", "-m", "x", STARGAN_VENV="venv2")


# Replacement for ssh. "two" exits with CODE. "one" writes its command line and its input, up to the
# first control message, to files.
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


@pytest.mark.parametrize(("code", "message"), [("3", b"END\n"), ("255", b"TERM\n")])
def test_when_a_machine_fails_the_others_receive_a_control_message(tmp_path, code, message):
    """END; or TERM, which makes them save, if only the connection may have failed."""
    (tmp_path / "fake.py").write_text(FAKE)
    (tmp_path / "hosts").write_text("one\ntwo")
    env = os.environ | {"STARGAN_RSH": f"{sys.executable} fake.py", "CODE": code}
    done = subprocess.run(
        [SCRIPT, "hosts", "-m", "x", "it's"], cwd=tmp_path, check=False, timeout=PATIENCE_SECONDS,
        env=env | {"NCCL_DEBUG": "two\nlines", "SECRET": "kept"}, text=True, capture_output=True,
    )  # fmt: skip
    assert done.returncode == int(code)
    (log,) = tmp_path.glob("multinode-logs/*/two.log")
    error = f"error: two failed first, with exit code {code}; its output: "
    assert done.stderr == f"{error}{log.relative_to(tmp_path)}\n"
    assert (done.stdout, log.read_text()) == ("two: hello\n", "hello\n")
    *entries, terminator, received = (tmp_path / "input").read_bytes().split(b"\0")
    assert (terminator, received) == (b"", message)
    assert b"NCCL_DEBUG=two\nlines" in entries
    assert not [entry for entry in entries if entry.startswith((b"SECRET", b"PATH"))]
    command = (tmp_path / "command").read_text()
    assert command.endswith(r" '--' '-m' 'x' 'it'\''s'") and "SECRET" not in command


def test_the_virtual_environment_is_that_of_the_current_folder(tmp_path):
    """Whatever folders CDPATH names."""
    for folder in (tmp_path, tmp_path / "elsewhere"):
        (folder / ".venv").mkdir(parents=True)
    (tmp_path / "hosts").write_text("one")
    (tmp_path / "rsh").write_text('#!/bin/sh\necho "$2" >command\n')
    (tmp_path / "rsh").chmod(0o755)
    env = os.environ | {"STARGAN_RSH": "./rsh", "CDPATH": f"{tmp_path / 'elsewhere'}:."}
    env.pop("STARGAN_VENV", None)
    subprocess.run(
        [SCRIPT, "hosts", "-m", "x"], cwd=tmp_path, env=env, check=True, capture_output=True,
        timeout=PATIENCE_SECONDS,
    )  # fmt: skip
    assert f" && exec '{tmp_path}/.venv/bin/python' '-m' " in (tmp_path / "command").read_text()


@pytest.mark.parametrize("full", ["logs", "both"])
def test_output_that_cannot_be_written_does_not_change_the_exit_code(tmp_path, full):
    """The limit of the size of files makes every write to a log fail, as a full disk does."""
    (tmp_path / "hosts").write_text("one\ntwo")
    (tmp_path / "rsh").write_text("#!/bin/sh\nseq 99999 && echo written >&2\n")
    (tmp_path / "rsh").chmod(0o755)
    with Path("/dev/full").open("w") as disk:
        done = subprocess.run(
            ["prlimit", "--fsize=0", "env", "--ignore-signal=XFSZ", SCRIPT, "hosts", "-m", "x"],
            env=os.environ | {"STARGAN_RSH": "./rsh"}, cwd=tmp_path, text=True, check=False,
            stdout=disk if full == "both" else subprocess.PIPE, stderr=subprocess.PIPE,
            timeout=PATIENCE_SECONDS,
        )  # fmt: skip
    assert done.returncode == 0, done.stderr
    if full == "logs":
        lines = done.stdout.splitlines()
        assert lines[-1] == "finished on 2 machines"
        assert {"one: 99999", "two: 99999", "one: written"} <= set(lines)


def test_help_prints_the_header_of_the_script():
    done = subprocess.run([SCRIPT, "--help"], text=True, capture_output=True, check=True)
    assert done.stdout.startswith("Train on several machines")
    assert "Exit code" in done.stdout and "set -e" not in done.stdout
