"""Run the ranks of one machine: launchers/multinode.sh starts this module on every machine.

The agent runs torchrun and adds what a training on several machines needs: the network interface
for gloo, signals that reach only the ranks, ranks that survive a broken connection until they have
saved, and the exit code of the training.

Standard input begins with the environment: entries NAME=value, each terminated by a NUL, and one
more NUL. Control messages follow, one per line:

    TERM, USR1  send this signal to the ranks. Before any rank has started, exit.
    END         another machine has failed: give the ranks a few seconds to report, then kill them.

The end of standard input means that the launcher has gone, and is treated as TERM.
"""

import argparse
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import psutil

from stargan_dist.errors import STOPPED, UserError, run_command
from stargan_dist.launch.network_interfaces import interface_towards

if TYPE_CHECKING:
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

GRACE_SECONDS = 5.0


def read_environment(pipe: BinaryIO) -> dict[str, str]:
    """Read the environment variables that precede the control messages.

    Raises:
        UserError: the input ends too early.
    """
    environment = dict[str, str]()
    while entry := _read_until_nul(pipe):
        name, _, value = entry.decode(errors="surrogateescape").partition("=")
        environment[name] = value
    return environment


def _read_until_nul(pipe: BinaryIO) -> bytes:
    entry = bytearray()
    while (byte := pipe.read(1)) != b"\0":
        if not byte:
            raise UserError(
                "standard input ended before the first control message: the command in "
                "STARGAN_RSH must forward its standard input, as ssh does (docker exec and kubectl "
                "exec with -i)"
            )
        entry += byte
    return bytes(entry)


def handle_messages(messages: Iterable[bytes]) -> None:
    """Handle control messages until they end, and then terminate the ranks."""
    for line in messages:
        name = line.decode().strip()
        if name == "END":
            time.sleep(GRACE_SECONDS)
            name = "KILL"
        signal_ranks(signal.Signals[f"SIG{name}"])
    signal_ranks(signal.SIGTERM)


def signal_ranks(number: signal.Signals) -> None:
    """Send a signal to the ranks, which torchrun started. Without ranks, exit this process.

    torchrun must not receive the signal. It would forward it and kill the ranks 30 seconds later,
    even while they save. While it waits for other machines, it handles no signal.
    """
    ranks = psutil.Process().children()
    if not ranks:
        os._exit(128 + number)
    for rank in ranks:
        with suppress(psutil.NoSuchProcess):
            rank.send_signal(number)


def check_port_free(port: int) -> None:
    """Check that the rendezvous can listen on a port of this machine.

    Raises:
        UserError: another program listens on it.
    """
    try:
        socket.create_server(("", port)).close()
    except OSError as error:
        raise UserError(
            f"port {port} of {socket.gethostname()}: {os.strerror(error.errno or 0)}; start the "
            "launcher again, which then selects another port"
        ) from error


def run_torchrun(arguments: list[str]) -> int:
    """Run torchrun and return the exit code of the ranks, in the convention of a shell."""
    from torch.distributed import run
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    try:
        run.main(arguments)
    except SignalException as error:
        return 128 + error.sigval
    except ChildFailedError as error:
        return exit_code(error)
    return 0


def exit_code(error: "ChildFailedError") -> int:
    """Return the exit code of the first rank that failed, or STOPPED if any rank exited with it.

    All ranks stop at the same step. But once one has exited, torchrun terminates those that are
    still exiting by a signal, which would hide that they were stopped.
    """
    if any(failure.exitcode == STOPPED for failure in error.failures.values()):
        return STOPPED
    return shell_code(error.get_first_failure()[1].exitcode)


def shell_code(code: int) -> int:
    """Return an exit code as a shell does: 128 + N for a process that signal N ended."""
    return code if code >= 0 else 128 - code


@contextmanager
def relayed_output() -> Iterator[None]:
    """Relay the output of the ranks as long as somebody reads it.

    If the connection breaks, the next printed line must not end a rank before it has saved its
    state.
    """
    originals = [os.dup(1), os.dup(2)]
    source, sink = os.pipe()
    for descriptor in (1, 2):
        os.dup2(sink, descriptor)
    os.close(sink)
    relay = threading.Thread(target=_relay, args=(source, originals[0]), daemon=True)
    relay.start()
    try:
        yield
    finally:
        for descriptor, original in zip((1, 2), originals, strict=True):
            os.dup2(original, descriptor)
        relay.join(GRACE_SECONDS)  # a child process of a rank may keep the pipe open for longer


def _relay(source: int, destination: int) -> None:
    while data := os.read(source, 1 << 16):
        with suppress(OSError):
            os.write(destination, data)


def _take_stdin() -> BinaryIO:
    """Return standard input as a pipe, and give the ranks /dev/null instead."""
    pipe = os.fdopen(os.dup(0), "rb")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    return pipe


def _parse_options(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="stargan_dist.launch.node_agent",
        usage="%(prog)s [options] -- -m MODULE … | SCRIPT …",
        allow_abbrev=False,
    )
    parser.add_argument("--number", type=int, required=True, help="number of this machine, from 0")
    parser.add_argument("--machines", type=int, required=True, help="number of machines")
    parser.add_argument("--first", required=True, help="name of machine 0, where ranks meet")
    parser.add_argument("--port", type=int, required=True, help="port of machine 0 for that")
    parser.add_argument("--peer", help="name of another machine, to find gloo's interface")
    parser.add_argument(
        "--slots", type=int, help="processes on this machine; default: one per GPU, or one"
    )
    return parser.parse_args(arguments)


def main() -> int:
    separator = sys.argv.index("--")
    options, training = _parse_options(sys.argv[1:separator]), sys.argv[separator + 1 :]
    messages = _take_stdin()
    os.environ |= read_environment(messages)  # before torch is imported
    # As in an activated virtual environment: DeepSpeed searches PATH for ninja.
    os.environ["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    if options.peer and "GLOO_SOCKET_IFNAME" not in os.environ:
        os.environ["GLOO_SOCKET_IFNAME"] = interface_towards(options.peer)
    if options.number == 0:
        check_port_free(options.port)
    threading.Thread(target=handle_messages, args=(messages,), daemon=True).start()
    with relayed_output():
        return run_torchrun([*_torchrun_options(options), *_program(training)])


def _torchrun_options(options: argparse.Namespace) -> list[str]:
    values = {
        "--nnodes": options.machines,
        "--node_rank": options.number,
        "--nproc_per_node": options.slots or _gpu_count() or 1,
        "--rdzv_backend": "static",
        "--master_addr": options.first,
        "--master_port": options.port,
        "--max_restarts": 0,
    }
    return [str(word) for pair in values.items() for word in pair]


def _program(arguments: list[str]) -> list[str]:
    """Return the arguments of torchrun for "-m MODULE …" or "SCRIPT …".

    After "--" torchrun does not parse the training's options as its own.
    """
    return ["-m", "--", *arguments[1:]] if arguments[0] == "-m" else ["--", *arguments]


def _gpu_count() -> int:
    import torch

    return torch.cuda.device_count()


if __name__ == "__main__":
    run_command(main)
