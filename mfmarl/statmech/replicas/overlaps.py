r"""Overlaps: how alike two copies of the same system are, and what their distribution says.

$$ q_{ab} = \frac1n \sum_i s_i^a s_i^b, \qquad P(q) = \sum_{s, s'} p(s)\, p(s')\, \delta(q - q_{ss'}), \qquad
   \langle q^2 \rangle = \frac{1}{n^2} \sum_{ij} \langle s_i s_j \rangle^2, \qquad
   q^{\mathrm{link}} = \frac1M \sum_{\langle ij \rangle} s_i^a s_j^a s_i^b s_j^b $$

One narrow peak: one state, or one and its mirror image. Weight over a range: many states that have little in common
(Parisi 1983, Phys. Rev. Lett. 50, 1946). The exact P(q) of a small system is a convolution over the group of flips,
done by the Walsh-Hadamard transform in O(n 2^n). The same numbers compare policies and networks: replicas in general.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mfmarl.errors import ConfigError


def overlap_matrix(states: Tensor) -> Tensor:
    """q_ab [*b, R, R] of R replicas' spins or averages [*b, R, n]."""
    return states @ states.mT / states.shape[-1]


def link_overlap_matrix(states: Tensor, pairs: Tensor) -> Tensor:
    """The same over the bonds [M, 2], [*b, R, R]: domain walls, not the size of flipped domains, lower it."""
    bonds = states[..., pairs[:, 0]] * states[..., pairs[:, 1]]
    return bonds @ bonds.mT / len(pairs)


def cosine_matrix(weights: Tensor) -> Tensor:
    """The overlaps [*b, R, R] of R vectors [*b, R, n] of any length: 1 on the diagonal."""
    unit = weights / weights.norm(dim=-1, keepdim=True).clamp(min=1e-300)
    return unit @ unit.mT


def policy_overlap_matrix(policies: Tensor) -> Tensor:
    """<sum_a pi(a) pi'(a)>, averaged over the situations, [*b, R, R] of R policies [*b, R, S, A].

    Two draws from them agree with this probability: the diagonal is below 1 for policies that are not certain.
    """
    flat = policies.flatten(-2)
    return flat @ flat.mT / policies.shape[-2]


def off_diagonal(overlaps: Tensor) -> Tensor:
    """Each pair of different replicas once, [*b, R (R - 1)/2]."""
    row, column = torch.triu_indices(overlaps.shape[-1], overlaps.shape[-1], 1)
    return overlaps[..., row, column]


def histogram(overlaps: Tensor, num_spins: int) -> tuple[Tensor, Tensor]:
    """The n + 1 possible overlaps of n spins, rising, and the share [..., n + 1] of each among `overlaps` [..., P]."""
    agreeing = ((overlaps + 1) * num_spins / 2).round().to(torch.int64)
    if not bool(((agreeing >= 0) & (agreeing <= num_spins)).all()):
        raise ConfigError("Overlaps of spins lie in [-1, 1].")
    counts = torch.nn.functional.one_hot(agreeing, num_spins + 1).double().mean(-2)
    return _values(num_spins), counts


def overlap_distribution(probabilities: Tensor) -> tuple[Tensor, Tensor]:
    """The n + 1 possible overlaps, rising, and P(q) [*d, n + 1] of two independent copies, exactly.

    `probabilities` [*d, 2^n] are those of all states as `exact.enumeration.probabilities` numbers them.
    """
    size = probabilities.shape[-1]
    n = size.bit_length() - 1
    if size != 2**n or n < 1:
        raise ConfigError(f"A distribution over spins has 2^n probabilities, not {size}.")
    # c(flips) = sum_s p(s) p(s with these spins flipped), by the convolution theorem.
    flips = _walsh_hadamard(_walsh_hadamard(probabilities.double(), n) ** 2, n) / size
    number, differing = torch.arange(size), torch.zeros(size, dtype=torch.int64)
    for spin in range(n):
        differing += (number >> spin) & 1
    zeros = torch.zeros(*probabilities.shape[:-1], n + 1, dtype=torch.float64)
    return _values(n), zeros.index_add(-1, n - differing, flips).clamp(min=0)


def second_moment(pair: Tensor) -> Tensor:
    """<q^2> [*d] from the correlations <s_i s_j> [*d, n, n]."""
    return pair.square().mean((-1, -2))


def _values(n: int) -> Tensor:
    return torch.arange(n + 1, dtype=torch.float64) * 2 / n - 1


def _walsh_hadamard(x: Tensor, n: int) -> Tensor:
    for spin in range(n):
        down, up = x.unflatten(-1, (2**spin, 2, -1)).unbind(-2)
        x = torch.stack([down + up, down - up], -2).flatten(-3)
    return x
