"""One machine's part of a training on several: what launchers/multinode.sh starts on each of them.

torchrun, and what it lacks for that: gloo's interface, signals that reach the ranks alone, ranks
that outlive the connection until they have saved, and the exit code of the training. On standard
input come the environment, as NAME=value with a NUL behind each and one more behind all, and then
orders, a line each:

    TERM, USR1  the signal, for the ranks. Where none has started yet, all ends.
    END         another machine has failed: the ranks have a few seconds to say what they know.

Its end means that nobody is there any more to give orders, and is taken for TERM.
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
    """The variables that come ahead of the orders.

    Raises:
        UserError: the pipe ends before they do.
    """
    entries = dict[str, str]()
    while entry := _until_nul(pipe):
        name, _, value = entry.decode(errors="surrogateescape").partition("=")
        entries[name] = value
    return entries


def _until_nul(pipe: BinaryIO) -> bytes:
    entry = bytearray()
    while (byte := pipe.read(1)) != b"\0":
        if not byte:
            raise UserError(
                "standard input ended ahead of the first order: the command in STARGAN_RSH must "
                "pass its own on, as ssh does (docker exec and kubectl exec with -i)"
            )
        entry += byte
    return bytes(entry)


def obey(orders: Iterable[bytes]) -> None:
    """Do what the lines order, until they end."""
    for line in orders:
        order = line.decode().strip()
        if order == "END":
            time.sleep(GRACE_SECONDS)
            order = "KILL"
        signal_ranks(signal.Signals[f"SIG{order}"])
    signal_ranks(signal.SIGTERM)


def signal_ranks(number: signal.Signals) -> None:
    """Signal the processes that torchrun started; without any, end this process.

    torchrun itself would pass a signal on and kill the ranks 30 seconds later, saving or not; and
    as long as it waits for other machines, it answers none.
    """
    ranks = psutil.Process().children()
    if not ranks:
        os._exit(128 + number)
    for rank in ranks:
        with suppress(psutil.NoSuchProcess):
            rank.send_signal(number)


def refuse_taken(port: int) -> None:
    """See that the ranks can meet at a port of this machine.

    Raises:
        UserError: another program listens there.
    """
    try:
        socket.create_server(("", port)).close()
    except OSError as error:
        raise UserError(
            f"port {port} of {socket.gethostname()}: {os.strerror(error.errno or 0)}; start again, "
            "and another one is taken"
        ) from error


def torchrun(words: list[str]) -> int:
    """Run torchrun, and return the exit code of the ranks as a shell would tell it."""
    from torch.distributed import run
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    try:
        run.main(words)
    except SignalException as error:
        return 128 + error.sigval
    except ChildFailedError as error:
        return exit_code(error)
    return 0


def exit_code(error: "ChildFailedError") -> int:
    """Of the first rank that failed; STOPPED if one says so, since all ranks agree on that.

    Where one has left, torchrun ends those that are still leaving by a signal.
    """
    if any(failure.exitcode == STOPPED for failure in error.failures.values()):
        return STOPPED
    code = error.get_first_failure()[1].exitcode
    return code if code >= 0 else 128 - code


@contextmanager
def relayed_output() -> Iterator[None]:
    """What ranks print goes on as long as somebody reads it.

    A connection that breaks must not end a rank by its next line, ahead of the state it is to save.
    """
    shown = [os.dup(1), os.dup(2)]
    source, sink = os.pipe()
    for number in (1, 2):
        os.dup2(sink, number)
    os.close(sink)
    relay = threading.Thread(target=_relay, args=(source, shown[0]), daemon=True)
    relay.start()
    try:
        yield
    finally:
        for number, original in zip((1, 2), shown, strict=True):
            os.dup2(original, number)
        relay.join(GRACE_SECONDS)  # a rank's own child may hold the pipe for longer


def _relay(source: int, shown: int) -> None:
    while data := os.read(source, 1 << 16):
        with suppress(OSError):
            os.write(shown, data)


def _own_stdin() -> BinaryIO:
    """Standard input, out of the ranks' sight."""
    pipe = os.fdopen(os.dup(0), "rb")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    return pipe


def _options(words: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="stargan_dist.launch.node_agent", allow_abbrev=False)
    parser.add_argument("--number", type=int, required=True, help="of this machine, from 0")
    parser.add_argument("--machines", type=int, required=True, help="how many there are")
    parser.add_argument("--first", required=True, help="name of machine 0, where ranks meet")
    parser.add_argument("--port", type=int, required=True, help="the port there")
    parser.add_argument("--peer", help="another machine, for gloo's interface")
    parser.add_argument("--slots", type=int, help="processes; without: one for each GPU, or one")
    return parser.parse_args(words)


def main() -> int:
    cut = sys.argv.index("--")
    options, training = _options(sys.argv[1:cut]), sys.argv[cut + 1 :]
    orders = _own_stdin()
    os.environ |= read_environment(orders)  # ahead of torch
    # As in a virtual environment that is activated: DeepSpeed looks for ninja.
    os.environ["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    if options.peer and "GLOO_SOCKET_IFNAME" not in os.environ:
        os.environ["GLOO_SOCKET_IFNAME"] = interface_towards(options.peer)
    if options.number == 0:
        refuse_taken(options.port)
    threading.Thread(target=obey, args=(orders,), daemon=True).start()
    with relayed_output():
        return torchrun([*_rendezvous(options), *_program(training)])


def _rendezvous(options: argparse.Namespace) -> list[str]:
    words = {
        "--nnodes": options.machines,
        "--node_rank": options.number,
        "--nproc_per_node": options.slots or _gpus() or 1,
        "--rdzv_backend": "static",
        "--master_addr": options.first,
        "--master_port": options.port,
        "--max_restarts": 0,
    }
    return [str(word) for pair in words.items() for word in pair]


def _program(words: list[str]) -> list[str]:
    """-m MODULE … or SCRIPT …; behind "--" torchrun takes no option for one of its own."""
    return ["-m", "--", *words[1:]] if words[0] == "-m" else ["--", *words]


def _gpus() -> int:
    import torch

    return torch.cuda.device_count()


if __name__ == "__main__":
    run_command(main)
