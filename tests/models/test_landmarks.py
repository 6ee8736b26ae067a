"""Files of landmark networks: those of this project and the published ones."""

from dataclasses import replace

import pytest
import torch

from stargan_dist.errors import UserError
from stargan_dist.models import landmarks
from stargan_dist.nets.fan import FAN
from stargan_dist.nets.masks import WFLW
from tests.helpers.models import PARTS, tiny_landmarks, tiny_model


@pytest.fixture(scope="module")
def published():
    """The state dict of a network of the published sizes, with random weights."""
    return {name: tensor.detach() for name, tensor in FAN().state_dict().items()}


def same(tensors, others):
    return tensors.keys() == others.keys() and all(
        torch.equal(t, others[n]) for n, t in tensors.items()
    )


def test_a_file_holds_the_network_and_its_table(tmp_path):
    path, network = str(tmp_path / "animals.safetensors"), tiny_landmarks()
    landmarks.write(path, network)
    again = landmarks.read(path)
    assert same(again.tensors, network.tensors)
    assert (again.description.input_size, again.description.parts) == (64, PARTS)
    assert again.fingerprint() == network.fingerprint() != tiny_landmarks(seed=1).fingerprint()


def test_published_files_are_read(tmp_path, published):
    wing, fan = str(tmp_path / "wing.ckpt"), str(tmp_path / "100000_nets_ema.ckpt")
    others = {"m1.b1_4.bn1.weight": torch.zeros(3), "bl0.weight": torch.zeros(3)}  # later stacks
    torch.save({"state_dict": published | others, "epoch": 3}, wing)
    torch.save({"generator": {}, "fan": {f"module.{n}": t for n, t in published.items()}}, fan)
    for path in (wing, fan):
        read = landmarks.read(path)
        assert same(read.tensors, published)
        assert (read.description.input_size, read.description.parts) == (256, WFLW)


SIZES_ALONE = {
    "l0.weight": torch.zeros(99, 256, 1, 1), "conv1.conv.weight": torch.zeros(64, 6, 7, 7)
}  # fmt: skip


def test_the_hash_of_a_model_depends_on_its_masks():
    model = tiny_model(w_hpf=1.0)
    described = replace(model.landmarks, description=landmarks.Description(64, PARTS[:1]))
    hashes = {m.fingerprint() for m in (model, replace(model, landmarks=described))}
    others = {replace(model, landmarks=other).fingerprint() for other in (None, tiny_landmarks(1))}
    assert len(hashes | others) == 4


def torch_file(content):
    return lambda path: torch.save(content, path)


def damaged(old, new):
    def write(path):
        data = landmarks.to_bytes(tiny_landmarks())
        assert data.count(old) == 1
        path.write_bytes(data.replace(old, new))

    return write


@pytest.mark.parametrize(("name", "write", "message"), [
    ("a.ckpt", torch_file({"state_dict": {"x": torch.zeros(1)}}), "is not a landmark network"),
    ("a.ckpt", torch_file({"generator": {"x": torch.zeros(1)}}), "is not a landmark network"),
    ("a.ckpt", torch_file({"fan": 3}), "is not a landmark network"),
    ("a.ckpt", torch_file({"fan": SIZES_ALONE}), "lacks bn1.bias"),
    ("a.ckpt", torch_file({"state_dict": PARTS}), "whose code would run"),
    ("a.safetensors", lambda path: path.write_text("no"), "is damaged"),
    ("a.safetensors", damaged(b'\\"power\\":4', b'\\"power\\":3'), "its hash differs"),
    ("missing.safetensors", lambda path: None, "cannot read"),
])  # fmt: skip
def test_other_files_are_refused_in_one_line(tmp_path, name, write, message):
    write(tmp_path / name)
    with pytest.raises(UserError, match=message) as refused:
        landmarks.read(str(tmp_path / name))
    assert "\n" not in str(refused.value)
    assert name in str(refused.value)


@pytest.mark.parametrize(("description", "message"), [
    (landmarks.Description(65), "multiple of 64"),
    (landmarks.Description(64, WFLW), "which are not among 0 to 2"),
])  # fmt: skip
def test_a_table_that_does_not_fit_is_refused(description, message):
    network = landmarks.SavedLandmarks("x", tiny_landmarks().tensors, description)
    with pytest.raises(UserError, match=message):
        network.check()
