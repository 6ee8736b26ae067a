"""Joint training on two drawn datasets: datasets, target labels, and the figures of the judge."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

sys.path.append(str(Path(__file__).resolve().parent.parent.parent / "experiments"))

import joint

SPECIES, EXPRESSIONS = joint.CATEGORIES.values()


def vector(number, one_hot):
    """Return the label c of two datasets with three categories each, and their mask."""
    c = np.zeros(8, np.float32)
    c[3 * number : 3 * number + 3] = one_hot
    c[6 + number] = 1
    return c


class Judge:
    """Judge that reads an attribute from one channel of the first pixel."""

    def __init__(self, channel):
        self.channel = channel

    def read(self, images):
        return images[:, self.channel, 0, 0].round().long(), None


JUDGES = {"species": Judge(0), "expression": Judge(1)}


class Translator:
    """Translator that writes the target category into its channel of the image.

    Args:
        datasets: numbers of the datasets whose labels it follows; it copies its input for others.
        forgets: it also overwrites the other attribute.
    """

    step = 7
    config = SimpleNamespace(model=SimpleNamespace(latent_dim=4))
    labels = SimpleNamespace(vector=vector)

    def __init__(self, datasets=(0, 1), forgets=False):
        self.datasets, self.forgets = datasets, forgets

    def from_latents(self, x, y_trg, z):
        assert y_trg.shape == (len(x), 8) and z.shape == (len(x), 4)
        number = int(y_trg[0, 6:].argmax())
        out = x.clone()
        if number in self.datasets:
            out[:, number] = y_trg[0, 3 * number : 3 * number + 3].argmax()
            out[:, 1 - number] = 0 if self.forgets else out[:, 1 - number]
        return out


def labelled_images(species, expressions):
    """Return images whose channels hold their labels."""
    labels = {"species": torch.tensor(species), "expression": torch.tensor(expressions)}
    images = torch.zeros(len(species), 3, 8, 8)
    for channel, values in enumerate(labels.values()):
        images[:, channel] = values.view(-1, 1, 1).float()
    return joint.LabelledImages(images, labels, torch.zeros(len(species), 5))


AWAKE = EXPRESSIONS.index("awake")
VAL = {
    "species": labelled_images([0, 1, 2, 2], [AWAKE] * 4),
    "expression": labelled_images([0, 1, 2, 0], [0, 1, 2, 2]),
}


def test_a_perfect_generator_gets_every_target_and_keeps_the_other_attribute():
    result = joint.judge_all(Translator(), JUDGES, VAL)
    assert result["untranslated_read_rightly"] == {"species": 1, "expression": 1}
    for key in ("species_set_to_expressions", "expression_set_to_species"):
        changes = result[key].pop("changes")
        assert changes == {"target": 1, "kept": 1, "both": 1, "copied": 0}
        assert all(shares["both"] == 1 for shares in result[key].values())
        assert len(result[key]) == 3


def test_a_generator_that_copies_gets_the_shares_of_a_copy():
    result = joint.judge_all(Translator(datasets=()), JUDGES, VAL)
    to_expressions = result["species_set_to_expressions"]
    assert to_expressions["to awake"] == {"target": 1, "kept": 1, "both": 1, "copied": 1}
    assert to_expressions["changes"] == {"target": 0, "kept": 1, "both": 0, "copied": 0}
    assert result["expression_set_to_species"]["to cat"]["copied"] == 0.5


def test_the_attribute_that_the_target_does_not_name_must_be_kept():
    result = joint.judge_all(Translator(forgets=True), JUDGES, VAL)
    changes = result["species_set_to_expressions"]["changes"]
    assert changes == {"target": 1, "kept": 0.25, "both": 0.25, "copied": 0}


def test_datasets_are_drawn_once_and_read_with_the_labels_of_both_attributes(tmp_path, capfd):
    joint.make_dataset("expression", tmp_path, 10)
    before = (tmp_path / "shards" / "index.json").stat().st_mtime_ns
    joint.make_dataset("expression", tmp_path, 10)
    assert (tmp_path / "shards" / "index.json").stat().st_mtime_ns == before
    labelled = joint.read_labelled_images(tmp_path, "train")
    assert labelled.labels["expression"].bincount().tolist() == [9, 9, 9]
    assert len(labelled.labels["species"].unique()) == 3
    assert labelled.truth("species").domains == list(SPECIES)


def test_the_image_grid_has_both_datasets_and_all_targets():
    page = joint.image_grid(Translator(), VAL)
    assert page.width >= 7 * 96 and page.height >= 2 * joint.GRID_SOURCES * 96


def test_the_training_gets_both_datasets_in_the_order_of_the_labels():
    options = joint.training_options(Path("o"))
    sources = json.loads(options[options.index("--data.sources") + 1])
    assert list(sources) == ["species", "expression"]
    assert sources["species"] == {"shards": "o/species/shards"}


def test_a_table_for_people_is_printed_before_a_last_line_of_json(capsys):
    result = joint.judge_all(Translator(), JUDGES, VAL)
    joint.print_result(result)
    lines = capsys.readouterr().out.splitlines()
    assert json.loads(lines[-1]) == result
    assert any("to asleep" in line for line in lines)


@pytest.mark.parametrize("name", joint.CATEGORIES)
def test_a_label_vector_names_one_category_of_one_dataset(name):
    label = joint.label_vector(Translator(), name, 2)
    number = list(joint.CATEGORIES).index(name)
    assert label.nonzero()[:, 1].tolist() == [3 * number + 2, 6 + number]
