"""Names with `[`, `*` and `?` are names: nothing else is listed, read or removed."""

from pathlib import Path

import pytest
import torch

from stargan_dist import storage
from stargan_dist.runs import checkpoint as checkpoints
from stargan_dist.runs.checkpoint import CheckpointState
from stargan_dist.shards.build import build
from stargan_dist.shards.verify import verify

# Names, and neighbours that they would match as patterns.
NEIGHBOURS = {"exp[12]": ("exp1", "exp2"), "a*b": ("aXb",), "what?": ("whatX",)}
CASES = pytest.mark.parametrize(("name", "neighbours"), NEIGHBOURS.items(), ids=NEIGHBOURS)
STATE = CheckpointState({"G.w": torch.ones(2)}, {}, {}, {})
METADATA = {"config": {}, "domains": ["a", "b"], "data": "abc"}


@pytest.fixture(params=["local", "memory", "s3"])
def base(request, tmp_path):
    if request.param == "s3":
        return request.getfixturevalue("s3")
    return str(tmp_path) if request.param == "local" else f"memory://{tmp_path.name}"


def names_below(url):
    """Return the paths of all files below a folder."""
    return set(storage.find_files(url))


@CASES
def test_removal_leaves_neighbours(base, name, neighbours):
    for folder in (name, *neighbours):
        for file in ("manifest.json", "deep/a", "b"):
            storage.write_bytes(storage.join(base, folder, file), b"x")
    storage.remove_files([storage.join(base, name, "b"), storage.join(base, name, "missing")])
    assert len(names_below(base)) == 3 * (1 + len(neighbours)) - 1
    assert storage.list_names(storage.join(base, name)) == ["deep", "manifest.json"]
    storage.remove_folder(storage.join(base, name), first="manifest.json")
    assert not storage.exists(storage.join(base, name))
    assert {path.split("/")[0] for path in names_below(base)} == {*neighbours}
    assert len(names_below(base)) == 3 * len(neighbours)
    storage.remove_folder(storage.join(base, name))


@CASES
def test_retention_removes_the_checkpoints_of_its_run_alone(base, name, neighbours):
    for run in (name, *neighbours):
        for step in (1, 2):
            checkpoints.save(storage.join(base, run), step, STATE, METADATA)
    run = storage.join(base, name)
    checkpoints.save(run, 2, STATE, METADATA)  # replaces an existing folder
    checkpoints.apply_retention(run, 2, "demo", keep_last=1, keep_every=0)
    assert checkpoints.list_steps(run) == [2]
    assert checkpoints.find_existing(run).state().networks["G.w"].tolist() == [1, 1]
    for neighbour in neighbours:
        assert checkpoints.list_steps(storage.join(base, neighbour)) == [1, 2]
        checkpoints.find_existing(storage.join(base, neighbour), "1").state()


def test_shards_are_built_replaced_and_verified_beside_neighbours(base, animals):
    url, neighbour = storage.join(base, "set[12]*"), storage.join(base, "set1x")
    for dest in (neighbour, url):
        build(str(animals), dest, shard_images=6)
    before = names_below(neighbour)
    build(str(animals), url, shard_images=12, overwrite=True)
    assert names_below(neighbour) == before
    assert len(names_below(url)) < len(before)
    assert verify(url) == []


def test_a_linked_folder_is_unlinked(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    storage.remove_folder(str(tmp_path / "link"))
    assert [path.name for path in Path(tmp_path).iterdir()] == ["real"]
