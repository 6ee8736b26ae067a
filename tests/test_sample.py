"""The label of the images of --sources, and options that are rejected or renamed."""

import argparse
from types import SimpleNamespace

import pytest
import torch

from stargan_dist.config import Config, DataConfig
from stargan_dist.data.labels import Labels, LabelSpace, domain_labels
from stargan_dist.data.split import LoadedSplit
from stargan_dist.errors import UserError
from stargan_dist.sample import (
    check_arguments,
    default_out,
    draw_grids,
    of_targets,
    parse_args,
    source_label,
)

FACES = LabelSpace("faces", ("black", "blond", "male"), binary=True)
KINDS = LabelSpace("kinds", ("cat", "dog"), key="kind")
BOTH = Labels((FACES, KINDS))


def test_the_label_of_sources_holds_data_source_and_known_attributes():
    assert source_label(BOTH, None, []).tolist() == [0, 0, 0, 0, 0, 1, 0]
    label = source_label(BOTH, "faces", ["male=1", "blond=true"])
    assert label.tolist() == [0, 1, 1, 0, 0, 1, 0]
    assert source_label(BOTH, "kinds", []).tolist() == [0, 0, 0, 0, 0, 0, 1]
    assert source_label(Labels((FACES,)), None, ["black=1", "male=-1"]).tolist() == [1, 0, 0]
    assert source_label(domain_labels(["a", "b"]), None, []).item() == 0


@pytest.mark.parametrize(
    ("labels", "data_source", "pairs", "message"),
    [
        (BOTH, "animals", [], "--data-source: animals is not .*; choose one of faces, kinds"),
        (BOTH, None, ["old=1"], "old is not an attribute of faces, which has the attributes black"),
        (BOTH, "kinds", ["cat=1"], "cat is not an attribute of kinds, which has categories"),
        (BOTH, None, ["male=maybe"], "attribute male is 'maybe', neither true"),
        (BOTH, None, ["male"], "attribute male is '', neither true"),
        (domain_labels(["a", "b"]), None, ["male=1"], "the labels of this run are its domains"),
    ],
)
def test_invalid_data_sources_and_attributes_are_rejected(labels, data_source, pairs, message):
    with pytest.raises(UserError, match=message):
        source_label(labels, data_source, pairs)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"targets": ["old"]}, "--targets: old is not .* from black, blond, male, cat, dog"),
        ({"sources": ["a"]}, "--data-source is missing: .*, one of faces, kinds"),
        ({"references": ["a=b"]}, "--references: the networks of this run take none"),
        ({"attributes": ["male=1"]}, "images that --sources names"),
    ],
)
def test_options_that_do_not_suit_the_run_are_rejected(options, message):
    unset = dict.fromkeys(("targets", "references", "data_source", "sources")) | {"attributes": []}
    config = Config(data=DataConfig(shards="shards"))
    translator = SimpleNamespace(labels=BOTH, guided_by_references=False, config=config)
    with pytest.raises(UserError, match=message):
        check_arguments(argparse.Namespace(**unset | options), translator)


def test_grids_of_a_model_on_the_hub_need_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="--out is missing: me/cats is on the Hugging Face hub"):
        default_out("me/cats")
    (tmp_path / "runs" / "cats").mkdir(parents=True)
    assert default_out("runs/cats") == "runs/cats/translations"


def test_validation_images_with_other_labels_are_rejected(shards):
    config = Config(data=DataConfig(shards=shards))
    translator = SimpleNamespace(labels=domain_labels(["dog", "cat", "rabbit"]), config=config)
    message = "hold the labels cat, dog, rabbit; the networks were trained on dog, cat, rabbit"
    with pytest.raises(UserError, match=message):
        draw_grids(argparse.Namespace(sources=None, count=1), translator)


def test_references_of_the_chosen_targets_are_shown():
    images = torch.arange(4, dtype=torch.uint8).view(4, 1, 1, 1).expand(4, 3, 2, 2)
    split = LoadedSplit(images, torch.tensor([0, 0, 1, 2]), [*"wxyz"], ["cat", "dog", "fox"])
    chosen = of_targets(split, ["fox", "cat"])
    assert chosen.labels.tolist() == [0, 0, 2]
    assert chosen.images[:, 0, 0, 0].tolist() == [0, 1, 3]
    assert chosen.paths == [*"wxz"]
    assert of_targets(split, None) is split


def parse(monkeypatch, *options):
    monkeypatch.setattr("sys.argv", ["sample", "--run", "r", "--sources", "a.png", *options])
    return parse_args()


def test_data_source_names_the_data_source(monkeypatch, capsys):
    assert parse(monkeypatch).data_source is None
    assert parse(monkeypatch, "--data-source", "faces").data_source == "faces"
    assert capsys.readouterr().err == ""


def test_set_is_accepted_as_the_former_name_of_data_source(monkeypatch, capsys):
    assert parse(monkeypatch, "--set", "faces").data_source == "faces"
    (line,) = capsys.readouterr().err.splitlines()
    assert line == "warning: --set has been renamed: use --data-source instead"
