"""What is read ahead are the bytes that a read without it returns, within bounds."""

import pytest

from stargan_dist import storage
from stargan_dist.config import StorageConfig
from stargan_dist.errors import UserError
from stargan_dist.storage import Ahead, Range, reading
from stargan_dist.storage import ahead as ahead_module
from stargan_dist.storage.ahead import FILES_AHEAD

COUNT = 40


@pytest.fixture
def urls(http):
    """Files of different sizes on a server."""
    storage.configure(StorageConfig(tries=2, wait_seconds=0.0))
    for i in range(COUNT):
        (http.folder / f"{i:02d}").write_bytes(bytes([i]) * i)
    return [f"{http.url}/{i:02d}" for i in range(COUNT)]


def contents(urls):
    with storage.files_ahead(urls) as ahead:
        return [storage.read_bytes(url, read=ahead.read) for url in urls]


def test_many_files_are_under_way_at_a_time_and_each_is_requested_once(http, urls):
    http.delay_seconds = 0.2
    assert contents(urls) == [bytes([i]) * i for i in range(COUNT)]
    assert 10 <= http.peak <= FILES_AHEAD
    assert set(http.gets().values()) == {1}


def test_a_bounded_number_is_requested_before_it_is_read(http, urls):
    with storage.files_ahead(urls) as ahead:
        for number, url in enumerate(urls[:20]):
            storage.read_bytes(url, read=ahead.read)
            assert len(ahead._started) == FILES_AHEAD - 1
            assert len(http.log) <= number + FILES_AHEAD
    assert not ahead._started


def test_files_may_be_left_out_and_read_in_another_order(http, urls):
    with storage.files_ahead(urls) as ahead:
        for i in (0, 3, 30, 4, 31, 31):
            assert storage.read_bytes(urls[i], read=ahead.read) == bytes([i]) * i
        assert len(ahead._started) <= FILES_AHEAD


def test_files_of_several_blocks_are_complete(http, urls, monkeypatch):
    for module in (reading, ahead_module):
        monkeypatch.setattr(module, "BLOCK_BYTES", 8)
    assert contents(urls) == [bytes([i]) * i for i in range(COUNT)]


@pytest.mark.parametrize("fault", ["404", "429", "503", "reset"])
def test_a_request_that_fails_once_is_repeated(http, urls, fault):
    http.faults["/05"] = [fault]
    assert contents(urls)[5] == bytes([5]) * 5


@pytest.mark.parametrize("fault", ["404", "403", "503"])
def test_errors_are_those_without_reading_ahead(http, urls, fault):
    http.faults["/05"] = [fault] * 10
    with pytest.raises(OSError, match=fault if fault != "404" else "05") as ahead:
        contents(urls)
    with pytest.raises(type(ahead.value)) as expected:
        storage.read_bytes(urls[5])
    assert str(ahead.value) == str(expected.value)


def test_an_unknown_protocol_is_reported_where_its_file_is_read(urls):
    with storage.files_ahead([urls[1], "nothing://file"]) as ahead:
        assert storage.read_bytes(urls[1], read=ahead.read) == b"\1"
        with pytest.raises(UserError, match="cannot open nothing://file"):
            storage.read_bytes("nothing://file", read=ahead.read)


def test_a_server_that_sends_whole_files_is_asked_for_one_at_a_time(http, monkeypatch):
    monkeypatch.setattr(reading, "BLOCK_BYTES", 8)
    http.ranges = False
    urls = [f"{http.url}/{name}" for name in "abc"]
    for url in urls:
        (http.folder / url[-1]).write_bytes(bytes(100))
    parts = [Range(url, begin, begin + 8) for url in urls for begin in range(0, 100, 8)]
    with Ahead(parts, 14) as ahead:
        for url in urls:
            assert storage.read_bytes(url, read=ahead.read) == bytes(100)
            assert not ahead._started
    assert max(http.gets().values()) <= 2  # the second file was under way


def test_local_files_are_read_without_threads(tmp_path, monkeypatch):
    started = []
    monkeypatch.setattr(ahead_module, "read_ranges", started.append)
    urls = [str(tmp_path / name) for name in ("a", "b:c")]
    for url in urls:
        storage.write_bytes(url, b"data")
    assert contents([*urls, f"file://{urls[0]}"]) == [b"data"] * 3
    assert not started
