import subprocess
import sys

import pytest

from stargan_dist import storage
from stargan_dist.errors import UserError


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
            raise RuntimeError("in the middle")


def test_bytes_come_back_and_are_replaced(base):
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


def test_a_failure_publishes_nothing_and_leaves_nothing(base):
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


def test_an_upload_ends_with_the_file_that_completes_it(monkeypatch):
    order = []
    fs, _ = storage.filesystem("memory://set")
    original = type(fs).put_file

    def note(self, local, remote, **kwargs):
        order.append(remote.rsplit("/", 1)[-1])
        return original(self, local, remote, **kwargs)

    monkeypatch.setattr(type(fs), "put_file", note)
    publish("memory://set/folder", {"manifest": "m", "a": "1", "z": "2"})
    assert order == ["a", "z", "manifest"]
    storage.remove_folder("memory://set")


def test_leftovers_of_killed_writers_are_hidden_and_removed(tmp_path):
    (tmp_path / f"{storage.PARTIAL}dead").mkdir()
    (tmp_path / f"{storage.PARTIAL}file").touch()
    (tmp_path / "good").mkdir()
    assert storage.list_names(str(tmp_path)) == ["good"]
    storage.remove_leftovers(str(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["good"]


def test_a_folder_that_cannot_be_written_is_told(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"cannot write to .*choose another folder"):
        storage.check_writable(str(tmp_path / "file" / "run"))


def test_unknown_protocols_are_told():
    with pytest.raises(UserError, match="cannot open nope://"):
        storage.read_bytes("nope://x/y")


def test_a_lock_is_held_against_other_processes_and_ends_with_its_own(tmp_path):
    holder = (
        "import sys, os; from stargan_dist import storage\n"
        f"with storage.locked({str(tmp_path)!r}, 'taken'):\n"
        "    print('held', flush=True); sys.stdin.read(); os._exit(9)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", holder], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdout.readline() == b"held\n"
    with pytest.raises(UserError, match="taken"), storage.locked(str(tmp_path), "taken"):
        pass
    process.communicate()
    with storage.locked(str(tmp_path), "taken"):
        pass


# Patience.


@pytest.fixture
def served(http, tmp_path):
    """A file of 1000 bytes on a server that fails when told to."""
    (tmp_path / "served" / "file").write_bytes(bytes(1000))
    storage.use(storage.Access(tries=4, wait_seconds=0.01, timeout_seconds=0.5))
    return storage.join(http.url, "file")


@pytest.mark.parametrize("faults", [["500", "500"], ["reset", "reset"], ["stall"]], ids=str)
@pytest.mark.parametrize("read", [storage.read_bytes, lambda url: storage.read_range(url, 0, 1000)])
def test_passing_faults_are_overcome(http, served, faults, read):
    http.faults["file"] = list(faults)
    assert read(served) == bytes(1000)
    assert http.faults["file"] == []


def test_a_lasting_fault_is_an_error_after_the_configured_tries(http, served):
    http.faults["file"] = ["500"] * 9
    with pytest.raises(OSError, match="500"):
        storage.read_range(served, 0, 1000)
    assert len(http.faults["file"]) == 9 - 4


def test_a_server_that_never_answers_is_an_error(http, served):
    http.faults["file"] = ["stall"] * 9
    with pytest.raises(OSError, match=r"no answer for 0\.5 s"):
        storage.read_range(served, 0, 1000)


def test_a_missing_file_is_not_tried_again(http, served):
    with pytest.raises(FileNotFoundError):
        storage.read_range(served + "s", 0, 10)
    assert http.gets() == {"/files": 1}


def test_ranges_end_with_the_file(base):
    url = storage.join(base, "file")
    storage.write_bytes(url, b"0123456789")
    assert storage.read_range(url, 3, 6) == b"345"
    assert storage.read_range(url, 8, 12) == b"89"


def test_blocks_join_to_the_file(base, monkeypatch):
    monkeypatch.setattr(storage, "BLOCK_BYTES", 4)
    url = storage.join(base, "file")
    storage.write_bytes(url, b"0123456789")
    assert list(storage.read_blocks(url)) == [b"0123", b"4567", b"89"]


@pytest.mark.parametrize("kind", ["filecache", "simplecache"])
def test_chained_caches_are_urls_like_any_other(http, served, tmp_path, kind):
    storage.use(storage.Access(options={kind: {"cache_storage": str(tmp_path / "cache")}}))
    for _ in range(2):
        assert storage.read_range(f"{kind}::{served}", 5, 9) == bytes(4)
        assert storage.read_bytes(f"{kind}::{served}") == bytes(1000)
        asked = http.gets()["/file"]
        storage.remove_file(str(tmp_path / "served" / "file"))  # the second round needs no server
    assert http.gets()["/file"] == asked <= 2


def test_options_that_were_given_first_stay():
    for address in ("http://a", "http://b"):
        storage.use(storage.Access(options={"s3": {"endpoint_url": address}}))
    assert storage.filesystem("s3://bucket")[0].endpoint_url == "http://a"


@pytest.mark.parametrize(
    ("url", "folder"),
    [("a/b.csv", "a/"), ("b.csv", "."), ("memory://b.csv", "memory://"), ("s3://k/b", "s3://k/")],
)
def test_parents(url, folder):
    assert storage.parent(url) == folder


@pytest.mark.parametrize(
    ("url", "joined"),
    [("a", "a/x"), ("a/", "a/x"), ("/", "/x"), ("memory://", "memory://x"), (".", "./x")],
)
def test_joins(url, joined):
    assert storage.join(url, "x") == joined
