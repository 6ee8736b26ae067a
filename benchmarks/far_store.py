"""A server on 127.0.0.1 that stands for a far store, for benchmarks.

It waits for a delay before each response and sends 60 MB/s per connection, by HTTP or as an S3
store: a bucket is a folder, and signatures are ignored. (moto needs 7 ms of a core for a request,
three times as long as it takes to load an image.)
"""

import asyncio
import multiprocessing
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from typing import Any

BYTES_PER_SECOND = 60e6


@cache
def contents(path: Path) -> bytes:
    return path.read_bytes()


class Connection(asyncio.Protocol):
    """Answer the requests of a connection with little CPU time: the clients share the two cores.

    A request arrives in one piece, because a client waits for each response.
    """

    def __init__(self, folder: Path, delay_seconds: float) -> None:
        self.folder, self.delay_seconds = folder, delay_seconds

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, request: bytes) -> None:
        path = request.split()[1].partition(b"?")[0]  # a signature may follow
        whole = contents(self.folder / path.decode().lstrip("/"))
        part = re.search(rb"(?i)range: bytes=(\d+)-(\d*)", request)
        begin = int(part[1]) if part else 0
        end = min(int(part[2]), len(whole) - 1) if part and part[2] else len(whole) - 1
        data = whole[begin : end + 1]
        where = f"206 Partial\r\nContent-Range: bytes {begin}-{end}/{len(whole)}"
        head = f"HTTP/1.1 {where if part else '200 OK'}\r\nContent-Length: {len(data)}\r\n\r\n"
        seconds = self.delay_seconds + len(data) / BYTES_PER_SECOND
        loop = asyncio.get_running_loop()
        body = b"" if request.startswith(b"HEAD") else data
        loop.call_later(seconds, self.transport.write, head.encode() + body)


async def serve_forever(folder: str, delay_ms: float, ports: Any) -> None:
    connection = partial(Connection, Path(folder), delay_ms / 1000)
    server = await asyncio.get_running_loop().create_server(connection, "127.0.0.1", 0)
    ports.put(server.sockets[0].getsockname()[1])
    await server.serve_forever()


def serve(folder: str, delay_ms: float, ports: Any) -> None:
    asyncio.run(serve_forever(folder, delay_ms, ports))


@contextmanager
def far_server(folder: Path, delay_ms: float) -> Iterator[str]:
    """Serve a folder from a process of its own; yields its URL."""
    context = multiprocessing.get_context("spawn")
    ports = context.Queue()
    process = context.Process(target=serve, args=(str(folder), delay_ms, ports), daemon=True)
    process.start()
    try:
        yield f"http://127.0.0.1:{ports.get()}"
    finally:
        process.kill()
        process.join()


def s3_environment(url: str) -> dict[str, str]:
    """Return the environment of a client that finds the server at `s3://FOLDER`."""
    return {
        "AWS_ENDPOINT_URL": url,
        "S3_ENDPOINT_URL": url,  # of mosaicml-streaming
        "AWS_ACCESS_KEY_ID": "any",
        "AWS_SECRET_ACCESS_KEY": "any",
    }
