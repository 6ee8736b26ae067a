"""Model folders on the Hugging Face hub: a hub on 127.0.0.1, and its client's own model class."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from huggingface_hub import PyTorchModelHubMixin
from safetensors.torch import load_file
from torch import nn

from stargan_dist import config as configs
from stargan_dist.config import Config
from stargan_dist.errors import OutsideFault, UserError
from stargan_dist.models import folder, hub
from stargan_dist.models.opening import open_model
from stargan_dist.objectives.recipes import resolve
from stargan_dist.runs.manifest import labels_of
from tests.helpers.hub_server import hub_server
from tests.helpers.models import tiny_model

TOKEN = "hf_secret_of_the_tests"
# The client reads its address when it is imported: it runs in a process of its own.
SCRIPT = """
import json, os, sys
from stargan_dist import Translator
from stargan_dist.errors import UserError
from stargan_dist.models import hub

folder = sys.argv[1]
translator = Translator.from_pretrained(folder, device="cpu")
results = {"private": translator.push_to_hub("me/private", private=True, license="mit")}
results["public"] = hub.upload(folder, "me/public")
results["origin"] = Translator.from_pretrained("me/public", device="cpu").saved.origin
results["cached"] = hub.download("me/public")
Translator.from_pretrained(sys.argv[2], device="cpu").push_to_hub("me/faces")
faces = Translator.from_pretrained("me/faces", device="cpu").saved
results["landmarks"] = faces.landmarks.fingerprint()

def attempt(name, function, *args):
    try:
        results[name] = function(*args)
    except UserError as error:
        results[name] = [error.exit_code, str(error)]

for name in ("gated", "missing", "down"):
    attempt(name, hub.download, f"me/{name}")
attempt("refused", hub.upload, folder, "me/refused")
attempt("failed", hub.upload, folder, "me/down")
attempt("invalid", lambda: translator.push_to_hub("me/invalid", license="invalid"))
print(json.dumps(results))
"""


@pytest.fixture(scope="module")
def session(tmp_path_factory):
    """Return the hub, the results of `SCRIPT`, and the folder that holds all of its files."""
    files = tmp_path_factory.mktemp("hub")
    model = tiny_model().without("D")
    folder.write(str(files / "model"), model, "# A model\n")
    folder.write(str(files / "faces"), tiny_model(w_hpf=1.0).without("D"), "")
    with hub_server() as server:
        server.faults = {
            "me/gated": (403, "GatedRepo"), "me/missing": (404, "RepoNotFound"),
            "me/refused": (401, ""), "me/down": (501, ""),
        }  # fmt: skip
        client = {"HF_ENDPOINT": server.address, "HF_HOME": str(files / "home"), "HF_TOKEN": TOKEN}
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT, str(files / "model"), str(files / "faces")],
            env=os.environ | client | {"HF_HUB_DISABLE_XET": "1", "TMPDIR": str(files)},
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        yield server, json.loads(done.stdout), files


def test_an_uploaded_model_is_downloaded_as_it_was(session):
    server, results, files = session
    assert results["public"] == f"{server.address}/me/public"
    assert results["origin"] == "me/public"
    uploaded = server.repositories["me/public"]
    assert uploaded == {p.name: p.read_bytes() for p in (files / "model").iterdir()}
    cached = Path(results["cached"])
    assert sorted(p.name for p in cached.iterdir()) == ["config.json", "model.safetensors"]
    ours, theirs = open_model(str(files / "model")), open_model(str(cached))
    assert all(torch.equal(tensor, theirs.tensors[n]) for n, tensor in ours.tensors.items())


def test_the_landmark_network_of_a_model_is_downloaded_with_it(session):
    server, results, files = session
    assert "landmarks.safetensors" in server.repositories["me/faces"]
    assert results["landmarks"] == open_model(str(files / "faces")).landmarks.fingerprint()


def test_a_translator_is_uploaded_with_its_card(session):
    server, results, _ = session
    assert results["private"] == f"{server.address}/me/private"
    assert server.private == {"me/private"}
    card = server.repositories["me/private"]["README.md"].decode()
    assert card.startswith("---\nlicense: mit\n")
    assert 'Translator.from_pretrained("me/private")' in card


def test_the_token_is_sent_and_never_written(session):
    server, _, files = session
    assert f"Bearer {TOKEN}" in server.tokens
    written = [p for p in files.rglob("*") if p.is_file() and not p.is_symlink()]
    assert written
    assert not any(TOKEN.encode() in path.read_bytes() for path in written)
    contents = [data for files in server.repositories.values() for data in files.values()]
    assert not any(TOKEN.encode() in data for data in contents)


@pytest.mark.parametrize(
    ("name", "code", "message"),
    [
        ("gated", UserError.exit_code, "me/gated on the Hugging Face hub is gated: accept its"),
        ("missing", UserError.exit_code, "me/missing is no local folder, and no model on the"),
        ("down", OutsideFault.exit_code, "and the Hugging Face hub cannot be reached: "),
        ("refused", UserError.exit_code, "log in as its owner first (hf auth login)"),
        ("failed", OutsideFault.exit_code, "cannot upload me/down: "),
        ("invalid", UserError.exit_code, "license must be one of"),
    ],
)
def test_what_fails_is_one_line(session, name, code, message):
    _, results, _ = session
    assert results[name][0] == code
    assert message in results[name][1]
    assert "\n" not in results[name][1]


def test_without_the_package_one_line_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"me/cats is no local folder; .*stargan_dist\[hub\]"):
        open_model("me/cats")


@pytest.mark.parametrize("name", ["cats", "a/b/c", "me/--x", "me/ca ts"])
def test_names_that_the_hub_does_not_have_are_refused(name):
    with pytest.raises(UserError, match="cannot be a name on the hub"):
        hub.check_name(name)


class Model(nn.Module, PyTorchModelHubMixin):
    """A model as users of the client write it: built from the keys of config.json."""

    def __init__(self, format, version, recipe, model, domains, labels=None, step=0):
        super().__init__()
        spec = resolve(Config(recipe=recipe, model=configs.model_from_dict(model)))
        networks = spec.recipe.build_networks(labels_of(domains, labels), spec.config.model)
        for letter in ("G", "F", "E"):
            self.add_module(letter, networks[letter])


def test_the_model_class_of_the_client_loads_our_folder_strictly(tmp_path):
    model = tiny_model().without("D")
    folder.write(str(tmp_path / "model"), model, "")
    loaded = Model.from_pretrained(str(tmp_path / "model"), strict=True)
    assert loaded.state_dict().keys() == model.tensors.keys()
    assert all(torch.equal(t, model.tensors[n]) for n, t in loaded.state_dict().items())


def test_a_folder_of_the_model_class_is_read(tmp_path):
    model = tiny_model().without("D")
    folder.write(str(tmp_path / "ours"), model, "")
    Model.from_pretrained(str(tmp_path / "ours")).save_pretrained(tmp_path / "theirs")
    assert load_file(tmp_path / "theirs" / "model.safetensors").keys() == model.tensors.keys()
    read = folder.read(str(tmp_path / "theirs"))
    assert (read.labels, read.step) == (model.labels, model.step)
    assert all(torch.equal(tensor, model.tensors[n]) for n, tensor in read.tensors.items())
