"""Sets of images: loading, and division among ranks."""

from contextlib import closing

import pytest
import torch

from stargan_dist.data import images
from stargan_dist.data.images import domain_images, load_images, rank_batches
from stargan_dist.data.index import read_index
from stargan_dist.data.reader import ShardReader
from stargan_dist.data.split import load_split
from stargan_dist.errors import UserError


@pytest.mark.parametrize(("count", "world_size"), [(9, 2), (2, 3), (0, 2), (7, 7), (20, 3)])
def test_ranks_read_consecutive_images_in_nearly_equal_numbers(count, world_size):
    batches_of_ranks = [rank_batches(count, 4, rank, world_size) for rank in range(world_size)]
    items = [[i for batch in batches for i in batch] for batches in batches_of_ranks]
    assert [i for rank_items in items for i in rank_items] == list(range(count))
    assert max(map(len, items)) - min(map(len, items)) <= 1
    assert all(len(batch) == 4 for batches in batches_of_ranks for batch in batches[:-1])


@pytest.mark.parametrize("workers", [0, 2])
def test_images_equal_those_of_load_split(shards, monkeypatch, workers):
    monkeypatch.setattr(images, "MIN_BATCHES_PER_WORKER", 1)
    reader = ShardReader(shards, read_index(shards), "train")
    split = load_split(reader, 32)
    options = {"workers": workers, "start_method": "fork", "pin_memory": False}
    with closing(
        load_images(domain_images(reader, 1), 32, rank_batches(9, 4, 0, 1), **options)
    ) as loaded:
        batches = list(loaded)
    assert [batch.first for batch in batches] == [0, 4, 8]
    loaded_images = torch.cat([batch.images for batch in batches])
    assert torch.equal(loaded_images, split.images[split.labels == 1])


@pytest.mark.parametrize("workers", [0, 1])
def test_an_unreadable_image_is_reported_without_a_traceback(shards, monkeypatch, workers):
    monkeypatch.setattr(images, "MIN_BATCHES_PER_WORKER", 1)
    reader = ShardReader(shards, read_index(shards), "train")
    reader._unreachable = {shard.name: "no answer" for shard in reader.index.shards()}
    options = {"workers": workers, "start_method": "fork", "pin_memory": False}
    with pytest.raises(UserError) as caught:
        list(load_images(domain_images(reader, 1), 32, rank_batches(9, 4, 0, 1), **options))
    assert "no answer" in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
