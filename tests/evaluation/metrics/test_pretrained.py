import hashlib

import pytest
import torch

from stargan_dist.errors import UserError
from stargan_dist.evaluation.metrics.pretrained import ALEXNET, PAPER_INCEPTION, Source, load_all


@pytest.fixture(autouse=True)
def hub(tmp_path, monkeypatch):
    """An empty cache, and addresses that nobody serves."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    return tmp_path / "hub" / "checkpoints"


def source(url):
    return Source("a network", url, "inception-weights")


NOBODY = "http://127.0.0.1:1/net-0123abcd.pth"


def save(path, value=1.0):
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"layer": torch.tensor([value])}, path)
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_named_file_is_not_official_unless_its_hash_is(tmp_path):
    sha256 = save(tmp_path / "net.pth")
    (other,) = load_all({source(NOBODY): str(tmp_path / "net.pth")})
    assert (other.official, other.sha256) == (False, sha256)
    published = source(f"http://127.0.0.1:1/net-{sha256[:8]}.pth")
    (same,) = load_all({published: str(tmp_path / "net.pth")})
    assert same.official
    assert torch.equal(same.state["layer"], torch.tensor([1.0]))


def test_a_download_is_kept(http, tmp_path, hub):
    sha256 = save(tmp_path / "made.pth")
    served = tmp_path / "served" / f"net-{sha256[:8]}.pth"
    served.write_bytes((tmp_path / "made.pth").read_bytes())
    published = source(f"{http.url}/{served.name}")
    assert load_all({published: ""})[0].official
    served.unlink()
    assert load_all({published: ""})[0].sha256 == sha256
    assert [file.name for file in hub.iterdir()] == [published.name]


def test_a_damaged_download_is_refused(http, tmp_path, hub):
    save(tmp_path / "served" / "net-0123abcd.pth")
    with pytest.raises(UserError, match="cannot download"):
        load_all({source(f"{http.url}/net-0123abcd.pth"): ""})
    assert not list(hub.iterdir())


def test_one_line_says_all_that_is_missing(monkeypatch, hub):
    def refused(*_args, **_options):
        raise OSError("no route")

    monkeypatch.setattr(torch.hub, "download_url_to_file", refused)
    with pytest.raises(UserError) as caught:
        load_all({PAPER_INCEPTION: "", ALEXNET: ""})
    line = str(caught.value)
    assert len(line.splitlines()) == 1
    for each in (PAPER_INCEPTION, ALEXNET):
        assert each.url in line
        assert str(hub / each.name) in line
        assert f"--{each.option} FILE" in line


class Malicious:
    def __reduce__(self):
        return (print, ("a pickle ran",))


@pytest.mark.parametrize("content", ["pickle", "truncated", "text", "empty"])
def test_files_that_cannot_be_loaded_safely(tmp_path, content, capsys):
    file = tmp_path / "net.pth"
    save(file)
    if content == "pickle":
        torch.save({"layer": Malicious()}, file)
    else:
        whole = file.read_bytes()
        file.write_bytes({"truncated": whole[:200], "text": b"hello", "empty": b""}[content])
    with pytest.raises(UserError, match=r"net\.pth holds no weights that can be loaded safely"):
        load_all({source(NOBODY): str(file)})
    assert "a pickle ran" not in capsys.readouterr().out


def test_a_named_file_that_is_not_there():
    with pytest.raises(UserError, match=r"cannot read the weights of a network, /nowhere\.pth"):
        load_all({source(NOBODY): "/nowhere.pth"})
