"""Builders and checks of far datasets: many requests at a time, results as with one at a time."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from stargan_dist import sample, storage
from stargan_dist.config import StorageConfig
from stargan_dist.data.index import read_index, sample_table_name
from stargan_dist.errors import UserError
from stargan_dist.shards import verify as verifying
from stargan_dist.shards.build import build
from stargan_dist.shards.preview import preview
from stargan_dist.shards.verify import verify
from stargan_dist.storage import ahead as ahead_module
from stargan_dist.storage import reading
from tests.conftest import digest
from tests.shards.test_verify import FILES


@pytest.fixture
def far(shards, http):
    """The shards on a server."""
    shutil.copytree(shards, http.folder, dirs_exist_ok=True)
    return http


@pytest.fixture
def far_images(animals, http):
    """A manifest of images on a server."""
    shutil.copytree(animals, http.folder, dirs_exist_ok=True)
    paths = sorted(path.relative_to(http.folder) for path in http.folder.glob("*/*"))
    rows = ["path,domain", *(f"{path},{path.parent}" for path in paths)]
    (http.folder / "list.csv").write_text("\n".join(rows))
    return http


def test_a_build_requests_many_images_at_a_time(far_images, tmp_path):
    far_images.delay_seconds = 0.2
    options = {"val_fraction": 0.0}
    build(f"{far_images.url}/list.csv", str(tmp_path / "far"), **options)
    assert 10 <= far_images.peak <= ahead_module.FILES_AHEAD
    assert set(far_images.gets().values()) == {1}
    build(str(far_images.folder / "list.csv"), str(tmp_path / "near"), **options)
    far, near = (digest(tmp_path / name) for name in ("far", "near"))
    assert {n: h for n, h in far.items() if n != "index.json"} == {
        n: h for n, h in near.items() if n != "index.json"
    }
    far_index, near_index = (read_index(str(tmp_path / name)) for name in ("far", "near"))
    assert far_index.fingerprint == near_index.fingerprint


def damaged(server):
    """Return an image in the middle of the manifest."""
    return server.folder / (server.folder / "list.csv").read_text().splitlines()[15].split(",")[0]


def cut(server):
    damaged(server).write_bytes(damaged(server).read_bytes()[:100])


def remove(server):
    damaged(server).unlink(missing_ok=True)


def fail(server):
    server.faults[f"{damaged(server).parent.name}/{damaged(server).name}"] = ["503"] * 1000


def fail_briefly(server):
    server.faults["dog/"] = ["503", "ok", "429", "reset"]


def outcome(server, dest, **options):
    """Return the files and skipped images, or the error, of a build."""
    try:
        build(f"{server.url}/list.csv", str(dest), val_fraction=0.0, shard_images=5, **options)
    except UserError as error:
        return str(error)
    finally:
        server.faults.clear()
    files = digest(dest)
    shutil.rmtree(dest)
    return files


@pytest.mark.parametrize(
    ("damage", "skip_bad"), [(cut, False), *((d, True) for d in (cut, remove, fail, fail_briefly))]
)
def test_faults_of_a_build_are_those_without_reading_ahead(
    far_images, tmp_path, monkeypatch, damage, skip_bad
):
    storage.configure(StorageConfig(tries=1 if damage is fail else 4, wait_seconds=0.0))
    damage(far_images)
    ahead = outcome(far_images, tmp_path / "set", skip_bad=skip_bad)
    monkeypatch.setattr(ahead_module, "FILES_AHEAD", 0)
    damage(far_images)
    assert outcome(far_images, tmp_path / "set", skip_bad=skip_bad) == ahead


def test_a_preview_requests_many_images_at_a_time(shards, far):
    far.delay_seconds = 0.2
    sheet, faults = preview(far.url, size=32)
    local, _ = preview(shards, size=32)
    assert far.peak >= 10
    assert not faults
    assert np.array_equal(np.asarray(sheet)[60:], np.asarray(local)[60:])  # below the title


@pytest.mark.parametrize("block_bytes", [2**23, 2000])
def test_verify_requests_several_blocks_at_a_time_and_each_once(far, monkeypatch, block_bytes):
    for module in (reading, ahead_module):
        monkeypatch.setattr(module, "BLOCK_BYTES", block_bytes)
    far.delay_seconds = 0.02
    assert verify(far.url) == listing_fault(far)
    assert 3 <= far.peak <= verifying.BLOCKS_AHEAD
    for shard in read_index(str(far.folder)).shards():
        size = (far.folder / shard.name).stat().st_size
        blocks = -(-size // block_bytes)
        assert far.gets()[f"/{shard.name}"] == blocks
        assert far.gets()[f"/{sample_table_name(shard.name)}"] == 1


def test_a_process_that_verifies_one_shard_requests_several_blocks_at_a_time(far, monkeypatch):
    for module in (reading, ahead_module):
        monkeypatch.setattr(module, "BLOCK_BYTES", 2000)
    far.delay_seconds = 0.05
    task = verifying._plan_tasks(far.url, read_index(far.url))[0]
    assert not verifying.verify_shard(task).faults
    assert 2 <= far.peak <= verifying.BLOCKS_AHEAD


def listing_fault(server):
    """Return what verify says of a server that lists no folders."""
    return verifying._stray_tars(server.url, read_index(server.url))


@pytest.mark.parametrize(
    "damage", [None, "no shard", "truncated shard", "longer shard", "no sample table"]
)
def test_faults_of_verify_are_those_without_reading_ahead(far, monkeypatch, damage):
    name = read_index(str(far.folder)).splits["train"]["dog"][1].name
    storage.configure(StorageConfig(wait_seconds=0.0))
    if damage:
        FILES[damage][0](Path(far.folder), name)
    for module in (reading, ahead_module):
        monkeypatch.setattr(module, "BLOCK_BYTES", 4096)
    far.faults["tar"] = ["ok", "503", "reset"]
    ahead = verify(far.url)
    monkeypatch.setattr(verifying, "BLOCKS_AHEAD", 0)
    assert ahead == verify(far.url)


def test_pictures_for_sample_are_requested_at_the_same_time(animals, far_images):
    far_images.delay_seconds = 0.2
    paths = sorted(animals.glob("*/*"))
    urls = [f"{far_images.url}/{path.relative_to(animals)}" for path in paths]
    labels = torch.zeros(len(urls), dtype=torch.int64)
    far = sample.load_files(urls, labels, ["x"], 16)
    local = sample.load_files([os.fspath(path) for path in paths], labels, ["x"], 16)
    assert far_images.peak >= 10
    assert torch.equal(far.images, local.images)
    with pytest.raises(UserError, match=r"cannot read the image http.*/none"):
        sample.load_files([urls[0], f"{far_images.url}/none"], labels, ["x"], 16)
