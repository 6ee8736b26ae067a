"""One machine's part of a training on several: its orders, its output, its exit code."""

import io
import os
import signal
import socket
import subprocess
import sys

import pytest

from stargan_dist.errors import UserError
from stargan_dist.launch import node_agent


def test_the_environment_comes_ahead_of_orders():
    pipe = io.BytesIO(b"OMP_NUM_THREADS=1\0NCCL_DEBUG=a=b\nc\0EMPTY=\0\0TERM\n")
    read = node_agent.read_environment(pipe)
    assert read == {"OMP_NUM_THREADS": "1", "NCCL_DEBUG": "a=b\nc", "EMPTY": ""}
    assert pipe.read() == b"TERM\n"


@pytest.mark.parametrize("sent", [b"", b"A=1\0", b"A=1"])
def test_a_connection_without_input_is_told(sent):
    with pytest.raises(UserError, match="STARGAN_RSH must pass its own on"):
        node_agent.read_environment(io.BytesIO(sent))


def test_orders_are_signals_and_their_end_is_sigterm(monkeypatch):
    sent = []
    monkeypatch.setattr(node_agent, "GRACE_SECONDS", 0)
    monkeypatch.setattr(node_agent, "signal_ranks", sent.append)
    node_agent.obey([b"USR1\n", b"TERM\n", b"END\n"])
    assert sent == [signal.SIGUSR1, signal.SIGTERM, signal.SIGKILL, signal.SIGTERM]


def test_signals_are_for_the_ranks():
    rank = subprocess.Popen(["sleep", "600"])
    node_agent.signal_ranks(signal.SIGUSR1)
    assert rank.wait(120) == -signal.SIGUSR1


def test_without_ranks_a_signal_ends_all():
    """Even in a wait for other machines, where Python answers no signal."""
    command = "import time; from stargan_dist import node; import threading as t; "
    command += "t.Thread(target=node.obey, args=([b'USR1'],)).start(); time.sleep(600)"
    done = subprocess.run([sys.executable, "-c", command], check=False, timeout=120)
    assert done.returncode == 128 + signal.SIGUSR1


def test_a_taken_port_is_told():
    with socket.create_server(("", 0)) as server:
        port = server.getsockname()[1]
        with pytest.raises(UserError, match=f"port {port} of .* in use; start again"):
            node_agent.refuse_taken(port)
    node_agent.refuse_taken(port)


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


def test_output_is_relayed_and_may_lose_its_reader():
    relayed = subprocess.Popen(
        [sys.executable, "-c", RELAYED], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert [relayed.stdout.readline() for _ in range(2)] == ["out\n", "err\n"]
    relayed.stdout.close()
    relayed.stdin.close()
    assert relayed.wait(120) == 7


def test_options_of_the_training_are_not_torchruns():
    """torchrun alone takes --run for a beginning of its --run_path."""
    from torch.distributed import run

    words = node_agent._program(["-m", "stargan_dist.train", "--run", "x"])
    args = run.parse_args(["--nnodes", "2", *words])
    assert args.module and args.training_script == "stargan_dist.train"
    assert args.training_script_args == ["--run", "x"]
    args = run.parse_args(["--nnodes", "2", *node_agent._program(["train.py", "--run", "x"])])
    assert (args.training_script, args.training_script_args) == ("train.py", ["--run", "x"])


def test_orders_are_out_of_the_ranks_sight():
    command = "import os; from stargan_dist.launch.node_agent import _own_stdin; p = _own_stdin(); "
    command += "assert os.read(0, 1) == b''; print(p.read())"
    done = subprocess.run(
        [sys.executable, "-c", command], input="TERM", text=True, capture_output=True, check=True,
        env=os.environ,
    )  # fmt: skip
    assert done.stdout == "b'TERM'\n"
