"""Fits of landmark networks: they lower the error, resume to the same bits, and check settings."""

import dataclasses

import msgspec
import pytest
import torch

from stargan_dist.data.index import read_index
from stargan_dist.data.reader import ShardReader
from stargan_dist.errors import UserError
from stargan_dist.faces import fit_checkpoint, manifest
from stargan_dist.faces.fit_loop import run
from stargan_dist.faces.fitting import Fit, Settings
from stargan_dist.faces.samples import LandmarkBatch, Samples

TINY = Settings(width=16, input_size=64, steps=6, batch_size=4, lr=3e-3)


@pytest.fixture(scope="module")
def samples(animals, shards):
    index = read_index(shards)
    readers = [ShardReader(shards, index, split) for split in ("train", "val")]
    points = manifest.read(str(animals.parent / "landmarks.jsonl"))
    return Samples(*readers, points, 64, workers=0)


def new_fit(samples, settings=TINY):
    return Fit(settings, samples.manifest.num_landmarks, samples.fingerprint)


def fitted(samples, path, stop_at=None, every=2, settings=TINY):
    """Return a fit that was resumed and has done its steps, or some of them."""
    fit = new_fit(samples, settings)
    fit_checkpoint.resume(str(path), fit)
    assert run(fit, samples, str(path), every, lambda: fit.step == stop_at) == (stop_at is None)
    return fit


@pytest.fixture(scope="module")
def uninterrupted(samples, tmp_path_factory):
    path = tmp_path_factory.mktemp("fit") / "whole"
    return fitted(samples, path), path


def assert_equal(fit, other):
    assert fit.step == other.step
    assert all(torch.equal(t, other.weights()[name]) for name, t in fit.weights().items())


def test_a_few_steps_lower_the_error(samples, tmp_path):
    settings = msgspec.structs.replace(TINY, steps=30, batch_size=6)
    before = new_fit(samples, settings).errors(samples.validation(4))
    after = fitted(samples, tmp_path / "c", every=100, settings=settings)
    errors = after.errors(samples.validation(4))
    assert errors.shape == (8,)
    assert errors.mean() < 0.6 * before.mean()


@pytest.mark.parametrize("stop_at", [1, 4])
def test_a_resumed_fit_has_the_same_bits(samples, uninterrupted, tmp_path, stop_at):
    assert fitted(samples, tmp_path / "c", stop_at).step == stop_at
    assert_equal(fitted(samples, tmp_path / "c"), uninterrupted[0])


def test_a_killed_fit_resumes_from_its_last_checkpoint(samples, uninterrupted, tmp_path):
    class Killed(Exception):
        pass

    fit = new_fit(samples)

    def kill():
        if fit.step == 5:
            raise Killed
        return False

    with pytest.raises(Killed):
        run(fit, samples, str(tmp_path / "c"), 2, kill)
    resumed = new_fit(samples)
    fit_checkpoint.resume(str(tmp_path / "c"), resumed)
    assert resumed.step == 4
    assert_equal(fitted(samples, tmp_path / "c"), uninterrupted[0])


def test_loader_processes_do_not_change_the_batches(samples):
    by_workers = (
        dataclasses.replace(samples, workers=workers).training(range(3, 19), 2, 0)
        for workers in (0, 2)
    )
    for alone, other in zip(*by_workers, strict=True):
        assert torch.equal(alone.images, other.images)
        assert torch.equal(alone.points, other.points)


def test_another_seed_gives_other_weights_and_batches(samples):
    fits = [new_fit(samples, msgspec.structs.replace(TINY, seed=seed)) for seed in (0, 1)]
    assert not torch.equal(*(fit.weights()["l0.bias"] for fit in fits))
    assert not torch.equal(*(next(samples.training(range(1), 4, s)).images for s in (0, 1)))


@pytest.mark.parametrize("augment", [0.0, 1.0])
def test_each_step_is_augmented_otherwise(samples, augment):
    batch, losses = next(samples.training(range(1), 4, 0)), []
    for step in (0, 1):
        fit = new_fit(samples, msgspec.structs.replace(TINY, augment=augment))
        fit.step = step
        losses.append(fit.update(batch))
    assert torch.equal(*losses) == (augment == 0)


@pytest.mark.parametrize(("change", "message"), [
    ({"width": 32, "lr": 0.1}, r"other settings \(width, lr\)"), ({"data": "x"}, r"\(data\)"),
])  # fmt: skip
def test_a_checkpoint_of_other_settings_or_data_is_refused(samples, uninterrupted, change, message):
    changed = {name: value for name, value in change.items() if name != "data"}
    fit = new_fit(samples, msgspec.structs.replace(TINY, **changed))
    fit.data = change.get("data", fit.data)
    with pytest.raises(UserError, match=message):
        fit_checkpoint.resume(str(uninterrupted[1]), fit)


def test_a_damaged_checkpoint_is_refused(samples, uninterrupted, tmp_path):
    data = bytearray(uninterrupted[1].read_bytes())
    data[-3] ^= 1
    (tmp_path / "c").write_bytes(data)
    with pytest.raises(UserError, match="is damaged"):
        fit_checkpoint.resume(str(tmp_path / "c"), new_fit(samples))


def test_landmarks_that_were_cut_off_do_not_count(samples):
    fit = new_fit(samples)
    images = torch.zeros(2, 3, 64, 64, dtype=torch.uint8)
    points = torch.full((2, 8, 2), 30.0)
    whole = fit.errors([LandmarkBatch(images, points)])
    points[1, 0, 1], points[:, 1, 0] = 64.5, -1.0
    cut = fit.errors([LandmarkBatch(images, points)])
    assert torch.equal(cut[[0, *range(2, 8)]], whole[[0, *range(2, 8)]])  # images are equal
    assert cut[1].isnan()


def test_the_learning_rate_rises_and_falls():
    settings = Settings(steps=100, lr=1.0)
    rates = [settings.learning_rate(step) for step in range(100)]
    assert rates[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert rates[5:] == sorted(rates[5:], reverse=True)
    assert rates[5] == 1 and 0 < rates[-1] < 0.001


def test_a_loss_that_is_not_finite_ends_the_fit(samples, tmp_path):
    fit = new_fit(samples)
    with torch.no_grad():
        fit.network.l0.bias.fill_(float("nan"))
    with pytest.raises(UserError, match="not finite at step 2"):
        run(fit, samples, str(tmp_path / "c"), 2, lambda: False)
    assert not (tmp_path / "c").exists()
