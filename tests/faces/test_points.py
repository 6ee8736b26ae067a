"""Landmarks as points, from heat maps."""

import torch

from stargan_dist.faces.points import points_of


def test_points_are_a_quarter_of_a_pixel_towards_the_larger_neighbour():
    maps = torch.zeros(1, 3, 16, 16)
    maps[0, 0, 4, 6], maps[0, 0, 4, 7], maps[0, 0, 3, 6] = 1.0, 0.5, 0.2
    maps[0, 1, 15, 6], maps[0, 1, 15, 7] = 1.0, 0.5  # at the border
    maps[0, 2, 8, 8] = 1.0  # neighbours are equal
    expected = torch.tensor([[[6.75, 4.25], [6.5, 15.5], [8.5, 8.5]]])
    assert torch.equal(points_of(maps, 16), expected)
    assert torch.equal(points_of(maps, 64), expected * 4)
