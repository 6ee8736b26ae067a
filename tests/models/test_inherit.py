"""Initial weights from a trained model: shared layers whole, those of domains by name."""

from dataclasses import replace

import pytest
import torch

from stargan_dist.data.labels import domain_labels
from stargan_dist.errors import UserError
from stargan_dist.models.inherit import inherit
from stargan_dist.runs.checkpoint import load_networks
from tests.helpers.models import tiny_model

NEW = ["cat", "owl", "bear", "elk"]  # the model has bear, cat, fox


def start(model, names, new_domains="mean", *, recipe="f", **sizes):
    """Return the inheritance of a training with these domains, and its networks with it."""
    own = tiny_model(recipe, names, seed=1, **sizes)
    networks = own.spec.recipe.build_networks(own.labels, own.spec.config.model)
    load_networks(networks, own.tensors)
    found = inherit(model, own.spec, own.labels, networks, new_domains)
    return found, own


@pytest.mark.parametrize("mapping", ["branches", "heads", "conditional"])
def test_domains_are_taken_by_name_and_the_rest_whole(mapping):
    model = tiny_model(mapping=mapping)
    found, own = start(model, NEW, mapping=mapping)
    assert found.tensors.keys() == own.tensors.keys()
    stacked = {name for name, t in found.tensors.items() if t.shape != model.tensors[name].shape}
    assert {name.partition(".")[0] for name in stacked} == {"F", "E", "D"}
    for name, tensor in found.tensors.items():
        old = model.tensors[name]
        if name not in stacked:
            assert torch.equal(tensor, old), name
        else:
            assert torch.equal(tensor[0], old[1])  # cat
            assert torch.equal(tensor[2], old[0])  # bear
            assert torch.equal(tensor[1], old.mean(0))  # owl
            assert torch.equal(tensor[3], old.mean(0))


def test_new_domains_may_begin_with_random_weights():
    model = tiny_model()
    found, own = start(model, NEW, "random")
    weight = found.tensors["E.head.weight"]
    assert torch.equal(weight[1], own.tensors["E.head.weight"][1])
    assert torch.equal(weight[0], model.tensors["E.head.weight"][1])


def test_the_table_says_what_was_taken():
    assert start(tiny_model(), NEW)[0].table.splitlines() == [
        "network  taken                     new                                dropped",
        "G        all",
        "F        shared layers, cat, bear  owl, elk (mean of bear, cat, fox)  fox",
        "E        shared layers, cat, bear  owl, elk (mean of bear, cat, fox)  fox",
        "D        shared layers, cat, bear  owl, elk (mean of bear, cat, fox)  fox",
    ]


def test_a_model_without_d_leaves_d_random():
    model = tiny_model()
    tensors = {name: t for name, t in model.tensors.items() if not name.startswith("D.")}
    found, _ = start(replace(model, tensors=tensors), NEW)
    assert not any(name.startswith("D.") for name in found.tensors)
    assert "D                                  all: the model has no D" in found.table


def test_other_sizes_are_refused_by_their_names():
    with pytest.raises(UserError, match=r"do not fit: model\.style_dim is 6, here 5$"):
        start(tiny_model(), NEW, style_dim=5)
    with pytest.raises(UserError, match=r"recipe stargan\) do not fit: "):
        start(tiny_model("stargan"), NEW)


def test_labels_that_g_takes_must_be_the_same():
    model = tiny_model("c")
    found, _ = start(model, model.labels.names, recipe="c")
    assert torch.equal(found.tensors["G.from_rgb.weight"], model.tensors["G.from_rgb.weight"])
    with pytest.raises(UserError, match="bear, cat, fox, and G of recipe c takes the label itself"):
        start(model, NEW, recipe="c")


@pytest.mark.parametrize("recipe", ["cyclegan", "drit"])
def test_networks_of_the_same_pair_are_taken_whole(recipe):
    model = tiny_model(recipe, ["bear", "cat"])
    found, _ = start(model, ["bear", "cat"], recipe=recipe)
    assert {*found.tensors} == {*model.tensors}
    for other in (["cat", "bear"], ["bear", "fox"]):
        with pytest.raises(UserError, match=f"bear, cat, and G of recipe {recipe} takes the label"):
            start(model, other, recipe=recipe)


def test_a_model_without_c_leaves_c_random():
    model = tiny_model("drit", ["bear", "cat"])
    tensors = {name: t for name, t in model.tensors.items() if not name.startswith("C.")}
    found, _ = start(replace(model, tensors=tensors), ["bear", "cat"], recipe="drit")
    assert {name[0] for name in found.tensors} == set("GED")
    assert "all: the model has no C" in found.table


def test_the_same_labels_are_taken_whole_in_another_recipe():
    model = tiny_model("f")
    found, _ = start(model, model.labels.names, recipe="f_mode_seeking")
    assert found.tensors.keys() == model.tensors.keys()
    assert all(torch.equal(t, model.tensors[name]) for name, t in found.tensors.items())
    assert model.labels == domain_labels(["bear", "cat", "fox"])
