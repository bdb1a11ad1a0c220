r"""The landscape of an energy: where its slope vanishes, what lies between two valleys, how it looks along a plane.

Stationary points x* with grad H = 0 are told apart by their index, the number of negative eigenvalues of the Hessian:
0 a minimum, 1 a saddle over which the easiest escape leads, n a maximum. They are found by Newton's method on the
gradient, which goes to whichever is near: minima need starts in their valleys, saddles starts between them.
Wales 2003, "Energy landscapes"; slices with directions of the weights' own size: Li et al. 2018 (arXiv 1712.09913).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from mfmarl.errors import ConfigError
from mfmarl.statmech.energies.energy import Energy


class StationaryPoints(NamedTuple):
    """S points of zero slope, by rising energy."""

    points: Tensor
    """[S, n]."""
    energies: Tensor
    """[S]."""
    order: Tensor
    """The index: negative directions, int64 [S]."""
    curvatures: Tensor
    """Eigenvalues of the Hessian [S, n], rising."""


def stationary_points(
    energy: Energy, starts: Tensor, *, steps: int = 200, tolerance: float = 1e-8, distance: float = 1e-4
) -> StationaryPoints:
    """What Newton's method reaches from starts [S, n], each point once (nearer than `distance` is the same).

    Steps are no longer than 1 and halve |grad H| or are cut. Starts that reach nothing are left out; there may be none.
    """
    if starts.ndim != 2 or not len(starts):
        raise ConfigError(f"Starts must be [S, n] with S at least 1, not {list(starts.shape)}.")
    slope, curve = torch.func.grad(energy), torch.func.hessian(energy)
    slopes, curves = torch.func.vmap(slope), torch.func.vmap(curve)
    x = starts.detach().double()
    for _ in range(steps):
        g = slopes(x)
        if bool((g.abs().amax(-1) < tolerance).all()):
            break
        # A pseudo-inverse: flat directions are no reason to leave.
        move = -(torch.linalg.pinv(curves(x), hermitian=True, rtol=1e-10) @ g.unsqueeze(-1)).squeeze(-1)
        move = move / move.norm(dim=-1, keepdim=True).clamp(min=1)
        share, before = torch.ones_like(g[:, :1]), g.norm(dim=-1)
        for _ in range(30):
            worse = slopes(x + share * move).norm(dim=-1) > before
            if not bool(worse.any()):
                break
            share = torch.where(worse.unsqueeze(-1), share / 2, share)
        x = x + share * move
    x = x[slopes(x).abs().amax(-1) < max(tolerance, 1e-12) * 10]
    kept: list[Tensor] = []
    for point in x[energy(x).argsort()] if len(x) else []:
        if all(float((point - other).norm()) > distance for other in kept):
            kept.append(point)
    points = torch.stack(kept) if kept else x[:0]
    curvatures = torch.linalg.eigvalsh(curves(points)) if kept else x[:0]
    return StationaryPoints(points, energy(points), (curvatures < 0).sum(-1), curvatures)


def along(energy: Energy, start: Tensor, end: Tensor, points: int = 101) -> tuple[Tensor, Tensor]:
    """Positions in [0, 1] and energies [points, *b] on the straight line between states [*b, n]."""
    where = torch.linspace(0, 1, points, dtype=torch.float64)
    line = where.view(-1, *[1] * start.ndim)
    return where, energy((1 - line) * start + line * end)


def barrier(energy: Energy, start: Tensor, end: Tensor, points: int = 101) -> Tensor:
    """How far the straight line rises above the higher of its ends, [*b]: an upper bound of the real barrier; 0 if it does not.

    Of the loss of two trained networks it says whether they lie in one valley (linear mode connectivity).
    """
    heights = along(energy, start, end, points)[1]
    return (heights.amax(0) - torch.maximum(heights[0], heights[-1])).clamp(min=0)


def plane(
    energy: Energy, centre: Tensor, directions: Tensor, reach: float = 1.0, points: int = 41
) -> tuple[Tensor, Tensor]:
    """Positions [points] and energies [points, points] at centre [n] + a d_1 + b d_2, `directions` [2, n]; or [points] of one."""
    if directions.ndim != 2 or len(directions) not in (1, 2) or directions.shape[-1] != centre.shape[-1]:
        raise ConfigError(f"Directions must be [1 or 2, {centre.shape[-1]}], not {list(directions.shape)}.")
    where = torch.linspace(-reach, reach, points, dtype=directions.dtype)
    grid = torch.cartesian_prod(*[where] * len(directions)).reshape(-1, len(directions))
    return where, energy(centre + grid @ directions).reshape(*[points] * len(directions))
