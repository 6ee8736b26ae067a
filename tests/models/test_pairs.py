"""Sets of runs of pairs as files: names of folders, the domains, steps that all pairs have."""

import pytest

from stargan_dist.errors import UserError
from stargan_dist.models import pairs
from stargan_dist.models.opening import open_model

DOMAINS = ["cat", "dog", "wild boar"]


@pytest.fixture
def folder(tmp_path):
    """A set of three pairs without checkpoints."""
    pairs.write_domains(str(tmp_path / "set"), DOMAINS)
    return tmp_path / "set"


def save(folder, number, *steps):
    """Create what looks like checkpoints of a pair."""
    for step in steps:
        pair = pairs.list_pairs(str(folder), DOMAINS)[number]
        manifest = folder.parent / pair.run / "checkpoints" / f"step_{step:08d}" / "manifest.json"
        manifest.parent.mkdir(parents=True)
        manifest.write_text("{}")


def test_pairs_are_numbered_and_have_folders_with_their_names():
    found = pairs.list_pairs("s3://runs/set", DOMAINS)
    assert [pair.number for pair in found] == [0, 1, 2]
    assert [pair.domains for pair in found] == [
        ("cat", "dog"), ("cat", "wild boar"), ("dog", "wild boar"),
    ]  # fmt: skip
    assert [pair.run for pair in found] == [
        f"s3://runs/set/{name}" for name in ("cat-dog", "cat-wild_boar", "dog-wild_boar")
    ]
    assert len(pairs.list_pairs("set", [*map(str, range(40))])) == 780


@pytest.mark.parametrize(
    "domains", [["a b", "a_b", "c"], ["a", "a-a", "a-a-a"], ["Cat", "cat", "dog"]]
)
def test_folders_differ_where_names_are_alike(domains):
    folders = [pair.run.lower() for pair in pairs.list_pairs("set", domains)]
    assert len({*folders}) == 3


def test_the_domains_of_a_set_are_those_of_its_first_training(folder, tmp_path):
    assert pairs.is_set(str(folder)) and not pairs.is_set(str(tmp_path))
    assert pairs.read_domains(str(folder)) == DOMAINS
    pairs.write_domains(str(folder), DOMAINS)
    with pytest.raises(
        UserError, match="has the pairs of cat, dog, wild boar, and the shards have"
    ):
        pairs.write_domains(str(folder), ["cat", "dog"])
    assert pairs.read_domains(str(folder)) == DOMAINS


def test_a_run_does_not_become_a_set(folder):
    save(folder, 0, 2)
    with pytest.raises(UserError, match="cat-dog is a run: name another folder"):
        pairs.write_domains(str(folder / "cat-dog"), DOMAINS)


def test_a_set_is_evaluated_at_the_last_step_that_all_pairs_have(folder):
    save(folder, 0, 2, 4)
    save(folder, 1, 2, 4, 6)
    with pytest.raises(UserError, match=r"dog-wild_boar has no checkpoint \(1 of 3 pairs"):
        pairs.find_step(str(folder), "latest")
    save(folder, 2, 2, 4, 6)
    assert pairs.find_step(str(folder), "latest") == 4
    with pytest.raises(UserError, match="cat-dog has no checkpoint 6"):
        pairs.find_step(str(folder), "6")
    with pytest.raises(UserError, match="best is a checkpoint of one run"):
        pairs.find_step(str(folder), "best")


def test_pairs_without_a_common_step_are_told_with_their_steps(folder):
    for number in range(3):
        save(folder, number, 2 + number)
    with pytest.raises(UserError, match="cat and dog: 2, cat and wild boar: 3, dog and wild boar"):
        pairs.find_step(str(folder), "latest")


def test_a_set_is_no_model_but_names_one(folder):
    with pytest.raises(UserError, match=r"name one of them, such as .*/set/cat-dog"):
        open_model(str(folder))
