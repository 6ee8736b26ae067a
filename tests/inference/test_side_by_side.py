"""One picture through several models that differ in their labels and recipes."""

from dataclasses import replace

import numpy as np
import pytest

from stargan_dist.data.labels import Labels, LabelSpace, domain_labels
from stargan_dist.errors import UserError
from stargan_dist.inference import side_by_side
from stargan_dist.inference.side_by_side import Request, SideBySide, Target, targets_of
from stargan_dist.inference.translator import Translator
from tests.helpers.models import tiny_model
from tests.helpers.pictures import picture

ANIMALS = Translator(tiny_model(), device="cpu")
PETS = Translator(tiny_model(domains=("cat", "dog"), seed=1, image_size=64), device="cpu")
FACES = Translator(tiny_model("stargan", ["blond", "male"], binary=True), device="cpu")
ALL = SideBySide({"animals": ANIMALS, "pets": PETS, "faces": FACES})
CAT = Request(picture(), "cat", seeds=[3, 4])


def same(image, other):
    return np.array_equal(image, other)


def test_targets_are_domains_and_the_attributes_of_each_data_source():
    faces = LabelSpace("faces", ("blond", "male"), binary=True)
    labels = Labels((faces, LabelSpace("moods", ("sad", "happy"))))
    attributes = Target(("blond", "male"), "faces")
    assert targets_of(labels) == {
        "attributes of faces": attributes, "sad": Target(), "happy": Target(),
    }  # fmt: skip
    assert [*targets_of(domain_labels(["b", "a"]))] == ["b", "a"]


def test_the_targets_of_all_models_are_offered():
    assert ALL.targets == {
        "bear": [], "cat": [], "fox": [], "dog": [], "attributes": ["blond", "male"],
    }  # fmt: skip


def test_outputs_are_those_of_the_translators():
    outcomes = ALL.translate(CAT)
    for name, translator in (("animals", ANIMALS), ("pets", PETS)):
        expected = translator.translate(CAT.picture, "cat", seed=[3, 4])
        assert len(outcomes[name].images) == 2
        assert all(map(same, outcomes[name].images, expected))
    assert not same(*outcomes["animals"].images)


def test_references_strength_and_fit_reach_the_translators():
    wide = picture(80, 40)
    references = [picture(seed=1), picture(seed=2)]
    arguments = {"references": references, "strength": 0.5, "fit": "pad"}
    outcomes = ALL.translate(Request(wide, "fox", **arguments))
    expected = ANIMALS.translate(wide, "fox", reference=references, strength=0.5, fit="pad")
    assert outcomes["animals"].images[0].size == (32, 16)
    assert all(map(same, outcomes["animals"].images, expected))


def test_attributes_are_those_that_are_checked():
    outcomes = ALL.translate(replace(CAT, target="attributes", attributes=["male"]))
    expected = FACES.translate(CAT.picture, attributes={"male": True})
    assert len(outcomes["faces"].images) == 1  # seeds have no effect on it
    assert same(outcomes["faces"].images[0], expected)
    none = ALL.translate(replace(CAT, target="attributes"))["faces"].images[0]
    assert not same(none, expected)


def test_a_model_that_cannot_do_it_says_so_and_the_others_translate():
    outcomes = ALL.translate(replace(CAT, target="dog"))
    assert outcomes["animals"].images == []
    assert outcomes["animals"].fault == "this model has no dog: it has bear, cat, fox"
    assert len(outcomes["pets"].images) == 2


def test_attributes_of_another_model_are_refused():
    others = Translator(tiny_model("stargan", ["young"], binary=True), device="cpu")
    both = SideBySide({"faces": FACES, "others": others})
    assert both.targets == {"attributes": ["blond", "male", "young"]}
    outcomes = both.translate(replace(CAT, target="attributes", attributes=["young"]))
    assert outcomes["faces"].fault == "this model has no attribute young"
    assert len(outcomes["others"].images) == 1


def test_a_recipe_without_references_says_so():
    no_encoder = SideBySide({"g": Translator(tiny_model("stargan"), device="cpu")})
    assert not no_encoder.diverse
    assert not no_encoder.guided_by_references
    assert len(no_encoder.translate(replace(CAT, references=[picture()]))["g"].images) == 1


def test_the_number_of_outputs_is_limited():
    ALL.translate(replace(CAT, seeds=range(side_by_side.MAX_OUTPUTS)))
    with pytest.raises(UserError, match="9 outputs are more than 8"):
        ALL.translate(replace(CAT, seeds=range(side_by_side.MAX_OUTPUTS + 1)))


def test_a_sheet_has_a_row_for_each_model_and_one_of_references():
    outcomes = ALL.translate(CAT)
    cell, header = 64 + 2, 2 + 16  # borders and names
    sheet = side_by_side.sheet(CAT, outcomes, side=64)
    assert sheet.size == (3 * cell + 2, 2 * cell + header)  # the model of attributes has no row
    small = np.asarray(outcomes["animals"].images[0])
    top, left = 16 + 2 + 16, cell + 2 + 16  # centred
    assert same(np.asarray(sheet)[top : top + 32, left : left + 32], small)
    guided = replace(CAT, references=[picture(seed=1)])
    with_references = side_by_side.sheet(guided, ALL.translate(guided), side=64)
    assert with_references.size == (2 * cell + 2, 3 * cell + header)
