"""Command line of the authors' checkpoints."""

import torch

from stargan_dist.models.opening import open_model
from tests.conftest import here
from tests.helpers.models import tiny_model
from tests.models import networks_of_authors as theirs

LABELS = ("Black_Hair", "Blond_Hair", "Brown_Hair", "Male", "Young")


def test_stargan_is_converted_and_back(tmp_path):
    g, d = theirs.random_stargan(5)
    for letter, tensors in (("G", g), ("D", d)):
        torch.save(tensors, tmp_path / f"1-{letter}.ckpt")
    said = ["--discriminator", tmp_path / "1-D.ckpt", "--attribute-labels", "--domains", *LABELS]
    done = here("convert", tmp_path / "1-G.ckpt", tmp_path / "model", *said)
    assert done.stdout.split() == [str(tmp_path / "model")]
    model = open_model(str(tmp_path / "model"), discriminator=True)
    assert (model.labels.names, model.config.model.image_size) == ([*LABELS], 64)
    done = here("convert", tmp_path / "model", tmp_path / "2-G.ckpt", "--discriminator")
    assert done.stdout.split() == [str(tmp_path / f"2-{letter}.ckpt") for letter in "GD"]
    again = torch.load(tmp_path / "2-G.ckpt", weights_only=True)
    assert again.keys() == g.keys()
    assert torch.equal(again["main.21.weight"], g["main.21.weight"])


def test_starganv2_is_converted_to_a_folder_that_translates_nothing_yet(tmp_path):
    torch.save(theirs.random_state_dicts(64, 2, 1.0, zeros=True), tmp_path / "1_nets_ema.ckpt")
    file, out = tmp_path / "1_nets_ema.ckpt", tmp_path / "model"
    here("convert", file, out, "--domains", "female", "male", "--license", "cc-by-nc-4.0")
    assert open_model(str(out)).config.model.w_hpf == 1
    assert "license: cc-by-nc-4.0" in (out / "README.md").read_text()
    refused = here("sample", "--run", out, "--sources", "a.png", code=2)
    assert "landmark network" in refused.stderr


def test_what_cannot_be_converted_is_one_line(tmp_path):
    (tmp_path / "x.ckpt").write_bytes(b"text")
    refused = here("convert", tmp_path / "x.ckpt", tmp_path / "model", code=2)
    assert refused.stderr.startswith("error: ")
    assert "x.ckpt is not" in refused.stderr
    assert len(refused.stderr.splitlines()) == 1
    assert not (tmp_path / "model").exists()
    assert tiny_model().letters == ["D", "E", "F", "G"]
