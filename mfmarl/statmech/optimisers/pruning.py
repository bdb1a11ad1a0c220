r"""Neural annealing: pruning by slow cooling, masks that are accepted by temperature.

$$ H(m) = L(m \odot \theta) + \lambda |m|, \qquad P(\text{accept } m') = \min(1, e^{-(H(m') - H(m))/T}) $$

A move flips one entry of a mask (or, at a fixed size, exchanges one kept for one dropped): the Metropolis chain of
exp(-H/T) over the 2^d masks (Kirkpatrick, Gelatt and Vecchi 1983; for feature selection George and McCulloch 1993).
Cooling slowly freezes it into the best subset; up to about twelve features `exhaustive` says whether it did.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from mfmarl import random
from mfmarl.errors import ConfigError
from mfmarl.random import Key
from mfmarl.statmech import check
from mfmarl.statmech.annealing.schedule import Schedule
from mfmarl.statmech.optimisers.noise import at_least

MaskEnergy = Callable[[Tensor], Tensor]
"""H: bool masks [*b, d] -> energies [*b]."""


class Pruned(NamedTuple):
    mask: Tensor
    """The last masks, bool [*b, d]."""
    energy: Tensor
    """[*b]."""
    best_mask: Tensor
    """The best each chain has seen, bool [*b, d]."""
    best_energy: Tensor
    """[*b]."""
    acceptance: float
    """Share of the moves accepted, over all steps."""


def anneal_masks(
    energy: MaskEnergy,
    masks: Tensor,
    temperature: float | Schedule,
    steps: int,
    key: Key,
    *,
    keep_size: bool = False,
    ids: Tensor | None = None,
) -> Pruned:
    """`steps` moves of every chain from `masks` [*b, d] while the temperature follows its schedule.

    `keep_size` exchanges a kept entry for a dropped one, so that |m| stays. A chain depends on its id alone.
    """
    if masks.dtype != torch.bool or masks.ndim < 1:
        raise ConfigError(f"Masks must be bool [..., d], not {masks.dtype} {list(masks.shape)}.")
    at_least("The number of steps", steps, 1)
    size = masks.sum(-1)
    if keep_size and bool(((size == 0) | (size == masks.shape[-1])).any()):
        raise ConfigError("At a fixed size, a mask must keep something and drop something.")
    ids = torch.arange(size.numel(), device=masks.device).reshape(size.shape) if ids is None else ids
    m, h = masks.clone(), energy(masks)
    check.finite(h, "The energy of the first masks")
    best_m, best_h, accepted = m.clone(), h.clone(), torch.zeros((), device=masks.device)
    for step in range(steps):
        now = temperature.at(step / max(steps - 1, 1)) if isinstance(temperature, Schedule) else temperature
        check.temperature(now)
        noise = random.uniform(key.fold("mask", step), ids, 3)
        flip = torch.zeros_like(m)
        if keep_size:
            flip.scatter_(-1, _pick(m, noise[..., 0]), True)
            flip.scatter_(-1, _pick(~m, noise[..., 1]), True)
        else:
            flip.scatter_(-1, _pick(torch.ones_like(m), noise[..., 0]), True)
        proposed = m ^ flip
        after = energy(proposed)
        worse = after - h
        accept = worse <= 0 if now == 0 else noise[..., 2].log().to(worse) * -now > worse
        m = torch.where(accept.unsqueeze(-1), proposed, m)
        h = torch.where(accept, after, h)
        better = h < best_h
        best_m, best_h = torch.where(better.unsqueeze(-1), m, best_m), torch.where(better, h, best_h)
        accepted += accept.to(accepted).mean()
    return Pruned(m, h, best_m, best_h, float(accepted) / steps)


def _pick(allowed: Tensor, level: Tensor) -> Tensor:
    """The place of one allowed entry, all equally likely, int64 [*b, 1]."""
    count = allowed.sum(-1)
    rank = (level * count).floor().clamp_(max=count - 1)  # a level next to 1 may round up to it
    return ((allowed.cumsum(-1) > rank.unsqueeze(-1)) & allowed).to(torch.uint8).argmax(-1, keepdim=True)


def all_masks(features: int) -> Tensor:
    """The 2^d masks, bool [2^d, d]; d <= 20."""
    if not 1 <= features <= 20:
        raise ConfigError(f"All masks of {features} features are too many or none: 1 to 20.")
    return (torch.arange(1 << features).unsqueeze(-1) >> torch.arange(features) & 1).bool()


def exhaustive(energy: MaskEnergy, features: int, size: int | None = None) -> tuple[Tensor, Tensor]:
    """The best mask bool [d] (of that size) and its energy [], over all of them."""
    masks = all_masks(features)
    if size is not None:
        masks = masks[masks.sum(-1) == size]
        if not len(masks):
            raise ConfigError(f"No mask of {features} features keeps {size}.")
    values = energy(masks)
    where = values.argmin()
    return masks[where], values[where]


def pruned_loss(energy: Callable[[Tensor], Tensor], weights: Tensor, penalty: float = 0.0) -> MaskEnergy:
    """H(m) = L(m * weights) + penalty |m| of masks [*b, d], for an energy over flat weights [*b, d]."""
    at_least("A penalty", penalty)

    def masked(masks: Tensor) -> Tensor:
        return energy(weights * masks) + penalty * masks.sum(-1)

    return masked


def subset_regression(inputs: Tensor, targets: Tensor, penalty: float = 0.0) -> MaskEnergy:
    """H(m) = the least sum of squares of a regression [n, d] on the kept columns + penalty |m|: best-subset selection.

    The refitting network in the small: its weights are at their optimum for every mask.
    """
    at_least("A penalty", penalty)
    gram, cross, total = inputs.mT @ inputs, inputs.mT @ targets, targets @ targets
    eye = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
    if int(torch.linalg.matrix_rank(gram)) < len(gram):
        raise ConfigError("Best-subset regression needs columns that are linearly independent.")

    def residual(masks: Tensor) -> Tensor:
        kept = masks.to(gram.dtype)
        # Dropped rows and columns become those of the identity: their coefficients are 0.
        system = gram * kept.unsqueeze(-1) * kept.unsqueeze(-2) + eye * (1 - kept).unsqueeze(-1)
        right = cross * kept
        return total - (right * torch.linalg.solve(system, right)).sum(-1) + penalty * kept.sum(-1)

    return residual
