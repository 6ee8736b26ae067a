"""The models of all pairs, as one translator: which of them translates, and its label."""

import pytest
import torch
from msgspec.structs import replace

from stargan_dist.inference.model import TrainedModel
from stargan_dist.inference.pairs import PairModels
from stargan_dist.runs import checkpoint as checkpoints
from stargan_dist.runs.checkpoint import EMA

SPECIES, STEPS = ["cat", "dog", "rabbit"], 2


@pytest.fixture
def models(pair_runs):
    return PairModels(str(pair_runs), STEPS)


@pytest.mark.parametrize(
    ("source", "target", "pair", "label"),
    [
        (0, 1, "cat-dog", 1), (1, 0, "cat-dog", 0), (0, 2, "cat-rabbit", 1),
        (2, 0, "cat-rabbit", 0), (1, 2, "dog-rabbit", 1), (2, 1, "dog-rabbit", 0),
    ],
)  # fmt: skip
def test_an_image_is_translated_by_the_run_of_its_pair(
    models, pair_runs, source, target, pair, label
):
    model, found = models.between(source, target)
    expected = TrainedModel.load(str(pair_runs / pair))
    assert (model.hash_weights(), found) == (expected.hash_weights(), label)
    assert model.domains[found] == SPECIES[target]
    assert model.domains[1 - found] == SPECIES[source]


def test_a_model_of_all_domains_translates_between_any_two(finished_run):
    model = TrainedModel.load(str(finished_run))
    assert model.between(2, 1) == (model, 1)


def test_the_networks_of_one_pair_are_kept(models):
    model, _ = models.between(0, 2)
    assert models.between(2, 0)[0] is model
    other, _ = models.between(1, 2)
    assert other is not model and models.between(0, 2)[0] is not model


def test_a_set_translates_in_its_own_precision(models):
    assert not models.between(0, 1)[0].bfloat16
    models.bfloat16 = True
    assert models.between(0, 1)[0].bfloat16


def test_a_set_has_the_configuration_of_its_pairs_and_all_domains(models, pair_runs):
    assert (models.config.run, models.config.data.pair) == (str(pair_runs), [])
    assert models.config.recipe == "cyclegan"
    assert (models.domains, models.step, models.guided_by_references) == (SPECIES, STEPS, False)


@pytest.mark.parametrize("pair", ["cat-dog", "cat-rabbit", "dog-rabbit"])
def test_the_hash_of_a_set_depends_on_every_pair(models, pair_runs, monkeypatch, pair):
    assert PairModels(str(pair_runs), STEPS).hash_weights() == models.hash_weights()
    read, loaded = checkpoints.read, TrainedModel.load(str(pair_runs / pair))

    def read_others(run, step):
        found = read(run, step)
        if run.endswith(pair):
            found.manifest.files[EMA] = replace(found.manifest.files[EMA], sha256="another")
        return found

    monkeypatch.setattr(checkpoints, "read", read_others)
    monkeypatch.setattr(PairModels, "between", lambda *_: [loaded])
    assert PairModels(str(pair_runs), STEPS).hash_weights() != models.hash_weights()


def test_images_are_translated(models):
    model, label = models.between(2, 0)
    outputs = model.from_latents(
        torch.zeros(1, 3, 32, 32), torch.tensor([label]), torch.zeros(1, 16)
    )
    assert outputs.shape == (1, 3, 32, 32)
