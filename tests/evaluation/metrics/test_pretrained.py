import hashlib

import pytest
import torch

from stargan_dist.errors import UserError
from stargan_dist.evaluation.metrics.pretrained import (
    ALEXNET,
    PAPER_INCEPTION,
    WeightsFile,
    load_all,
)


@pytest.fixture(autouse=True)
def hub(tmp_path, monkeypatch):
    """An empty torch cache, instead of the user's."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    return tmp_path / "hub" / "checkpoints"


def published(url):
    return WeightsFile("a network", url, "inception-weights")


UNREACHABLE = "http://127.0.0.1:1/net-0123abcd.pth"


def save(path, value=1.0):
    """Save weights and return their SHA-256."""
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"layer": torch.tensor([value])}, path)
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_given_file_is_official_only_if_its_hash_matches(tmp_path):
    sha256 = save(tmp_path / "net.pth")
    (different,) = load_all({published(UNREACHABLE): str(tmp_path / "net.pth")})
    assert (different.official, different.sha256) == (False, sha256)
    file = published(f"http://127.0.0.1:1/net-{sha256[:8]}.pth")
    (same,) = load_all({file: str(tmp_path / "net.pth")})
    assert same.official
    assert torch.equal(same.state["layer"], torch.tensor([1.0]))


def test_a_download_is_cached(http, tmp_path, hub):
    sha256 = save(tmp_path / "net.pth")
    served = tmp_path / "served" / f"net-{sha256[:8]}.pth"
    served.write_bytes((tmp_path / "net.pth").read_bytes())
    file = published(f"{http.url}/{served.name}")
    assert load_all({file: ""})[0].official
    served.unlink()
    assert load_all({file: ""})[0].sha256 == sha256
    assert [path.name for path in hub.iterdir()] == [file.name]


def test_a_damaged_download_is_rejected_and_not_cached(http, tmp_path, hub):
    save(tmp_path / "served" / "net-0123abcd.pth")
    with pytest.raises(UserError, match="cannot download"):
        load_all({published(f"{http.url}/net-0123abcd.pth"): ""})
    assert not list(hub.iterdir())


def test_one_line_names_all_missing_files_and_their_options(monkeypatch, hub):
    def fail(*_args, **_options):
        raise OSError("no route")

    monkeypatch.setattr(torch.hub, "download_url_to_file", fail)
    with pytest.raises(UserError) as raised:
        load_all({PAPER_INCEPTION: "", ALEXNET: ""})
    line = str(raised.value)
    assert len(line.splitlines()) == 1
    for file in (PAPER_INCEPTION, ALEXNET):
        assert file.url in line
        assert str(hub / file.name) in line
        assert f"--{file.option} FILE" in line


class Malicious:
    def __reduce__(self):
        return (print, ("a pickle ran",))


@pytest.mark.parametrize("content", ["pickle", "truncated", "text", "empty"])
def test_files_that_cannot_be_loaded_safely_are_rejected(tmp_path, content, capsys):
    file = tmp_path / "net.pth"
    save(file)
    if content == "pickle":
        torch.save({"layer": Malicious()}, file)
    else:
        data = file.read_bytes()
        file.write_bytes({"truncated": data[:200], "text": b"hello", "empty": b""}[content])
    with pytest.raises(UserError, match=r"net\.pth holds no weights that can be loaded safely"):
        load_all({published(UNREACHABLE): str(file)})
    assert "a pickle ran" not in capsys.readouterr().out


def test_a_given_file_that_does_not_exist_is_an_error():
    with pytest.raises(UserError, match=r"cannot read the weights of a network, /nowhere\.pth"):
        load_all({published(UNREACHABLE): "/nowhere.pth"})
