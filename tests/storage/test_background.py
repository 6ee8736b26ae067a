"""Reads in the background."""

from stargan_dist import storage
from stargan_dist.config import StorageConfig
from stargan_dist.storage import Range


def test_a_request_without_an_answer_is_given_up_and_others_are_not(http):
    for name in "ab":
        (http.folder / name).write_bytes(b"0123456789")
    http.faults["a"] = ["stall"]
    storage.configure(StorageConfig(timeout_seconds=1.0))
    ranges = [Range(f"{http.url}/{name}", 2, 5) for name in "ab"]
    assert storage.start(storage.read_ranges(ranges)).result() == [None, b"234"]
    assert storage.start(storage.read_ranges(ranges)).result() == [b"234", b"234"]
