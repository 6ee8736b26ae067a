"""What own images of a run on attributes are taken for."""

import argparse
from types import SimpleNamespace

import pytest

from stargan_dist.data.labels import Labels, LabelSpace, domain_labels
from stargan_dist.errors import UserError
from stargan_dist.sample import check_arguments, label_of_files

FACES = LabelSpace("faces", ("black", "blond", "male"), binary=True)
KINDS = LabelSpace("kinds", ("cat", "dog"), key="kind")
BOTH = Labels((FACES, KINDS))


def test_the_label_of_own_images():
    assert label_of_files(BOTH, None, []).tolist() == [0, 0, 0, 0, 0, 1, 0]
    found = label_of_files(BOTH, "faces", ["male=1", "blond=true"])
    assert found.tolist() == [0, 1, 1, 0, 0, 1, 0]
    assert label_of_files(BOTH, "kinds", []).tolist() == [0, 0, 0, 0, 0, 0, 1]
    assert label_of_files(Labels((FACES,)), None, ["black=1", "male=-1"]).tolist() == [1, 0, 0]
    assert label_of_files(domain_labels(["a", "b"]), None, []).item() == 0


@pytest.mark.parametrize(
    ("labels", "name", "pairs", "said"),
    [
        (BOTH, "animals", [], "--set: animals is none of faces, kinds"),
        (BOTH, None, ["old=1"], "old is not an attribute of faces, which has the attributes black"),
        (BOTH, "kinds", ["cat=1"], "cat is not an attribute of kinds, which has categories"),
        (BOTH, None, ["male=maybe"], "attribute male is 'maybe', neither true"),
        (BOTH, None, ["male"], "attribute male is '', neither true"),
        (domain_labels(["a", "b"]), None, ["male=1"], "the labels of this run are its domains"),
    ],
)
def test_mistakes_are_told(labels, name, pairs, said):
    with pytest.raises(UserError, match=said):
        label_of_files(labels, name, pairs)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"targets": ["old"]}, "--targets: old is none of black, blond, male, cat, dog"),
        ({"references": ["a=b"]}, "--references: the networks of this run take none"),
        ({"attributes": ["male=1"]}, "images that --sources names"),
    ],
)
def test_what_a_run_has_no_use_for_is_refused(given, said):
    nothing = {"targets": None, "references": None, "attributes": [], "set": None, "sources": None}
    translator = SimpleNamespace(labels=BOTH, guided_by_references=False)
    with pytest.raises(UserError, match=said):
        check_arguments(argparse.Namespace(**nothing | given), translator)
