r"""Belief propagation on pairwise graphs: the Bethe approximation, exact on trees.

$$ \mu_{i \to j}(b) \propto \sum_a e^{\psi_{ij}(a, b) + \phi_i(a)} \prod_{k \in \partial i \setminus j} \mu_{k \to i}(a), \qquad
   \log Z_{\mathrm{Bethe}} = \sum_{\langle ij \rangle} \langle \psi_{ij} - \log b_{ij} \rangle_{b_{ij}}
   + \sum_i \langle \phi_i - (1 - d_i) \log b_i \rangle_{b_i} $$

with psi and phi minus beta times the energies of a pair and of a site, b the beliefs, d_i a site's degree (Bethe 1935;
Pearl 1988; Yedidia, Freeman and Weiss 2005, IEEE Trans. Inf. Theory 51, 2282). Fixed points are the stationary
points of the Bethe free energy, which is no bound. On a graph with loops there may be several, or the messages may
not settle: look at `converged`. On the square lattice it orders below T = 2/ln 2 = 2.885 (exact: 2.269).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from mfmarl import random
from mfmarl.errors import ConfigError
from mfmarl.random import Key
from mfmarl.statmech import check
from mfmarl.statmech.energies.potts import Potts
from mfmarl.statmech.energies.spins import Ising
from mfmarl.statmech.mean_field import self_consistent


class Beliefs(NamedTuple):
    """What the messages say at their fixed point; [*d] instances of the disorder."""

    site: Tensor
    """b_i(a) [*d, n, q]."""
    pair: Tensor
    """b_ij(a, b) [*d, M, q, q] of every pair."""
    log_partition: Tensor
    """Bethe's log Z [*d]."""
    converged: Tensor
    """[*d] bool."""


def propagate(
    system: Ising | Potts,
    beta: float,
    *,
    start: Tensor | None = None,
    share: float = 1.0,
    steps: int = 2_000,
    tolerance: float = 1e-11,
    nudge: float = 0.1,
) -> Beliefs:
    """Beliefs of an Ising system (q = 2: down, up) or a Potts system.

    `share` < 1 damps the messages. They begin from `start` [*d, 2 M, q] (logarithms: M along the pairs, M against),
    or at random within `nudge`, the first state favoured, so that a broken symmetry shows.
    """
    check.inverse_temperature(beta)
    if not math.isfinite(beta):
        raise ConfigError("Belief propagation needs a finite beta.")
    site, pair = _log_factors(system, beta)
    pairs, (n, q), edges = system.pairs, site.shape[-2:], 2 * len(system.pairs)
    lead = torch.broadcast_shapes(site.shape[:-2], pair.shape[:-3])
    source, target = torch.cat([pairs[:, 0], pairs[:, 1]]), torch.cat([pairs[:, 1], pairs[:, 0]])
    back = torch.arange(edges).roll(len(pairs))
    # [a, b]: a at the source, b at the target.
    factor = torch.cat([pair, pair.mT], -3)

    def gathered(messages: Tensor) -> Tensor:
        return site.expand(*lead, n, q).index_add(-2, target, messages)

    def cavity(messages: Tensor) -> Tensor:
        return gathered(messages)[..., source, :] - messages[..., back, :]

    def update(flat: Tensor) -> Tensor:
        messages = flat.unflatten(-1, (edges, q))
        new = torch.logsumexp(factor + cavity(messages).unsqueeze(-1), -2)
        return (new - torch.logsumexp(new, -1, keepdim=True)).flatten(-2)

    if start is None:
        noise = random.uniform(Key.of(0), torch.arange(edges * q).reshape(edges, q)).double()
        noise[:, -1] += 1
        start = torch.log_softmax(nudge * noise, -1)
    if edges == 0:
        belief = torch.softmax(site, -1)
        return Beliefs(belief, pair.expand(*lead, 0, q, q), torch.logsumexp(site, -1).sum(-1), torch.ones(lead) > 0)
    found = self_consistent.solve(
        update, start.double().expand(*lead, edges, q).flatten(-2), share=share, steps=steps, tolerance=tolerance
    )
    messages = update(found.point).unflatten(-1, (edges, q))
    log_site = torch.log_softmax(gathered(messages), -1)
    outgoing = cavity(messages)
    log_pair = pair + outgoing[..., : len(pairs), :, None] + outgoing[..., len(pairs) :, None, :]
    log_pair = log_pair - torch.logsumexp(log_pair.flatten(-2), -1)[..., None, None]
    degree = torch.bincount(source, minlength=n).double()
    of_pairs = (log_pair.exp() * (pair - log_pair)).sum((-1, -2, -3))
    of_sites = (log_site.exp() * (site - (1 - degree).unsqueeze(-1) * log_site)).sum((-1, -2))
    return Beliefs(log_site.exp(), log_pair.exp(), of_pairs + of_sites, found.converged)


def magnetisation(beliefs: Beliefs) -> Tensor:
    """<s_i> [*d, n] of an Ising system's beliefs."""
    return beliefs.site[..., 1] - beliefs.site[..., 0]


def critical_temperature(system: Ising, low: float = 0.05, high: float = 50.0) -> float:
    """Below this temperature the messages of a system without fields leave the paramagnet: the spectral radius of
    tanh(beta J) on the non-backtracking walks reaches 1 (one instance). 2/ln(z/(z - 2)) for a ferromagnet of degree z.
    """
    if system.couplings.ndim != 1 or bool((system.fields != 0).any()):
        raise ConfigError("A critical temperature is of one instance without fields.")
    source = torch.cat([system.pairs[:, 0], system.pairs[:, 1]])
    target = torch.cat([system.pairs[:, 1], system.pairs[:, 0]])
    # u_{k -> i} enters u_{i -> j} unless j = k.
    walk = (target.unsqueeze(0) == source.unsqueeze(1)) & (source.unsqueeze(0) != target.unsqueeze(1))
    strength = torch.cat([system.couplings, system.couplings]).double()

    def radius(temperature: float) -> float:
        step = torch.tanh(strength / temperature).unsqueeze(-1) * walk.double()
        return float(torch.linalg.eigvals(step).real.max())

    if radius(low) < 1 or radius(high) > 1:
        raise ConfigError(f"Belief propagation finds no transition between T = {low:g} and {high:g}.")
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if radius(middle) > 1 else (low, middle)
    return (low + high) / 2


def _log_factors(system: Ising | Potts, beta: float) -> tuple[Tensor, Tensor]:
    """phi [*d, n, q] and psi [*d, M, q, q]."""
    j = system.couplings.double()[..., None, None] * beta
    if isinstance(system, Potts):
        return beta * system.fields.double(), j * torch.eye(system.num_states, dtype=torch.float64)
    spin = torch.tensor([-1.0, 1.0], dtype=torch.float64)
    return beta * system.fields.double().unsqueeze(-1) * spin, j * spin.unsqueeze(-1) * spin
