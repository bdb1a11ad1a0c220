"""Pictures of populations as tensors: a palette that colour-blind readers can tell apart, lattices, bars.

Palette: Okabe and Ito 2008 ("Color universal design"), then further hues by the golden ratio.
"""

from __future__ import annotations

import colorsys
import math

import torch
from torch import Tensor

_OKABE_ITO = (
    (0, 114, 178),
    (230, 159, 0),
    (0, 158, 115),
    (204, 121, 167),
    (86, 180, 233),
    (213, 94, 0),
    (240, 228, 66),
    (60, 60, 60),
)
BACKGROUND = (250, 250, 250)


def palette(colours: int) -> Tensor:
    """That many colours, uint8 [colours, 3]."""
    rows: list[tuple[int, ...]] = list(_OKABE_ITO[:colours])
    for i in range(colours - len(rows)):
        rows.append(tuple(round(255 * c) for c in colorsys.hsv_to_rgb(0.618034 * i % 1, 0.55, 0.85)))
    return torch.tensor(rows, dtype=torch.uint8)


def mosaic(cells: Tensor, colours: Tensor, size: int = 256) -> Tensor:
    """Cells [H, W] of colour numbers as squares of whole pixels: uint8, the longer side at least `size` pixels."""
    side = max(1, -(-size // max(cells.shape)))
    picture = colours.to(cells.device)[cells.long()]
    return picture.repeat_interleave(side, 0).repeat_interleave(side, 1)


def enlarged(picture: Tensor, size: int = 320) -> Tensor:
    """A picture [H, W, 3] with every pixel repeated until the longer side has at least `size`; as it is if it has."""
    side = -(-size // max(picture.shape[:2]))
    return picture if side == 1 else picture.repeat_interleave(side, 0).repeat_interleave(side, 1)


def crowd(kinds: Tensor, colours: Tensor, size: int = 256) -> Tensor:
    """Agents without a place [N], sorted by their colour number and laid out row by row in a square."""
    side = max(1, int(kinds.numel() ** 0.5))
    side += side * side < kinds.numel()
    cells = torch.full((side * side,), len(colours), dtype=torch.long, device=kinds.device)
    cells[: kinds.numel()] = kinds.long().sort().values
    blank = torch.tensor([BACKGROUND], dtype=torch.uint8)
    return mosaic(cells.view(side, side), torch.cat([colours.cpu(), blank]), size)


def bars(heights: Tensor, colours: Tensor, height: int = 256, width: int = 320) -> Tensor:
    """Heights in [0, 1], one bar each: uint8 [height, width, 3], the first on the left."""
    count = heights.numel()
    slot = (torch.arange(width) * count) // width
    inside = (torch.arange(width) * count) % width
    gap = (inside < width // 12) | (inside > width - width // 12)
    level = (heights.cpu().float().clamp(0, 1) * (height - 1)).round().long()
    rows = torch.arange(height - 1, -1, -1)
    filled = (rows.unsqueeze(-1) <= level[slot]) & ~gap
    picture = torch.tensor(BACKGROUND, dtype=torch.uint8).expand(height, width, 3).clone()
    picture[filled] = colours.cpu()[slot % len(colours)].expand(height, -1, -1)[filled]
    return picture


# What the cells of small worlds hold.
_KINDS = {
    "wall": (60, 60, 60),
    "floor": (235, 235, 235),
    "agent": (0, 114, 178),
    "good": (0, 158, 115),
    "bad": (213, 94, 0),
    "sign": (240, 228, 66),
    "other sign": (230, 159, 0),
    "place": (86, 180, 233),
}


def kinds(*names: str) -> Tensor:
    """Colours of what cells hold, in this order, uint8 [names, 3]: the same in every small world."""
    return torch.tensor([_KINDS[name] for name in names], dtype=torch.uint8)


def tiles(cells: Tensor, colours: Tensor, size: int = 256) -> Tensor:
    """Several worlds' cells [n, H, W] beside and beneath each other, as in `mosaic`, a blank cell between them."""
    count, high, wide = cells.shape
    across = math.ceil(math.sqrt(count))
    down = -(-count // across)
    blank = len(colours)
    board = torch.full((down * across, high + 1, wide + 1), blank, dtype=torch.long)
    board[:count, :high, :wide] = cells
    board = board.view(down, across, high + 1, wide + 1).transpose(1, 2).flatten(2).flatten(0, 1)[:-1, :-1]
    return mosaic(board, torch.cat([colours.cpu(), torch.tensor([BACKGROUND], dtype=torch.uint8)]), size)
