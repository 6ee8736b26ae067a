"""Retries and timeouts of reads, against a real HTTP server."""

import gc
import multiprocessing
import threading

import pytest

from stargan_dist import storage
from stargan_dist.config import StorageConfig
from stargan_dist.errors import PermanentError
from tests.helpers.servers import http_server


@pytest.fixture
def served(http, tmp_path):
    """A file of 1000 bytes on a server with configurable faults."""
    (tmp_path / "served" / "file").write_bytes(bytes(1000))
    storage.configure(StorageConfig(tries=4, wait_seconds=0.01, timeout_seconds=1.0))
    return storage.join(http.url, "file")


@pytest.mark.parametrize("faults", [["500", "500"], ["reset", "reset"], ["stall"]], ids=str)
@pytest.mark.parametrize("read", [storage.read_bytes, lambda url: storage.read_range(url, 0, 1000)])
def test_transient_faults_are_retried(http, served, faults, read):
    http.faults["file"] = list(faults)
    assert read(served) == bytes(1000)
    assert http.faults["file"] == []


def test_a_permanent_fault_is_an_error_after_the_configured_tries(http, served):
    http.faults["file"] = ["500"] * 9
    with pytest.raises(OSError, match="500"):
        storage.read_range(served, 0, 1000)
    assert len(http.faults["file"]) == 9 - 4


def test_a_server_that_never_answers_is_a_timeout_error(http, served):
    http.faults["file"] = ["stall"] * 9
    with pytest.raises(OSError, match=r"no answer for 1\.0 s"):
        storage.read_range(served, 0, 1000)


def collect_and_read(url):
    gc.collect()
    assert storage.read_range(url, 0, 10) == bytes(10)


def test_a_forked_process_leaves_the_connections_of_its_parent_alone(http, served):
    """Otherwise the parent's next read gets no answer and times out."""
    storage.configure(StorageConfig(tries=1, timeout_seconds=5.0))
    for _ in range(2):
        assert storage.read_range(served, 0, 1000) == bytes(1000)
        process = multiprocessing.get_context("fork").Process(
            target=collect_and_read, args=(served,)
        )
        process.start()
        process.join()
        assert process.exitcode == 0
    assert storage.read_range(served, 0, 1000) == bytes(1000)


def test_a_missing_file_is_not_retried(http, served):
    with pytest.raises(FileNotFoundError):
        storage.read_range(served + "s", 0, 10)
    assert http.gets() == {"/files": 1}


@pytest.mark.parametrize("kind", ["filecache", "simplecache"])
def test_urls_with_chained_caches_can_be_read(http, served, tmp_path, kind):
    storage.configure(StorageConfig(options={kind: {"cache_storage": str(tmp_path / "cache")}}))
    for _ in range(2):
        assert storage.read_range(f"{kind}::{served}", 5, 9) == bytes(4)
        assert storage.read_bytes(f"{kind}::{served}") == bytes(1000)
        requests = http.gets()["/file"]
        storage.remove_file(str(tmp_path / "served" / "file"))  # the second round reads the cache
    assert http.gets()["/file"] == requests <= 2


def test_options_that_were_set_first_take_precedence():
    for address in ("http://a", "http://b"):
        storage.configure(StorageConfig(options={"s3": {"endpoint_url": address}}))
    assert storage.filesystem("s3://bucket")[0].endpoint_url == "http://a"


def test_retries_are_logged(http, served, caplog):
    http.faults["file"] = ["500"]
    storage.read_range(served, 0, 1000)
    (message,) = caplog.messages
    assert "500" in message
    assert "trying again in 0.0 s" in message


def test_waits_grow_and_exceed_a_minute_by_default(http, served, monkeypatch):
    waits = []
    monkeypatch.setattr("tenacity.nap.time.sleep", waits.append)
    storage.configure(StorageConfig())
    http.faults["file"] = ["500"] * 99
    with pytest.raises(OSError, match="500"):
        storage.read_range(served, 0, 1000)
    expected = [1, 2, 4, 8, 16, 30, 30]
    assert len(waits) == len(expected)
    assert all(least <= wait <= least + 0.5 for wait, least in zip(waits, expected, strict=True))
    assert sum(waits) >= 60


def test_a_server_may_be_away_and_return(http, tmp_path, served):
    """It is away for several tries, and then listens on the same port again."""
    storage.configure(StorageConfig(wait_seconds=0.05))
    http.shutdown()
    http.server_close()
    returned = threading.Event()

    def serve():
        with http_server(tmp_path / "served", http.server_port):
            returned.wait(60)

    timer = threading.Timer(1.0, serve)
    timer.start()
    try:
        assert storage.read_range(served, 0, 1000) == bytes(1000)
        assert storage.read_bytes(served) == bytes(1000)
    finally:
        returned.set()
        timer.join()


@pytest.mark.parametrize("status", ["403", "400"])
def test_a_refused_request_is_a_permanent_error(http, served, status):
    http.faults["file"] = [status] * 9
    with pytest.raises(PermanentError, match=status):
        storage.read_range(served, 0, 1000)
    assert len(http.faults["file"]) == 8
