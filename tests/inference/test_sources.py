"""Pictures that are read in the background, several at a time."""

import threading
from contextlib import closing

import pytest

from stargan_dist.errors import UserError
from stargan_dist.inference import sources
from stargan_dist.inference.sources import (
    AHEAD,
    READERS,
    Source,
    list_sources,
    read_ahead,
    read_all,
)

MANY = 3 * AHEAD


def numbered(read, count=MANY):
    return [Source(str(i), str(i), lambda i=i: read(i)) for i in range(count)]


def test_all_names_differ(tmp_path):
    for name in ("a.jpg", "a.jpg.webp", "a.png", "b.jpg", "c.jpg"):
        (tmp_path / name).touch()
    names = [source.name for source in list_sources(str(tmp_path))]
    assert names == ["a.jpg", "a.jpg.webp", "a.png", "b", "c"]


def test_pictures_come_in_order_and_several_are_read_at_a_time():
    all_readers = threading.Barrier(READERS, timeout=30)  # breaks if fewer are read at a time

    def read(i):
        all_readers.wait()
        return i

    assert read_all(numbered(read), lambda i: -i) == [-i for i in range(MANY)]


def test_no_more_pictures_are_read_ahead_than_the_bound():
    begun = []

    def read(i):
        begun.append(i)
        return i

    with closing(read_ahead(numbered(read), str)) as results:
        assert next(results).result() == "0"
        assert max(begun) <= AHEAD


def test_an_unreadable_picture_is_told_in_its_place():
    def read(i):
        if i == 5:
            raise UserError("picture 5 is damaged")
        return i

    with closing(read_ahead(numbered(read), int)) as results:
        futures = [*results]
    assert [i for i, future in enumerate(futures) if future.exception()] == [5]
    with pytest.raises(UserError, match="picture 5"):
        read_all(numbered(read), int)


def test_closing_leaves_out_what_has_not_begun(monkeypatch):
    monkeypatch.setattr(sources, "READERS", 1)
    begun, may_end = [], threading.Event()

    def read(i):
        begun.append(i)
        may_end.wait(30)

    results = read_ahead(numbered(read), lambda _: None)
    threading.Timer(0.2, may_end.set).start()
    assert next(results)
    may_end.clear()
    threading.Timer(0.2, may_end.set).start()
    results.close()
    assert len(begun) < AHEAD
