"""Ranges of files of fsspec's HTTP filesystem, by the cheap client where it can read them."""

import re
import time
from functools import lru_cache

from fsspec.implementations.http import HTTPFileSystem, get_client
from multidict import CIMultiDict

from stargan_dist.storage import plain_http
from stargan_dist.storage.reading import parent

REFUSED_SECONDS = 60
FINAL = (404, 408, 416, 429)  # statuses that aiohttp would be told, too
SERVER_ERROR = 500  # and these and higher ones
HEADER = re.compile(r"[\x20-\x7e]*")
OWN_HEADERS = frozenset(
    {"accept", "accept-encoding", "connection", "content-length", "expect", "host", "range",
     "transfer-encoding", "user-agent"}
)  # fmt: skip

_refused: dict[str, float] = {}  # folder -> time.monotonic() at which the cheap client tries again


async def read_range(fs: HTTPFileSystem, url: str, start: int, end: int) -> bytes:
    """Read the bytes [start, end) of a file, possibly fewer or more.

    Options other than headers need aiohttp, and so do servers with unusual responses: redirects,
    cookies, other encodings.

    Raises:
        OSError and others: the bytes cannot be read.
    """
    headers = _headers(fs)
    if headers is not None and _refused.get(parent(url), 0) <= time.monotonic():
        try:
            return await plain_http.read_range(url, start, end, headers)
        except plain_http.UnusualResponse as error:
            if error.status in FINAL or error.status >= SERVER_ERROR:
                raise
            _refused[parent(url)] = time.monotonic() + REFUSED_SECONDS
    # The timeout of whoever calls this is enough, and cheaper than aiohttp's.
    data: bytes = await fs._cat_file(url, start=start, end=end, timeout=None)
    return data


@lru_cache(maxsize=64)
def _headers(fs: HTTPFileSystem) -> str | None:
    """Return the lines that a filesystem's options add to requests; None if they need aiohttp."""
    options = [fs.client_kwargs, fs.kwargs]
    is_plain = type(fs) is HTTPFileSystem and fs.get_client is get_client and not fs.encoded
    if not is_plain or any(set(of) - {"headers"} for of in options):
        return None
    headers: CIMultiDict[str] = CIMultiDict()  # as aiohttp merges them
    for of in options:
        headers.update(of.get("headers") or ())
    are_plain = all(
        name.lower() not in OWN_HEADERS and HEADER.fullmatch(f"{name}{value}")
        for name, value in headers.items()
    )
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    return lines if are_plain else None
