"""Servers of a try: an S3 store, an HTTP server, and a relay before them that can be taken away.

The store keeps its objects in memory. So a server is taken away by killing the relay: connections
are reset, and new ones refused.
"""

import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from moto.server import ThreadedMotoServer

from tests.campaign.programs import fork, send
from tests.helpers.servers import FileServer


def _serve(function: Callable[[], object]) -> int:
    """Run a server in a process of its own, without its log of requests; return its id."""
    return fork(function, Path(os.devnull))


def _serve_s3(port: int) -> None:
    ThreadedMotoServer("127.0.0.1", port=port, verbose=False).start()
    signal.pause()


def _copy(source: socket.socket, target: socket.socket) -> None:
    with suppress(OSError):
        while block := source.recv(65536):
            target.sendall(block)
    for end in (source, target):
        with suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)


def _relay(port: int, target: int) -> None:
    """Forward connections from one port to another."""
    with socket.create_server(("127.0.0.1", port), backlog=64) as server:
        while True:
            client, _ = server.accept()
            try:
                upstream = socket.create_connection(("127.0.0.1", target))
            except OSError:
                client.close()
                continue
            for ends in ((client, upstream), (upstream, client)):
                threading.Thread(target=_copy, args=ends, daemon=True).start()


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def _wait_for_port(port: int) -> None:
    for _ in range(3000):
        try:
            socket.create_connection(("127.0.0.1", port)).close()
            return
        except OSError:
            time.sleep(0.02)
    raise TimeoutError(f"nothing listens on port {port}")


class Server:
    """A server behind a relay.

    Attributes:
        url: address of the relay, which trainings use.
        direct: address of the server itself.
    """

    def __init__(self, folder: Path | None) -> None:
        """Serve a folder over HTTP, or without one, an empty S3 store."""
        self.relay_port = _free_port()
        if folder:
            server = FileServer(folder)
            port, self.pid = server.server_port, _serve(server.serve_forever)
            server.socket.close()
        else:
            port = _free_port()
            self.pid = _serve(lambda: _serve_s3(port))
        self.port = port
        _wait_for_port(port)
        self.url = f"http://127.0.0.1:{self.relay_port}"
        self.direct = f"http://127.0.0.1:{port}"
        self.relay = 0
        self.come_back()

    def come_back(self) -> None:
        port, target = self.relay_port, self.port
        self.relay = _serve(lambda: _relay(port, target))
        _wait_for_port(port)

    def go_away(self) -> None:
        if self.relay:
            send(self.relay, signal.SIGKILL)
            os.waitpid(self.relay, 0)
        self.relay = 0

    def freeze(self) -> None:
        send(self.relay, signal.SIGSTOP)

    def thaw(self) -> None:
        send(self.relay, signal.SIGCONT)

    def close(self) -> None:
        self.go_away()
        send(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
