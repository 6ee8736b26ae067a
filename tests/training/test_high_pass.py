"""Training with the high-pass option, and everything after it, in this process."""

import shutil

import pytest
import torch

from stargan_dist import Translator
from stargan_dist.inference.model import TrainedModel
from stargan_dist.models import landmarks
from stargan_dist.models.opening import open_model
from tests.conftest import here
from tests.helpers.models import tiny_landmarks
from tests.helpers.pictures import picture
from tests.helpers.runs import assert_same_bits

STEPS = ("--steps", "2", "--checkpoint.every", "1", "--model.w_hpf", "1")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("landmarks")
    for seed in (0, 1):
        landmarks.write(str(folder / f"{seed}.safetensors"), tiny_landmarks(seed))
    return folder


@pytest.fixture(scope="module")
def masked(train, files, tmp_path_factory):
    """A run with the option."""
    run = tmp_path_factory.mktemp("masked") / "run"
    train.here(run, *STEPS, "--model.landmarks", str(files / "0.safetensors"))
    return run


def test_a_resumed_run_has_the_same_bits_and_masks_of_its_own_copy(train, masked, files, tmp_path):
    named = ("--model.landmarks", str(tmp_path / "moved.safetensors"))
    shutil.copy(files / "0.safetensors", tmp_path / "moved.safetensors")
    train.here(tmp_path / "run", *STEPS, *named, "--steps", "1")
    (tmp_path / "moved.safetensors").unlink()
    train.here(tmp_path / "run", *STEPS)
    assert_same_bits(tmp_path / "run", masked)
    assert landmarks.find(str(masked)).fingerprint() == tiny_landmarks().fingerprint()


def test_masks_change_the_training(train, masked, files, tmp_path):
    train.here(tmp_path / "run", *STEPS, "--model.landmarks", str(files / "1.safetensors"))
    with pytest.raises(AssertionError):
        assert_same_bits(tmp_path / "run", masked)


@pytest.mark.parametrize(("options", "message"), [
    ((), "model.landmarks: the high-pass option (model.w_hpf) needs a landmark network"),
    ((), "--model.w_hpf 0"),
    (("--model.landmarks", "missing.ckpt"), "cannot read missing.ckpt"),
    (("--recipe", "a"), "model.w_hpf: G of recipe a has no high-pass option"),
    (("--model.w_hpf", "-1"), "model.w_hpf: must not be negative"),
])  # fmt: skip
def test_what_cannot_be_trained_is_refused_in_one_line(train, tmp_path, options, message):
    refused = train.here(tmp_path / "run", *STEPS, *options, code=2)
    assert message in refused.stderr
    assert "Traceback" not in refused.stderr
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_a_run_keeps_to_its_masks(train, masked, files):
    other = ("--model.landmarks", str(files / "1.safetensors"), "--steps", "3")
    refused = train.here(masked, *STEPS, *other, code=2)
    assert "was trained with the masks of another network" in refused.stderr


def test_a_trained_model_translates_with_its_masks_wherever_it_is(masked, files, tmp_path):
    assert here("sample", "--run", masked, "--out", tmp_path / "grids").returncode == 0
    assert here("export", masked, tmp_path / "model").returncode == 0
    of_run, exported = (Translator.from_pretrained(str(p)) for p in (masked, tmp_path / "model"))
    output, source = (t.translate(picture(), "cat", seed=1) for t in (of_run, exported))
    assert output.tobytes() == source.tobytes()
    model = TrainedModel.from_saved(open_model(str(masked)))
    x = torch.rand(2, 3, 32, 32) * 2 - 1
    s = torch.randn(2, model.style_dim)
    masks = tiny_landmarks().masks()(x)
    with torch.no_grad():
        expected = model.G(x, s, masks)
        assert torch.equal(model.translate(x, s), expected)
        assert not torch.equal(model.G(x, s, masks * 0), expected)
