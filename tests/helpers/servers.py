"""Real servers on 127.0.0.1: an S3 object store, and an HTTP server with configurable faults."""

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


class FileRequestHandler(BaseHTTPRequestHandler):
    """Serve the files of a folder, with byte ranges. Faults follow the lists of the server."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: "FileServer"

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        with self.server.counted():
            self.server.released.wait(self.server.delay_seconds)
        path = self.server.folder / unquote(self.path.partition("?")[0]).lstrip("/")
        fault = self.server.next_fault(self.path)
        if fault == "reset":
            # With SO_LINGER 0, closing sends a reset in the middle of the response.
            linger = struct.pack("ii", 1, 0)
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            self.close_connection = True
            self.connection.close()
            return
        if fault == "stall":
            self.server.released.wait(STALL_SECONDS)
        if fault and fault.isdigit():
            self.respond(int(fault), b"")
        elif not path.is_file():
            self.respond(404, b"")
        else:
            self.serve(path.read_bytes())

    def serve(self, data):
        requested = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if not requested or not self.server.ranges:
            self.respond(200, data)
            return
        begin, end = int(requested[1]), int(requested[2] or len(data) - 1)
        content = data[begin : end + 1]
        content_range = f"bytes {begin}-{begin + len(content) - 1}/{len(data)}"
        self.respond(206, content, {"Content-Range": content_range})

    def respond(self, status, data, headers=None):
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
    """A server of the files in a folder.

    Attributes:
        ranges: whether byte ranges are supported.
        faults: pattern of paths -> results of the next matching requests, in order: "reset",
            "stall", a status such as "500", or anything else for success.
        log: command, path, status and number of bytes of each response.
        delay_seconds: before each response.
        peak: largest number of requests that waited at the same time.
    """

    daemon_threads = True
    request_queue_size = 128  # connections that are opened at the same time

    def __init__(self, folder: Path, port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), FileRequestHandler)
        self.folder, self.ranges = folder, True
        self.faults: dict[str, list[str]] = {}
        self.log: list[tuple[str, str, int, int]] = []
        self.released = threading.Event()
        self.delay_seconds, self.peak, self._waiting = 0.0, 0, 0
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

    @contextmanager
    def counted(self):
        """Count a request that waits."""
        with self._lock:
            self._waiting += 1
            self.peak = max(self.peak, self._waiting)
        yield
        with self._lock:
            self._waiting -= 1

    def gets(self) -> Counter[str]:
        """Return the number of GET requests for each path."""
        return Counter(path for command, path, *_ in self.log if command == "GET")

    def handle_error(self, *_):
        pass  # the client closed the connection


@contextmanager
def http_server(folder: Path, port: int = 0):
    """Serve a folder over HTTP, on any port or a given one; yields the `FileServer`."""
    server = FileServer(folder, port)
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
    """Run a server with the S3 protocol; yields its address."""
    server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        yield f"http://{host}:{port}"
    finally:
        server.stop()
