"""Cheap reads of ranges by HTTP.

aiohttp takes twice as long for a request, and the thread that decodes images waits for the
interpreter's lock meanwhile (benchmarks/request_cost.py). This client understands only the usual
responses: statuses 206 and 200, with a length, in one piece. Others are left to its callers.
"""

import asyncio
import re
import ssl
import time
from collections import defaultdict
from functools import cache, lru_cache
from typing import NamedTuple

import yarl

BUFFER_BYTES = 2**16  # of a connection: for the head of a response, and mostly all of it
MAX_FILE_BYTES = 2**26  # of a file from a server that does not serve ranges
KNOWN_URLS = 2**11
IDLE_SECONDS = 15  # later, a firewall may have forgotten a connection without closing it
HAPPY_EYEBALLS_SECONDS = 0.25  # RFC 8305

WHOLE, PARTIAL = 200, 206
STATUS = re.compile(rb"http/1\.1 (\d\d\d)[ \r]")
LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*(\d{1,15})[ \t]*\r\n")
TRANSFER_ENCODED = re.compile(rb"\r\ntransfer-encoding:")
ENCODED = re.compile(rb"\r\ncontent-encoding:")
CLOSING = re.compile(rb"\r\nconnection:[ \t]*close")
SENDABLE = re.compile(r"[\x21-\x7e]+")


class UnusualResponse(OSError):
    """A response that this client does not understand, or a request that it cannot make.

    Attributes:
        status: of HTTP; 0 if there is none.
    """

    def __init__(self, message: str, status: int = 0) -> None:
        super().__init__(message)
        self.status = status


class Request(NamedTuple):
    """A request of a range.

    Attributes:
        text: what is sent.
        limit: number of bytes that are requested.
        takes_encoded: the response may be encoded, and is not decoded.
    """

    text: bytes
    limit: int
    takes_encoded: bool


class Body(NamedTuple):
    """Where the body of a response is in what is received."""

    begin: int
    end: int
    closes: bool  # the server closes the connection afterwards


def find_body(head: bytes, request: Request) -> Body:
    """Find the body of a response, whose head ends with an empty line.

    Raises:
        UnusualResponse: it is neither that of the range nor that of the whole file.
    """
    begin, head = len(head), head.lower()
    status, length = STATUS.match(head), LENGTH.search(head)
    code = int(status[1]) if status else 0
    is_encoded = ENCODED.search(head) and not request.takes_encoded
    if code not in (PARTIAL, WHOLE) or is_encoded or TRANSFER_ENCODED.search(head):
        raise UnusualResponse(f"response {head[:40]!r}", code)
    if not length or head.count(b"\r\ncontent-length:") > 1:
        raise UnusualResponse("no length, or two", code)
    if int(length[1]) > (request.limit if code == PARTIAL else MAX_FILE_BYTES):
        raise UnusualResponse("too many bytes", code)
    return Body(begin, begin + int(length[1]), bool(CLOSING.search(head)))


class Connection(asyncio.BufferedProtocol):
    """A connection, for one request at a time."""

    _transport: asyncio.Transport
    _request: Request
    _body: Body | None = None
    _answer: asyncio.Future[bytes] | None = None

    def __init__(self) -> None:
        self.is_open, self._used = False, 0.0
        self._first = self._received = bytearray(BUFFER_BYTES)
        self._size = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport, self.is_open = transport, True

    def connection_lost(self, exc: Exception | None) -> None:
        self._fail(exc or ConnectionResetError("the server closed the connection"))

    def is_fresh(self) -> bool:
        """Return True if the connection is open, and had a response not long ago."""
        return self.is_open and time.monotonic() - self._used < IDLE_SECONDS

    def get(self, request: Request) -> asyncio.Future[bytes]:
        """Send a request. Returns the body of the response."""
        self._request, self._answer = request, asyncio.get_running_loop().create_future()
        self._transport.write(request.text)
        return self._answer

    def close(self) -> None:
        """Close the connection at once."""
        self.is_open = False
        self._transport.abort()

    def get_buffer(self, sizehint: int) -> memoryview:
        return memoryview(self._received)[self._size :]

    def buffer_updated(self, nbytes: int) -> None:
        self._size += nbytes
        try:
            if not self._body:
                self._find_body()
            if self._body and self._size >= self._body.end:
                self._finish(self._body)
        except UnusualResponse as error:
            self._fail(error)

    def _find_body(self) -> None:
        end = self._received.find(b"\r\n\r\n", 0, self._size)
        if not self._answer:
            raise UnusualResponse("bytes that were not requested")
        if end < 0 and (self._size == BUFFER_BYTES or b"\n\n" in self._received[: self._size]):
            raise UnusualResponse("a head that is too long, or has no carriage returns")
        if end < 0:  # more of it will come
            return
        self._body = find_body(bytes(self._received[: end + 4]), self._request)
        if self._body.end > BUFFER_BYTES:
            self._received = self._received[: self._size] + bytes(self._body.end - self._size)

    def _finish(self, body: Body) -> None:
        if self._size > body.end or not self._answer:
            raise UnusualResponse("more bytes than announced")
        answer, self._answer = self._answer, None
        if not answer.done():
            answer.set_result(bytes(memoryview(self._received)[body.begin : body.end]))
        self._received, self._size, self._body = self._first, 0, None
        self._used = time.monotonic()
        if body.closes:
            self.close()

    def _fail(self, error: Exception) -> None:
        self.close()
        if self._answer and not self._answer.done():
            self._answer.set_exception(error)


class Server(NamedTuple):
    """What connections lead to."""

    host: str
    port: int
    is_secure: bool


@cache
def _idle(_loop: asyncio.AbstractEventLoop) -> defaultdict[Server, list[Connection]]:
    """Return the connections of an event loop that have no request."""
    return defaultdict(list)


@cache
def _tls_context() -> ssl.SSLContext:
    return ssl.create_default_context()


async def _connect(server: Server) -> Connection:
    _, connection = await asyncio.get_running_loop().create_connection(
        Connection,
        server.host,
        server.port,
        ssl=_tls_context() if server.is_secure else None,
        happy_eyeballs_delay=HAPPY_EYEBALLS_SECONDS,
    )
    return connection


async def _get(server: Server, request: Request) -> bytes:
    idle = _idle(asyncio.get_running_loop())[server]
    while idle:
        connection = idle.pop()
        if not connection.is_fresh():
            connection.close()
            continue
        try:
            return await _use(connection, request, idle)
        except ConnectionError:  # the server has closed it since its last request
            continue
    return await _use(await _connect(server), request, idle)


async def _use(connection: Connection, request: Request, idle: list[Connection]) -> bytes:
    try:
        data = await connection.get(request)
    except BaseException:  # also if it is cancelled: the response must not answer another request
        connection.close()
        raise
    idle.append(connection)
    return data


@lru_cache(KNOWN_URLS)
def _locate(url: str, is_signed: bool) -> tuple[Server, str]:
    """Return the server of a URL, and the first lines of a request.

    Raises:
        UnusualResponse: other requests are needed.
    """
    parts = yarl.URL(url, encoded=is_signed)
    is_sendable = parts.raw_host and parts.port and SENDABLE.fullmatch(parts.raw_path_qs)
    if not is_sendable or parts.user or parts.password:
        raise UnusualResponse("a URL with a user, without a host, or with other characters")
    assert parts.raw_host and parts.port
    server = Server(parts.raw_host, parts.port, parts.scheme == "https")
    return server, (
        f"GET {parts.raw_path_qs} HTTP/1.1\r\n"
        f"Host: {parts.host_port_subcomponent}\r\n"
        "User-Agent: stargan_dist\r\n"
        "Accept: */*\r\n"
        "Accept-Encoding: identity\r\n"
    )


async def read_range(
    url: str, start: int, end: int, headers: str = "", *, is_signed: bool = False
) -> bytes:
    """Read the bytes [start, end) of a file, fewer at its end.

    A server without ranges sends the whole file.

    Args:
        url: the file, http:// or https://.
        start: the first byte.
        end: the byte after the last one.
        headers: further lines of the request.
        is_signed: the URL is that of an object of a store, signed. It is sent as it is, and the
            stored bytes are wanted, whichever encoding the store says that they have.

    Raises:
        UnusualResponse: the answer is not these bytes.
        OSError: there is no connection, or it was lost.
    """
    server, lines = _locate(url, is_signed)
    text = f"{lines}{headers}Range: bytes={start}-{end - 1}\r\n\r\n".encode("ascii")
    return await _get(server, Request(text, end - start, takes_encoded=is_signed))
