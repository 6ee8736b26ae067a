"""Reads, atomic writes, listings and locks, on local paths and in memory."""

import os
import signal
import subprocess
import sys
import tempfile

import psutil
import pytest

from stargan_dist import storage
from stargan_dist.errors import UserError
from stargan_dist.storage import reading


@pytest.fixture(params=["local", "memory"])
def base(request, tmp_path):
    if request.param == "local":
        yield str(tmp_path / "base")
    else:
        yield "memory://base"
        if storage.exists("memory://base"):
            storage.remove_folder("memory://base")


def publish(url, files, fail=False):
    with storage.published_folder(url, last="manifest") as folder:
        for name, text in files.items():
            (folder / name).write_text(text)
        if fail:
            raise RuntimeError("failure before the end")


def test_written_bytes_are_read_back_and_can_be_replaced(base):
    url = storage.join(base, "deep", "file")
    storage.write_bytes(url, b"one")
    storage.write_bytes(url, b"two")
    assert storage.read_bytes(url) == b"two"
    assert storage.list_names(storage.join(base, "deep")) == ["file"]
    assert storage.list_names(storage.join(base, "nowhere")) == []


def test_a_published_folder_is_complete(base):
    url = storage.join(base, "folder")
    publish(url, {"a": "1", "manifest": "m"})
    assert storage.list_names(url) == ["a", "manifest"]
    assert storage.list_names(base) == ["folder"]


def test_a_failure_publishes_nothing_and_leaves_no_files(base):
    url = storage.join(base, "folder")
    with pytest.raises(RuntimeError):
        publish(url, {"a": "1"}, fail=True)
    assert storage.list_names(base) == []


def test_publishing_again_replaces_the_folder(base):
    url = storage.join(base, "folder")
    publish(url, {"a": "1", "old": "x", "manifest": "m"})
    publish(url, {"a": "2", "manifest": "n"})
    assert storage.list_names(url) == ["a", "manifest"]
    assert storage.read_bytes(storage.join(url, "a")) == b"2"


def test_an_upload_ends_with_the_file_named_last(monkeypatch):
    order = []
    fs, _ = storage.filesystem("memory://set")
    original = type(fs).put_file

    def record(self, local, remote, **kwargs):
        order.append(remote.rsplit("/", 1)[-1])
        return original(self, local, remote, **kwargs)

    monkeypatch.setattr(type(fs), "put_file", record)
    publish("memory://set/folder", {"manifest": "m", "a": "1", "z": "2"})
    assert order == ["a", "z", "manifest"]
    storage.remove_folder("memory://set")


def test_leftovers_of_killed_writers_are_hidden_and_removed(tmp_path):
    (tmp_path / f"{storage.PARTIAL_PREFIX}dead").mkdir()
    (tmp_path / f"{storage.PARTIAL_PREFIX}file").touch()
    (tmp_path / "good").mkdir()
    assert storage.list_names(str(tmp_path)) == ["good"]
    storage.remove_leftovers(str(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["good"]


def test_leftovers_of_a_killed_upload_are_removed(tmp_path, monkeypatch):
    """They are in the folder for temporary files, beside those of other runs."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    uploads = [storage.published_folder(f"memory://{run}/step", "last") for run in ("a", "b")]
    for upload in uploads:
        upload.__enter__()  # and never ends, as in a killed process
    for run, left in (("nowhere", 2), ("a", 1), ("b/", 0)):
        storage.remove_leftovers(f"memory://{run}")
        assert len([*tmp_path.iterdir()]) == left


def test_a_folder_that_cannot_be_written_is_rejected(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"cannot write to .*choose another folder"):
        storage.check_writable(str(tmp_path / "file" / "run"))


def test_unknown_protocols_are_rejected():
    with pytest.raises(UserError, match="cannot open nope://"):
        storage.read_bytes("nope://x/y")


def test_a_lock_excludes_other_processes_and_ends_with_its_process(tmp_path):
    holder = (
        "import sys, os; from stargan_dist import storage\n"
        f"with storage.exclusive_lock({str(tmp_path)!r}, 'taken'):\n"
        "    print('held', flush=True); sys.stdin.read(); os._exit(9)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", holder], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdout.readline() == b"held\n"
    with pytest.raises(UserError, match="taken"), storage.exclusive_lock(str(tmp_path), "taken"):
        pass
    process.communicate()
    with storage.exclusive_lock(str(tmp_path), "taken"):
        pass


def test_a_lock_is_free_at_once_when_its_process_is_killed_and_a_forked_child_lives_on(tmp_path):
    holder = (
        "import os, sys, time; from stargan_dist import storage\n"
        f"with storage.exclusive_lock({str(tmp_path)!r}, 'taken'):\n"
        "    if not os.fork(): print(os.getpid(), flush=True); time.sleep(600)\n"
        "    sys.stdin.read()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", holder], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    child = int(process.stdout.readline())
    try:
        with pytest.raises(UserError), storage.exclusive_lock(str(tmp_path), "taken"):
            pass
        process.kill()
        process.wait()
        with storage.exclusive_lock(str(tmp_path), "taken"):
            assert psutil.pid_exists(child)
    finally:
        os.kill(child, signal.SIGKILL)


def test_ranges_end_at_the_end_of_the_file(base):
    url = storage.join(base, "file")
    storage.write_bytes(url, b"0123456789")
    assert storage.read_range(url, 3, 6) == b"345"
    assert storage.read_range(url, 8, 12) == b"89"


def test_a_path_may_begin_in_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    storage.write_bytes("~/set/file", b"0123456789")
    assert storage.read_bytes("~/set/file") == b"0123456789"
    assert storage.read_range("~/set/file", 3, 6) == b"345"


def test_blocks_add_up_to_the_file(base, monkeypatch):
    monkeypatch.setattr(reading, "BLOCK_BYTES", 4)
    url = storage.join(base, "file")
    storage.write_bytes(url, b"0123456789")
    assert list(storage.read_blocks(url)) == [b"0123", b"4567", b"89"]


@pytest.mark.parametrize(
    ("url", "folder"),
    [("a/b.csv", "a/"), ("b.csv", "."), ("memory://b.csv", "memory://"), ("s3://k/b", "s3://k/")],
)
def test_the_parent_of_a_file_is_its_folder(url, folder):
    assert storage.parent(url) == folder


@pytest.mark.parametrize(
    ("url", "joined"),
    [("a", "a/x"), ("a/", "a/x"), ("/", "/x"), ("memory://", "memory://x"), (".", "./x")],
)
def test_a_name_is_joined_to_a_url_with_one_slash(url, joined):
    assert storage.join(url, "x") == joined


def test_a_file_may_have_the_longest_name(tmp_path):
    name = "n" * 255
    storage.write_bytes(str(tmp_path / name), b"data")
    assert [path.name for path in tmp_path.iterdir()] == [name]
