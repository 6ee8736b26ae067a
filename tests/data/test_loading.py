"""A batch: the stacked slots, in one block of memory."""

import pytest
import torch
from torch.utils.data import default_collate

from stargan_dist.data.batch import Batch
from stargan_dist.data.loading import _collate
from stargan_dist.data.stream import LoaderOutput
from tests.data.test_stream import load, make_slots


def blocks(batch):
    return {t.untyped_storage().data_ptr() for t in batch if t is not None}


def test_slots_are_stacked_as_torch_does():
    generator = torch.Generator().manual_seed(0)

    def image():
        return torch.randint(256, (3, 5, 7), dtype=torch.uint8, generator=generator)

    slots = [
        Batch(image(), torch.rand(3), None, None, torch.tensor(i), torch.rand(5), torch.rand(5),
              torch.rand(()))
        for i in range(3)
    ]  # fmt: skip
    batch = _collate([LoaderOutput(slot, []) for slot in slots]).batch
    for field, *items in zip(batch, *slots, strict=True):
        expected = None if items[0] is None else default_collate(items)
        torch.testing.assert_close(field, expected, rtol=0, atol=0)
        assert field is None or field.is_contiguous()
    assert len(blocks(batch)) == 1


@pytest.mark.parametrize("start_method", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_a_worker_passes_each_batch_as_one_block_of_shared_memory(shards, start_method):
    batches = load(make_slots(shards), range(2), workers=1, start_method=start_method)
    assert [len(blocks(batch)) for batch in batches] == [1, 1]
    assert all(t.is_shared() for batch in batches for t in batch if t is not None)
