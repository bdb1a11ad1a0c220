r"""Kikuchi's cluster variation on the square lattice: plaquettes instead of the pairs of Bethe.

$$ f = \min_{p_4} \Big[ u - T\,(S_4 - 2 S_2 + S_1) \Big], \qquad
   \log p_4 = \lambda - \beta E_4 + \tfrac12 \sum_{\text{4 links}} \log p_2 - \tfrac14 \sum_{\text{4 sites}} \log p_1 $$

with S_4, S_2, S_1 the entropies of a plaquette, a link and a site, of which a site has 1, 2 and 1, counted once less
what the larger clusters count (Kikuchi 1951, Phys. Rev. 81, 988). The second equation, repeated, is his natural
iteration (1974, J. Chem. Phys. 60, 1071): the free energy falls at every step. The homogeneous state of
H = -J sum ss' - h sum s is found; T_c = 2.4257, against 2.885 of Bethe, 4 of naive mean field, and 2.269.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from mfmarl.statmech import check
from mfmarl.statmech.exact import enumeration
from mfmarl.statmech.mean_field import self_consistent

_LINKS = ((0, 1), (1, 2), (2, 3), (3, 0))


class Plaquette(NamedTuple):
    """The homogeneous state, per site."""

    free_energy: Tensor
    energy: Tensor
    magnetisation: Tensor
    probabilities: Tensor
    """p_4 [16] of the four spins round a plaquette, numbered as `exact.enumeration` does."""
    converged: Tensor


def square_lattice(
    temperature: float,
    coupling: float = 1.0,
    field: float = 0.0,
    *,
    start: float = 0.9,
    steps: int = 100_000,
    tolerance: float = 1e-12,
) -> Plaquette:
    """The fixed point reached from independent spins of magnetisation `start`."""
    check.temperature(temperature, positive=True)
    states = enumeration.spins(4).states()
    energy = _energy(states, coupling, field)
    begin = torch.log((1 + start * states) / 2).sum(-1)
    found = self_consistent.solve(
        lambda log_p: step(log_p, temperature, coupling, field),
        torch.log_softmax(begin, -1),
        share=1.0,
        steps=steps,
        tolerance=tolerance,
        memory=5 if start else 0,
    )
    log_p = found.point - torch.logsumexp(found.point, -1)
    p = log_p.exp()
    log_pair, log_site = _marginals(log_p)
    entropy = -(p * log_p).sum() + 2 * (log_pair.exp() * log_pair).sum() - (log_site.exp() * log_site).sum()
    u = (p * energy).sum()
    m = (p * states.mean(-1)).sum()
    return Plaquette(u - temperature * entropy, u, m, p, found.converged)


def step(log_p: Tensor, temperature: float, coupling: float = 1.0, field: float = 0.0) -> Tensor:
    """One natural iteration of log p_4 [16]."""
    states = enumeration.spins(4).states()
    log_pair, log_site = _marginals(log_p)
    up = (states > 0).long()
    links = torch.stack([log_pair[up[:, i], up[:, j]] for i, j in _LINKS]).sum(0)
    sites = log_site[up].sum(-1)
    return torch.log_softmax(-_energy(states, coupling, field) / temperature + links / 2 - sites / 4, -1)


def critical_temperature(coupling: float = 1.0) -> float:
    """Where the disordered state turns unstable."""
    low, high = 2.0, 3.0
    for _ in range(40):
        middle = (low + high) / 2
        still = square_lattice(middle, start=0.0).probabilities.log()
        unstable = float(self_consistent.growth(lambda x, t=middle: step(x, t), still)) > 1  # type: ignore[misc]
        low, high = (middle, high) if unstable else (low, middle)
    return coupling * (low + high) / 2


def _energy(states: Tensor, coupling: float, field: float) -> Tensor:
    """Energy per plaquette, that is per site: each link is half this one's, each spin a quarter."""
    links = torch.stack([states[:, i] * states[:, j] for i, j in _LINKS]).sum(0)
    return -coupling / 2 * links - field / 4 * states.sum(-1)


def _marginals(log_p: Tensor) -> tuple[Tensor, Tensor]:
    """log p_2 [2, 2] and log p_1 [2], averaged over the four links and sites."""
    p = torch.softmax(log_p, -1).reshape(2, 2, 2, 2)
    pair = (p.sum((2, 3)) + p.sum((0, 3)) + p.sum((0, 1)) + p.sum((1, 2)).T) / 4
    pair = (pair + pair.T) / 2
    return pair.clamp(min=1e-300).log(), pair.sum(0).clamp(min=1e-300).log()
