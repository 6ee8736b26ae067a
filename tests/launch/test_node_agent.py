"""The agent on each machine: control messages, relayed output, exit code."""

import io
import os
import signal
import socket
import subprocess
import sys

import pytest

from stargan_dist.errors import UserError
from stargan_dist.launch import node_agent


def test_the_environment_precedes_control_messages():
    pipe = io.BytesIO(b"OMP_NUM_THREADS=1\0NCCL_DEBUG=a=b\nc\0EMPTY=\0\0TERM\n")
    read = node_agent.read_environment(pipe)
    assert read == {"OMP_NUM_THREADS": "1", "NCCL_DEBUG": "a=b\nc", "EMPTY": ""}
    assert pipe.read() == b"TERM\n"


@pytest.mark.parametrize("received", [b"", b"A=1\0", b"A=1"])
def test_a_connection_without_standard_input_is_an_error(received):
    with pytest.raises(UserError, match="STARGAN_RSH must forward its standard input"):
        node_agent.read_environment(io.BytesIO(received))


def test_control_messages_are_sent_as_signals_and_their_end_is_sigterm(monkeypatch):
    sent = []
    monkeypatch.setattr(node_agent, "GRACE_SECONDS", 0)
    monkeypatch.setattr(node_agent, "signal_ranks", sent.append)
    node_agent.handle_messages([b"USR1\n", b"TERM\n", b"END\n"])
    assert sent == [signal.SIGUSR1, signal.SIGTERM, signal.SIGKILL, signal.SIGTERM]


def test_signals_are_sent_to_the_ranks():
    rank = subprocess.Popen(["sleep", "600"])
    node_agent.signal_ranks(signal.SIGUSR1)
    assert rank.wait(120) == -signal.SIGUSR1


def test_without_ranks_a_signal_ends_the_agent():
    """Also while torchrun waits for other machines, where Python handles no signal."""
    command = "import time; import threading; from stargan_dist.launch import node_agent as agent; "
    command += "threading.Thread(target=agent.handle_messages, args=([b'USR1'],)).start(); "
    command += "time.sleep(600)"
    done = subprocess.run([sys.executable, "-c", command], check=False, timeout=120)
    assert done.returncode == 128 + signal.SIGUSR1


def test_a_used_port_is_an_error():
    with socket.create_server(("", 0)) as server:
        port = server.getsockname()[1]
        with pytest.raises(UserError, match=f"port {port} of .* in use; start the launcher again"):
            node_agent.check_port_free(port)
    node_agent.check_port_free(port)


@pytest.mark.parametrize(
    ("codes", "expected"),
    [([1], 1), ([2, 1], 2), ([-9], 137), ([-15, 75], 75), ([75, 75], 75)],
)
def test_the_exit_code_is_that_of_the_training(codes, expected):
    errors = pytest.importorskip("torch.distributed.elastic.multiprocessing.errors")
    failures = {
        rank: errors.ProcessFailure(rank, pid=1, exitcode=code, error_file="none")
        for rank, code in enumerate(codes)
    }
    assert node_agent.exit_code(errors.ChildFailedError("x", failures)) == expected


RELAYED = """
import os, sys
from stargan_dist.launch.node_agent import relayed_output
with relayed_output():
    os.system("echo out; echo err >&2; read line")
    os.system("echo more; echo and more")
    print("here", flush=True)
os._exit(7)
"""


def test_output_is_relayed_and_ranks_survive_the_loss_of_its_reader():
    relayed = subprocess.Popen(
        [sys.executable, "-c", RELAYED], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert [relayed.stdout.readline() for _ in range(2)] == ["out\n", "err\n"]
    relayed.stdout.close()
    relayed.stdin.close()
    assert relayed.wait(120) == 7


def test_torchrun_does_not_parse_options_of_the_training():
    """Without "--", torchrun would take --run for an abbreviation of its --run_path."""
    from torch.distributed import run

    words = node_agent._program(["-m", "stargan_dist.train", "--run", "x"])
    args = run.parse_args(["--nnodes", "2", *words])
    assert args.module and args.training_script == "stargan_dist.train"
    assert args.training_script_args == ["--run", "x"]
    args = run.parse_args(["--nnodes", "2", *node_agent._program(["train.py", "--run", "x"])])
    assert (args.training_script, args.training_script_args) == ("train.py", ["--run", "x"])


def test_ranks_do_not_inherit_the_control_messages():
    command = "import os; from stargan_dist.launch.node_agent import _take_stdin; "
    command += "pipe = _take_stdin(); assert os.read(0, 1) == b''; print(pipe.read())"
    done = subprocess.run(
        [sys.executable, "-c", command], input="TERM", text=True, capture_output=True, check=True,
        env=os.environ,
    )  # fmt: skip
    assert done.stdout == "b'TERM'\n"
