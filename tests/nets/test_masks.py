"""Masks of the high-pass option, against a plain version in float64."""

import dataclasses

import pytest
import torch

from stargan_dist.nets.fan import FAN
from stargan_dist.nets.masks import WFLW, LandmarkMasks, Move, Part, masks_of
from tests.helpers.fan import plain_masks


def random_heat_maps():
    """Return heat maps with one spot each, and some of little heat."""
    random = torch.Generator().manual_seed(0)
    centres = torch.rand(2, 99, 2, 1, 1, generator=random, dtype=torch.float64) * 64
    rows = torch.arange(64.0, dtype=torch.float64)
    distances = (rows[:, None] - centres[:, :, 0]) ** 2 + (rows - centres[:, :, 1]) ** 2
    noise = torch.rand(2, 99, 64, 64, generator=random, dtype=torch.float64)
    return torch.exp(-distances / 6) + 0.09 * noise


def test_masks_equal_the_plain_ones():
    maps = random_heat_maps()
    expected = plain_masks(maps)
    masks = masks_of(maps, WFLW, 256)
    assert masks.shape == (2, 2, 256, 256)
    assert all(0.05 < share < 0.95 for share in (expected > 0.5).double().mean((2, 3)).flatten())
    assert (masks - expected).abs().max() <= 1e-12


@pytest.mark.parametrize("number", range(len(WFLW)))
def test_every_part_changes_the_masks(number):
    part = WFLW[number]
    changed = dataclasses.replace(part, moves=(Move(part.moves[0].rows + 1, 2),))
    maps = random_heat_maps()
    parts = (*WFLW[:number], changed, *WFLW[number + 1 :])
    assert (masks_of(maps, parts, 256) - plain_masks(maps)).abs().max() > 1e-3


def test_another_table_is_data():
    maps = torch.zeros(1, 2, 16, 16)
    maps[0, 0, 4, 5] = maps[0, 1, 15, 8] = 1.0
    masks = masks_of(maps, (Part((0,), inner=False), Part((1,), (Move(2, 3),))), 16)
    assert torch.equal(masks[0, 0].nonzero(), torch.tensor([[1, 8], [4, 5]]))  # wraps around
    assert torch.equal(masks[0, 1].nonzero(), torch.tensor([[1, 8]]))


def test_masks_have_the_dtype_of_the_images_and_no_gradient():
    network = FAN(2, width=16, input_size=64).eval()
    masks = LandmarkMasks(network, (Part((0, 1)),))
    x = torch.zeros(2, 3, 32, 32, dtype=torch.float64, requires_grad=True)
    made = masks(x)
    assert (made.shape, made.dtype, made.requires_grad) == ((2, 2, 64, 64), torch.float64, False)
