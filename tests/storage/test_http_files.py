"""Which client reads the files of fsspec's HTTP filesystem."""

import random
from collections import Counter

import aiohttp
import fsspec
import pytest
from fsspec.implementations.http import HTTPFileSystem

from stargan_dist import storage
from stargan_dist.config import StorageConfig
from stargan_dist.storage import Range, http_files
from tests.helpers.servers import FileRequestHandler

DATA = random.Random(0).randbytes(1000)
CHEAP, AIOHTTP = "cheap", "aiohttp"


class RecordingHandler(FileRequestHandler):
    """Records the client and the headers of each request; a file `moved` is elsewhere."""

    def do_GET(self):
        agent = self.headers["User-Agent"]
        self.server.clients[CHEAP if agent == "stargan_dist" else AIOHTTP] += 1
        self.server.headers = dict(self.headers)
        if self.path == "/set/moved":
            self.respond(302, b"", {"Location": "/set/file"})
        else:
            super().do_GET()


@pytest.fixture
def store(http):
    (http.folder / "set").mkdir()
    (http.folder / "set" / "file").write_bytes(DATA)
    http.RequestHandlerClass, http.clients = RecordingHandler, Counter()
    return http


def configure(**options):
    fsspec.config.conf.clear()
    storage.configure(StorageConfig(tries=1, options={"http": options}))


def read(store, name, *ranges):
    parts = [Range(f"{store.url}/set/{name}", begin, end) for begin, end in ranges]
    return storage.start(storage.read_ranges(parts)).result()


def test_usual_files_are_read_by_the_cheap_client(store):
    assert read(store, "file", (0, 9), (7, 300), (990, 1100)) == [DATA[:9], DATA[7:300], DATA[990:]]
    assert store.clients == {CHEAP: 3}


def test_redirects_are_followed_by_aiohttp_which_reads_the_folder_for_a_while(store, monkeypatch):
    assert read(store, "moved", (0, 9)) == [DATA[:9]]
    assert store.clients == {CHEAP: 1, AIOHTTP: 2}
    assert read(store, "file", (0, 9)) == [DATA[:9]]
    assert store.clients == {CHEAP: 1, AIOHTTP: 3}
    monkeypatch.setattr(http_files, "_refused", {f"{store.url}/set/": 0.0})
    assert read(store, "file", (0, 9)) == [DATA[:9]]
    assert store.clients == {CHEAP: 2, AIOHTTP: 3}


@pytest.mark.parametrize("fault", ["400", "403"])
def test_what_only_the_cheap_client_is_refused_is_read_by_aiohttp(store, fault):
    store.faults["file"] = [fault]
    assert read(store, "file", (0, 9)) == read(store, "file", (0, 9)) == [DATA[:9]]
    assert store.clients == {CHEAP: 1, AIOHTTP: 2}


@pytest.mark.parametrize("fault", ["404", "416", "429", "503"])
def test_errors_are_not_requested_twice(store, fault):
    store.faults["file"] = [fault]
    assert read(store, "file", (0, 9)) == [None]
    assert read(store, "file", (0, 9)) == [DATA[:9]]
    assert store.clients == {CHEAP: 2}


@pytest.mark.parametrize(
    "options",
    [
        {"headers": {"Authorization": "Bearer t", "X-Other": "a b"}},
        {"client_kwargs": {"headers": {"Authorization": "Bearer t", "X-Other": "a b"}}},
        {
            "client_kwargs": {"headers": {"authorization": "old", "X-Other": "a b"}},
            "headers": {"Authorization": "Bearer t"},
        },
    ],
    ids=["request", "client", "both"],
)
def test_configured_headers_are_sent(store, options):
    configure(**options)
    assert read(store, "file", (0, 9)) == [DATA[:9]]
    assert store.headers["Authorization"] == "Bearer t" and store.headers["X-Other"] == "a b"
    assert store.clients == {CHEAP: 1}


class OtherFiles(HTTPFileSystem):
    """Another filesystem by HTTP."""


@pytest.mark.parametrize(
    "options",
    [
        {"client_kwargs": {"auth": aiohttp.BasicAuth("user", "word")}},
        {"client_kwargs": {"trust_env": True}},
        {"proxy": None},
        {"encoded": True},
        {"get_client": aiohttp.ClientSession},
        {"headers": {"User-Agent": "mine"}},
        {"headers": {"range": "bytes=0-1"}},
        {"headers": {"X-Other": "ü"}},
        {"headers": {"X-Other": "a\r\nX-More: b"}},
    ],
    ids=str,
)
def test_other_options_need_aiohttp(options):
    assert http_files._headers(HTTPFileSystem(**options, skip_instance_cache=True)) is None


def test_other_filesystems_need_aiohttp():
    assert http_files._headers(OtherFiles()) is None
    assert http_files._headers(HTTPFileSystem()) == ""
    assert http_files._headers(HTTPFileSystem(client_kwargs={"headers": None})) == ""
