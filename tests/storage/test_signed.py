"""Ranges of S3 objects in the background, with signed URLs.

Where requests are examined or fail, the store is an HTTP server.
"""

import gc
import gzip
import hashlib
import hmac
import multiprocessing
import random
import subprocess
import sys
from collections import Counter
from functools import reduce
from urllib.parse import parse_qsl

import fsspec
import pytest
import s3fs

from stargan_dist import storage
from stargan_dist.config import StorageConfig
from stargan_dist.storage import Range, signed
from tests.helpers.servers import FileRequestHandler, http_server

URL = "s3://bucket/file"
DATA = random.Random(0).randbytes(1000)
SIGNED = "X-Amz-Signature"


def read(*ranges, url=URL):
    parts = [Range(url, begin, end) for begin, end in ranges]
    return storage.start(storage.read_ranges(parts)).result()


def configure(address, **options):
    fsspec.config.conf.clear()
    storage.configure(StorageConfig(tries=1, options={"s3": {"endpoint_url": address} | options}))


@pytest.fixture(autouse=True)
def no_urls(monkeypatch):
    monkeypatch.setattr(signed, "_urls", {})


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """A server that answers GET requests like an S3 store."""
    folder = tmp_path_factory.mktemp("store")
    for name in ("file", "0", "1", "2", "3"):
        (folder / "bucket").mkdir(exist_ok=True)
        (folder / "bucket" / name).write_bytes(DATA)
    with http_server(folder) as server:
        yield server


@pytest.fixture
def store(server):
    server.faults.clear()
    server.log.clear()
    server.delay_seconds, server.peak = 0.0, 0
    configure(server.url)
    return server


def requests(store) -> Counter[bool]:
    """Return the numbers of requests with a signed URL (True) and by s3fs (False)."""
    return Counter(SIGNED in path for _, path, *_ in store.log)


@pytest.fixture
def without_s3fs(monkeypatch):
    async def fail(*_, **__):
        raise AssertionError("s3fs reads")

    monkeypatch.setattr(s3fs.S3FileSystem, "_cat_file", fail)


def test_many_ranges_are_read_with_one_signed_url(store):
    ranges = [(0, 10), (7, 300), (500, 1000), (990, 1100)]
    assert read(*ranges) == [DATA[begin:end] for begin, end in ranges]
    assert requests(store) == {True: 4}
    assert len(store.gets()) == 1


@pytest.mark.parametrize("name", ["plain", "a b+c%2B~ü/0000-cat.tar"])
def test_objects_of_a_store_are_read_with_signed_urls(s3, name, without_s3fs):
    storage.write_bytes(f"{s3}/{name}", DATA)
    assert read((3, 40), (0, 1000), url=f"{s3}/{name}") == [DATA[3:40], DATA]


@pytest.mark.parametrize(
    ("options", "environment", "query"),
    [
        ({}, {}, "X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential=test%2F"),
        ({"key": "mine", "secret": "s"}, {}, "X-Amz-Credential=mine%2F"),
        ({"key": "k", "secret": "s", "token": "t"}, {}, "X-Amz-Security-Token=t"),
        ({}, {"AWS_ACCESS_KEY_ID": "other"}, "X-Amz-Credential=other%2F"),
        ({}, {"AWS_SESSION_TOKEN": "t"}, "X-Amz-Security-Token=t"),
        ({"client_kwargs": {"region_name": "eu-west-1"}}, {}, "%2Feu-west-1%2Fs3%2F"),
        ({"config_kwargs": {"signature_version": "s3"}}, {}, "AWSAccessKeyId=test"),
        ({"anon": True}, {}, "/bucket/file"),
    ],
    ids=str,
)
def test_urls_are_signed_as_s3fs_signs_requests(
    store, options, environment, query, monkeypatch, without_s3fs
):
    configure(store.url, **options)
    s3fs.S3FileSystem.clear_instance_cache()
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert read((0, 9)) == [DATA[:9]]
    ((_, path, *_),) = store.log
    assert query in path
    assert ("?" in path) != options.get("anon", False)


def hmac_sha256(key, text):
    return hmac.new(key, text.encode(), hashlib.sha256).digest()


def test_the_signature_is_that_of_the_documented_algorithm(store, monkeypatch, without_s3fs):
    """https://docs.aws.amazon.com/AmazonS3/latest/API/sigv4-query-string-auth.html"""
    configure(store.url, key="key", secret="secret")
    read((0, 9))
    ((_, url, *_),) = store.log
    path, _, query = url.partition("?")
    query, _, signature = query.partition(f"&{SIGNED}=")
    fields = dict(parse_qsl(query))
    host = store.url.removeprefix("http://")
    request = f"GET\n{path}\n{query}\nhost:{host}\n\nhost\nUNSIGNED-PAYLOAD"
    _, *scope = fields["X-Amz-Credential"].split("/")
    key = reduce(hmac_sha256, scope, b"AWS4secret")
    digest = hashlib.sha256(request.encode()).hexdigest()
    lines = [fields["X-Amz-Algorithm"], fields["X-Amz-Date"], "/".join(scope), digest]
    assert hmac_sha256(key, "\n".join(lines)).hex() == signature


def test_the_stored_bytes_of_a_compressed_object_are_read(s3, without_s3fs):
    packed = gzip.compress(DATA)
    storage.filesystem(s3)[0].pipe_file(f"{s3}/file", packed, ContentEncoding="gzip")
    assert read((0, 40), (0, 5000), url=f"{s3}/file") == [packed[:40], packed]


class RegionalHandler(FileRequestHandler):
    """Answer as a bucket in eu-west-1."""

    def do_GET(self):
        if "eu-west-1" in self.path + self.headers.get("Authorization", ""):
            super().do_GET()
        else:
            error = b"<Error><Code>PermanentRedirect</Code><Message/></Error>"
            self.respond(301, error, {"x-amz-bucket-region": "eu-west-1"})


def test_urls_are_signed_for_the_region_where_s3fs_has_found_the_bucket(store, monkeypatch):
    monkeypatch.setattr(signed, "REFUSED_SECONDS", 0)
    with http_server(store.folder) as regional:
        regional.RequestHandlerClass = RegionalHandler
        configure(regional.url)
        assert read((0, 9)) == [DATA[:9]]
        regional.log.clear()
        assert read((5, 9)) == [DATA[5:9]]
        assert requests(regional) == {True: 1}


def test_amazon_is_reached_at_the_host_of_the_region():
    configure(None, client_kwargs={"region_name": "us-west-2"})
    fs, path = storage.filesystem(URL)
    url = storage.start(signed._signed_url(fs, path)).result()
    assert url.startswith("https://bucket.s3.us-west-2.amazonaws.com/file?X-Amz-Algorithm")
    assert "%2Fus-west-2%2Fs3%2F" in url


def test_the_endpoint_may_come_from_the_environment(store, monkeypatch, without_s3fs):
    configure(None)
    s3fs.S3FileSystem.clear_instance_cache()
    monkeypatch.setenv("AWS_ENDPOINT_URL", store.url)
    assert read((0, 9)) == [DATA[:9]]


def test_more_requests_are_under_way_than_s3fs_has_connections(store):
    store.delay_seconds = 0.2
    assert None not in read(*[(i, i + 9) for i in range(64)])
    assert store.peak > 10, store.peak


@pytest.mark.parametrize("fault", ["301", "400", "403", "503"])
def test_what_a_signed_url_cannot_read_is_read_by_s3fs_for_a_while(store, fault, monkeypatch):
    store.faults[SIGNED] = [fault]
    for _ in range(2):
        assert read((0, 9)) == [DATA[:9]]
    assert requests(store)[False] == 2
    monkeypatch.setattr(signed, "KEPT_SECONDS", 0)
    monkeypatch.setattr(signed, "_urls", {})
    assert read((0, 9)) == [DATA[:9]]
    assert requests(store)[False] == 2


@pytest.mark.parametrize(
    ("faults", "error"),
    [
        (["404"] * 9, FileNotFoundError),
        (["403"] * 9, PermissionError),
        (["400"] * 9, OSError),  # an expired token, for example
        (["503"] * 99, OSError),
        (["stall"] * 9, OSError),
    ],
    ids=["404", "403", "400", "503", "stall"],
)
def test_errors_are_left_to_the_patient_way_and_forgotten(store, faults, error, monkeypatch):
    monkeypatch.setattr(s3fs.S3FileSystem, "retries", 1)
    storage.configure(StorageConfig(tries=1, timeout_seconds=1.0))
    store.faults["file"] = faults
    assert read((0, 9)) == [None]
    with pytest.raises(error):
        storage.read_range(URL, 0, 9)
    store.faults.clear()
    store.log.clear()
    assert read((0, 9)) == [DATA[:9]]
    assert requests(store) == {True: 1}


def test_a_range_beyond_the_end_of_an_object_cannot_be_read(s3):
    storage.write_bytes(f"{s3}/file", DATA)
    assert read((2000, 2100), url=f"{s3}/file") == [None]


@pytest.mark.parametrize(("kept_seconds", "count"), [(300, 1), (0, 2)])
def test_urls_are_renewed(store, monkeypatch, kept_seconds, count):
    monkeypatch.setattr(signed, "KEPT_SECONDS", kept_seconds)
    urls, sign = [], signed._sign

    async def record(fs, path):
        urls.append(path)
        return await sign(fs, path)

    monkeypatch.setattr(signed, "_sign", record)
    assert read((0, 9)) + read((9, 11)) == [DATA[:9], DATA[9:11]]
    assert urls == ["bucket/file"] * count


def test_few_urls_are_kept(store, monkeypatch):
    monkeypatch.setattr(signed, "MAX_URLS", 2)
    for i in range(4):
        assert read((0, 9), url=f"s3://bucket/{i}") == [DATA[:9]]
    assert [path for _, path in signed._urls] == ["bucket/2", "bucket/3"]


class HeadersHandler(FileRequestHandler):
    """Records the headers of requests."""

    def do_GET(self):
        self.server.headers.append(str(self.headers))
        super().do_GET()


def test_options_of_http_urls_are_not_sent_to_a_store(store):
    secret = {"headers": {"Authorization": "secret"}}
    with http_server(store.folder) as server:
        server.RequestHandlerClass, server.headers = HeadersHandler, []
        configure(server.url)
        storage.configure(StorageConfig(options={"http": secret | {"client_kwargs": secret}}))
        assert read((0, 9)) == [DATA[:9]]
        assert len(server.headers) == 1 and "secret" not in server.headers[0]


def test_proxies_of_s3fs_are_respected(store):
    configure(store.url, config_kwargs={"proxies": {"http": "http://127.0.0.1:1"}})
    fs, path = storage.filesystem(URL)
    assert storage.start(signed._signed_url(fs, path)).result() == ""


@pytest.mark.parametrize(("excluded", "is_signed"), [("", False), ("127.0.0.1", True)])
def test_proxies_of_the_environment_are_respected(store, monkeypatch, excluded, is_signed):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    monkeypatch.setenv("no_proxy", excluded)
    fs, path = storage.filesystem(URL)
    assert bool(storage.start(signed._signed_url(fs, path)).result()) == is_signed


def collect_and_read():
    gc.collect()
    assert read((5, 9)) == [DATA[5:9]]


def test_a_forked_process_and_its_parent_read_with_signed_urls(store, without_s3fs):
    assert read((0, 9)) == [DATA[:9]]
    process = multiprocessing.get_context("fork").Process(target=collect_and_read)
    process.start()
    process.join()
    assert process.exitcode == 0
    assert read((9, 12)) == [DATA[9:12]]


def test_storage_can_be_imported_without_a_client_of_http():
    code = "import sys, stargan_dist.storage; sys.exit('aiohttp' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
