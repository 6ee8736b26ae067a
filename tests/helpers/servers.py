"""Real servers on 127.0.0.1: an object store, and HTTP that fails when told to."""

import re
import socket
import struct
import threading
from collections import Counter
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote

from moto.server import ThreadedMotoServer

STALL_SECONDS = 30.0


class Files(BaseHTTPRequestHandler):
    """Serves a folder, by ranges of bytes too. Faults are taken from the server's list, in turn."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: "FileServer"

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        path = self.server.folder / unquote(self.path).lstrip("/")
        fault = self.server.next_fault(self.path)
        if fault == "reset":
            # SO_LINGER 0: closing sends a reset, in the middle of the answer.
            linger = struct.pack("ii", 1, 0)
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            self.close_connection = True
            self.connection.close()
            return
        if fault == "stall":
            self.server.released.wait(STALL_SECONDS)
        if fault == "500":
            self.answer(500, b"")
        elif not path.is_file():
            self.answer(404, b"")
        else:
            self.serve(path.read_bytes())

    def serve(self, data):
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if not wanted or not self.server.ranges:
            self.answer(200, data)
            return
        begin, end = int(wanted[1]), int(wanted[2] or len(data) - 1)
        part = data[begin : end + 1]
        span = f"bytes {begin}-{begin + len(part) - 1}/{len(data)}"
        self.answer(206, part, {"Content-Range": span})

    def answer(self, status, data, headers=None):
        self.server.log.append((self.command, self.path, status, len(data)))
        self.send_response(status)
        if self.server.ranges:
            self.send_header("Accept-Ranges", "bytes")
        for name, value in {"Content-Length": len(data), **(headers or {})}.items():
            self.send_header(name, str(value))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data)

    def log_message(self, *_):
        pass


class FileServer(ThreadingHTTPServer):
    """`faults` lists what becomes of the next requests for paths that match a pattern."""

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), Files)
        self.folder, self.ranges = folder, True
        self.faults: dict[str, list[str]] = {}
        self.log: list[tuple[str, str, int, int]] = []
        self.released = threading.Event()
        self._lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def next_fault(self, path: str) -> str | None:
        with self._lock:
            for pattern, faults in self.faults.items():
                if re.search(pattern, path) and faults:
                    return faults.pop(0)
        return None

    def gets(self) -> Counter[str]:
        """How often each path was asked for."""
        return Counter(path for command, path, *_ in self.log if command == "GET")

    def handle_error(self, *_):
        pass  # a client that gave up


@contextmanager
def http_server(folder: Path):
    server = FileServer(folder)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server
    finally:
        server.released.set()
        server.shutdown()
        thread.join()
        server.server_close()


@contextmanager
def s3_server():
    """An S3 protocol server; yields its address."""
    server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        yield f"http://{host}:{port}"
    finally:
        server.stop()
