"""Pictures of small worlds beside each other."""

from __future__ import annotations

import torch

from mfmarl.population import picture


def test_tiles_show_every_world_whole_and_apart():
    worlds = torch.stack([torch.full((2, 3), k) for k in range(3)])
    colours = torch.tensor([[10, 0, 0], [20, 0, 0], [30, 0, 0]], dtype=torch.uint8)
    shown = picture.tiles(worlds, colours, size=1)
    # Two across and two down with a blank row and column between; the fourth place is empty.
    assert shown.shape == (5, 7, 3)
    red, blank = shown[..., 0].tolist(), picture.BACKGROUND[0]
    assert red[0] == red[1] == [10, 10, 10, blank, 20, 20, 20]
    assert red[2] == [blank] * 7
    assert red[3] == red[4] == [30, 30, 30, blank, blank, blank, blank]


def test_tiles_of_one_world_are_its_mosaic():
    world = torch.tensor([[0, 1], [1, 0]])
    colours = picture.kinds("floor", "agent")
    assert torch.equal(picture.tiles(world.unsqueeze(0), colours, 64), picture.mosaic(world, colours, 64))
