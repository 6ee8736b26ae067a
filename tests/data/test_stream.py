import numpy as np
import pytest
import torch
from PIL import Image

from stargan_dist.data import transforms
from stargan_dist.data.order import Location
from stargan_dist.data.stream import (
    ShardReader,
    Slots,
    check_split,
    load_split,
    training_loader,
)
from stargan_dist.errors import UserError
from stargan_dist.shards.index import read_index


@pytest.fixture
def slots(shards):
    reader = ShardReader(shards, read_index(shards), "train")
    return Slots(reader, seed=3, image_size=32, latent_dim=5)


def load(slots, steps=range(4), batch_size=8, rank=0, world_size=1, workers=0):
    loader = training_loader(
        slots, steps, batch_size, rank=rank, world_size=world_size, workers=workers,
        pin_memory=False,
    )  # fmt: skip
    return list(loader)


def assert_same(batches, others):
    assert len(batches) == len(others)
    for batch, other in zip(batches, others, strict=True):
        for name in batch._fields:
            assert torch.equal(getattr(batch, name), getattr(other, name)), name


def test_a_batch_has_the_documented_shapes(slots):
    (batch,) = load(slots, range(1))
    assert batch.x.shape == batch.x_ref.shape == batch.x_ref2.shape == (8, 3, 32, 32)
    assert batch.x.dtype == torch.uint8
    assert batch.y.shape == batch.y_trg.shape == (8,)
    assert batch.z.shape == batch.z2.shape == (8, 5)


@pytest.mark.parametrize("workers", [1, 3])
def test_the_number_of_workers_changes_nothing(slots, workers):
    assert_same(load(slots, workers=workers), load(slots))


@pytest.mark.parametrize("world_size", [2, 4])
def test_ranks_together_see_the_global_batch(slots, world_size):
    ranks = [load(slots, rank=rank, world_size=world_size) for rank in range(world_size)]
    joined = [
        type(parts[0])(*(torch.cat(tensors) for tensors in zip(*parts, strict=True)))
        for parts in zip(*ranks, strict=True)
    ]
    assert_same(joined, load(slots))


def test_a_later_start_continues_the_same_sequence(slots):
    assert_same(load(slots, range(2, 4)), load(slots)[2:])


def test_latents_and_augmentations_differ_between_slots(slots):
    batch = load(slots, range(1))[0]
    assert len({tuple(z.tolist()) for z in torch.cat([batch.z, batch.z2])}) == 16
    many = torch.stack([torch.from_numpy(transforms.augment(
        Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 40, 3), np.uint8)), 32,
        np.random.default_rng(i))) for i in range(20)])  # fmt: skip
    assert len({image.numpy().tobytes() for image in many}) > 8


def test_a_reader_returns_the_original_bytes(shards, animals):
    reader = ShardReader(shards, read_index(shards), "val")
    sample = reader.read(Location(1, 0, 1))
    assert sample.facts["domain"] == "dog"
    assert sample.image == (animals / sample.facts["path"]).read_bytes()


def test_open_shards_are_bounded(shards, monkeypatch):
    monkeypatch.setattr("stargan_dist.data.stream.OPEN_SHARDS", 2)
    index = read_index(shards)
    reader = ShardReader(shards, index, "train")
    assert sum(len(counts) for counts in index.counts("train")) > 3
    opened = []
    for domain, counts in enumerate(index.counts("train")):
        for shard in range(len(counts)):
            reader.read(Location(domain, shard, 0))
            opened.append(next(reversed(reader._files.values()))[0])
    assert len(reader._files) == 2
    assert [file.closed for file in opened[-3:]] == [True, False, False]


def test_a_damaged_shard_is_named(shards, tmp_path):
    import shutil

    copy = tmp_path / "set"
    shutil.copytree(shards, copy)
    index = read_index(str(copy))
    name = index.splits["train"]["cat"][0].name
    (copy / name).write_bytes((copy / name).read_bytes()[:700])
    reader = ShardReader(str(copy), index, "train")
    with pytest.raises(UserError, match=f"{name}.*build the set again"):
        reader.read(Location(0, 0, 1))


def test_load_split_is_in_the_order_of_the_shards(shards):
    val = load_split(shards, "val", 32)
    assert val.domains == ["cat", "dog", "rabbit"]
    assert val.labels.tolist() == [0] * 3 + [1] * 3 + [2] * 3
    assert [path.split("/")[0] for path in val.paths] == ["cat"] * 3 + ["dog"] * 3 + ["rabbit"] * 3
    some = load_split(shards, "val", 32, first=1, per_domain=3, domains=2)
    assert some.paths[:3] == [val.paths[1], val.paths[2], val.paths[0]]
    assert torch.equal(some.of(1)[0], val.of(1)[1])


def test_too_few_images_are_told(shards):
    with pytest.raises(UserError, match="domain cat has 3 images in split val"):
        check_split(read_index(shards), "val", 4, shards)
