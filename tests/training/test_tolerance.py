"""What only watches a training never ends it."""

import shutil

import pytest

from stargan_dist.data.index import read_index, read_sample_table
from stargan_dist.data.sources import load_labelled_images, open_sources
from stargan_dist.errors import UserError
from stargan_dist.training.tolerance import Tolerance
from tests.conftest import Trainer, here
from tests.helpers.runs import assert_same_bits
from tests.training.test_trainer import make_config


@pytest.fixture
def damaged(shards, tmp_path):
    """Shards whose first validation image of each domain cannot be decoded."""
    folder = tmp_path / "set"
    shutil.copytree(shards, folder)
    for shard, *_ in read_index(shards).splits["val"].values():
        end = int(read_sample_table(str(folder), shard).offsets[1])
        data = (folder / shard.name).read_bytes()
        (folder / shard.name).write_bytes(b"x" * end + data[end:])
    return folder


def test_a_run_without_any_of_its_watching_parts_has_the_same_bits(damaged, finished_run, tmp_path):
    """A file in place of each folder, a folder in place of each file, damaged images of grids."""
    run = tmp_path / "run"
    run.mkdir()
    for name in ("samples", "tensorboard"):
        (run / name).touch()
    for name in ("metrics.jsonl", "status.json", "config.yaml"):
        (run / name).mkdir()
    lines = here("train", *Trainer(str(damaged)).options(run)).stderr.splitlines()
    told = [line for line in lines if "training continues, tried again later" in line]
    parts = ("config.yaml and", "status.json", "metrics in TensorBoard", "metrics.jsonl")
    for part in (*parts, "sample grids"):
        assert len([line for line in told if f" {part}" in line]) == 1, lines
    assert_same_bits(run, finished_run)


def test_grids_show_the_next_image_in_place_of_an_unreadable_one(damaged, shards):
    def load(folder, **options):
        sources = open_sources(make_config("r", str(folder)).data, "val")
        return load_labelled_images(sources, 32, **options)

    with pytest.raises(UserError, match="cannot read sample 0 of shard"):
        load(damaged, per_domain=1)
    replaced = load(damaged, per_domain=1, replace_unreadable=True)
    assert replaced.paths == load(shards, first=1, per_domain=1).paths


def test_a_fault_is_told_when_it_begins_changes_and_ends(caplog):
    caplog.set_level("INFO")
    tolerance = Tolerance()
    for error in (OSError("full"), OSError("full"), KeyError("a\nb"), None, None):
        with tolerance.of("grids"):
            if error:
                raise error
    assert caplog.messages == [
        "grids: full; training continues, tried again later",
        "grids: KeyError: 'a\\nb'; training continues, tried again later",
        "grids: works again",
    ]
