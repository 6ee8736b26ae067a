"""Joint training on two drawn sets: the sets, the labels asked for, and what the judge adds up."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

sys.path.append(str(Path(__file__).resolve().parent.parent.parent / "experiments"))

import joint

SPECIES, EXPRESSIONS = joint.SETS.values()


def vector(number, own):
    """c of two sets of three categories: both parts, and which set is known."""
    c = np.zeros(8, np.float32)
    c[3 * number : 3 * number + 3] = own
    c[6 + number] = 1
    return c


class Judge:
    """Reads an attribute off one channel of the first pixel."""

    def __init__(self, channel):
        self.channel = channel

    def read(self, images):
        return images[:, self.channel, 0, 0].round().long(), None


JUDGES = {"species": Judge(0), "expression": Judge(1)}


class Translator:
    """Writes what the label asks for, if it heeds that set; and forgets the other attribute."""

    step = 7
    config = SimpleNamespace(model=SimpleNamespace(latent_dim=4))
    labels = SimpleNamespace(vector=vector)

    def __init__(self, heeds=(0, 1), forgets=False):
        self.heeds, self.forgets = heeds, forgets

    def from_latents(self, x, y_trg, z):
        assert y_trg.shape == (len(x), 8) and z.shape == (len(x), 4)
        asked = int(y_trg[0, 6:].argmax())
        out = x.clone()
        if asked in self.heeds:
            out[:, asked] = y_trg[0, 3 * asked : 3 * asked + 3].argmax()
            out[:, 1 - asked] = 0 if self.forgets else out[:, 1 - asked]
        return out


def known(species, expressions):
    """Images that carry their truth in their channels."""
    labels = {"species": torch.tensor(species), "expression": torch.tensor(expressions)}
    images = torch.zeros(len(species), 3, 8, 8)
    for channel, values in enumerate(labels.values()):
        images[:, channel] = values.view(-1, 1, 1).float()
    return joint.Known(images, labels, torch.zeros(len(species), 5))


AWAKE = EXPRESSIONS.index("awake")
VAL = {
    "species": known([0, 1, 2, 2], [AWAKE] * 4),
    "expression": known([0, 1, 2, 0], [0, 1, 2, 2]),
}


def test_a_perfect_generator_changes_all_and_keeps_all():
    found = joint.judge_all(Translator(), JUDGES, VAL)
    assert found["untranslated_read_rightly"] == {"species": 1, "expression": 1}
    for what in ("species_set_to_expressions", "expression_set_to_species"):
        changes = found[what].pop("changes")
        assert changes == {"target": 1, "kept": 1, "both": 1, "copied": 0}
        assert all(shares["both"] == 1 for shares in found[what].values())
        assert len(found[what]) == 3


def test_a_copy_changes_nothing_and_gets_what_it_is_said_to_get():
    found = joint.judge_all(Translator(heeds=()), JUDGES, VAL)
    to_expressions = found["species_set_to_expressions"]
    assert to_expressions["to awake"] == {"target": 1, "kept": 1, "both": 1, "copied": 1}
    assert to_expressions["changes"] == {"target": 0, "kept": 1, "both": 0, "copied": 0}
    assert found["expression_set_to_species"]["to cat"]["copied"] == 0.5


def test_what_was_not_asked_for_must_be_kept():
    found = joint.judge_all(Translator(forgets=True), JUDGES, VAL)
    changes = found["species_set_to_expressions"]["changes"]
    assert changes == {"target": 1, "kept": 0.25, "both": 0.25, "copied": 0}


def test_the_sets_are_drawn_and_read_with_the_whole_truth(tmp_path, capfd):
    joint.make_set("expression", tmp_path, 10)
    before = (tmp_path / "shards" / "index.json").stat().st_mtime_ns
    joint.make_set("expression", tmp_path, 10)
    assert (tmp_path / "shards" / "index.json").stat().st_mtime_ns == before
    found = joint.read_known(tmp_path, "train")
    assert found.labels["expression"].bincount().tolist() == [9, 9, 9]
    assert len(found.labels["species"].unique()) == 3
    assert found.of("species").domains == list(SPECIES)


def test_the_picture_has_both_sets_and_all_targets():
    page = joint.picture(Translator(), VAL)
    assert page.width >= 7 * 96 and page.height >= 2 * joint.PICTURE_SOURCES * 96


def test_the_training_gets_both_sets_in_the_order_of_the_labels():
    options = joint.options_of(Path("o"))
    sources = json.loads(options[options.index("--data.sources") + 1])
    assert list(sources) == ["species", "expression"]
    assert sources["species"] == {"shards": "o/species/shards"}


def test_a_table_is_for_people_and_the_last_line_for_programs(capsys):
    found = joint.judge_all(Translator(), JUDGES, VAL)
    joint.show(found)
    lines = capsys.readouterr().out.splitlines()
    assert json.loads(lines[-1]) == found
    assert any("to asleep" in line for line in lines)


@pytest.mark.parametrize("name", joint.SETS)
def test_a_label_asks_for_one_category_of_one_set(name):
    label = joint.label_of(Translator(), name, 2)
    number = list(joint.SETS).index(name)
    assert label.nonzero()[:, 1].tolist() == [3 * number + 2, 6 + number]
