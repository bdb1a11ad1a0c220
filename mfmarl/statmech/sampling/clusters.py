r"""Swendsen-Wang and Wolff: whole clusters of agreeing sites move at once, so that T_c does not slow the chain.

A pair that is content (J s s' > 0; Potts: k = k') is joined with probability

$$ p_{ij} = 1 - e^{-2 \beta |J_{ij}|} \quad \text{(Potts: } 1 - e^{-\beta J_{ij}} \text{)}, \qquad
   P(\text{cluster } c \text{ turns}) = \sigma\Bigl(-2 \beta \sum_{i \in c} h_i s_i\Bigr) $$

and each cluster then draws its state from its Gibbs distribution in the fields: evenly where there are none (Fortuin
and Kasteleyn 1972; Swendsen and Wang 1987, Phys. Rev. Lett. 58, 86). Wolff (1989, Phys. Rev. Lett. 62, 361) turns the
one cluster of a spin drawn at random, with probability min(1, e^{-2 beta sum h s}).

Both are exact for any couplings, but where these are frustrated the clusters span the system before it orders and
nothing is gained: frustrated couplings are refused. Unfrustrated negative ones (an antiferromagnet on a bipartite
graph) are ferromagnets in disguise and are welcome. Components are found on the CPU by scipy for all chains at once;
memory is some 40 bytes per pair and chain.
"""

from __future__ import annotations

import numpy as np
import torch
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from mfmarl import random
from mfmarl.errors import ConfigError
from mfmarl.random import Key
from mfmarl.statmech import check
from mfmarl.statmech.energies.potts import Potts
from mfmarl.statmech.energies.spins import Ising
from mfmarl.statmech.sampling.chains import Sweep
from mfmarl.statmech.sampling.single_spin import state_probabilities, up_probability


def swendsen_wang(system: Ising) -> Sweep:
    """Every cluster drawn anew, [*b, n]. Raises ConfigError if the couplings are frustrated."""
    refuse_frustration(system)

    def sweep(s: Tensor, beta: float | Tensor, ids: Tensor, key: Key) -> Tensor:
        check.spins(s, system.num_spins)
        roots = _spin_clusters(system, s, beta, ids, key)
        pull = torch.zeros_like(roots, dtype=system.fields.dtype)
        pull = pull.scatter_add(-1, roots, (s * system.fields).expand(roots.shape))
        # The noise of a cluster is that of its first site.
        stay = random.uniform(key.fold("turn"), ids, system.num_spins) < up_probability(pull, beta)
        return torch.where(stay.gather(-1, roots), s, -s)

    return sweep


def wolff(system: Ising) -> Sweep:
    """The cluster of one spin turned, [*b, n]. Raises ConfigError if the couplings are frustrated.

    All clusters are found, though one is used: a step costs as much as one of `swendsen_wang` and does less, except
    that the cluster is drawn in proportion to its size. For comparison, and for what is known of it.
    """
    refuse_frustration(system)

    def sweep(s: Tensor, beta: float | Tensor, ids: Tensor, key: Key) -> Tensor:
        check.spins(s, system.num_spins)
        roots = _spin_clusters(system, s, beta, ids, key)
        seed = random.integers(key.fold("seed"), ids, system.num_spins).unsqueeze(-1)
        cluster = roots == roots.gather(-1, seed)
        pull = (cluster * s * system.fields).sum(-1, keepdim=True)
        beta = beta.unsqueeze(-1) if isinstance(beta, Tensor) and beta.ndim else beta
        chance = torch.exp((-2 * beta * pull).nan_to_num(0.0, torch.inf, -torch.inf))
        turn = random.uniform(key.fold("turn"), ids).unsqueeze(-1) < chance
        return torch.where(cluster & turn, -s, s)

    return sweep


def potts_swendsen_wang(system: Potts) -> Sweep:
    """Every cluster drawn anew, int64 [*b, n]. Raises ConfigError if a coupling is negative."""
    if bool((system.couplings < 0).any()):
        raise ConfigError("Clusters of Potts states need couplings of at least 0: use potts_heat_bath for others.")

    def sweep(k: Tensor, beta: float | Tensor, ids: Tensor, key: Key) -> Tensor:
        system.check_states(k)
        same = k[..., system.pairs[:, 0]] == k[..., system.pairs[:, 1]]
        roots = _clusters(system.pairs, system.num_sites, same, system.couplings, beta, ids, key)
        gain = system.fields.new_zeros(*roots.shape, system.num_states)
        index = roots.unsqueeze(-1).expand(gain.shape)
        below = state_probabilities(gain.scatter_add(-2, index, system.fields.expand(gain.shape)), beta).cumsum(-1)
        noise = random.uniform(key.fold("turn"), ids, system.num_sites).unsqueeze(-1)
        return (noise * below[..., -1:] >= below).sum(-1).gather(-1, roots)

    return sweep


def refuse_frustration(system: Ising) -> None:
    """Raises ConfigError if some closed path of couplings cannot be content all along, in any realisation [*d]."""
    n = system.num_spins
    couplings = system.couplings.reshape(-1, len(system.pairs)).cpu().numpy()
    first, second = system.pairs.cpu().numpy().T
    for strength in couplings:
        # Two copies of each site, linked across where J < 0: a site that reaches its own twin sits on a frustrated path.
        across = n * (strength < 0)
        source = np.concatenate([first, first + n])[np.tile(strength != 0, 2)]
        target = np.concatenate([second + across, second + n - across])[np.tile(strength != 0, 2)]
        _, label = connected_components(coo_array((np.ones(len(source), np.int8), (source, target)), (2 * n, 2 * n)))
        twins = (label[:n] == label[n:]).nonzero()[0]
        if len(twins):
            raise ConfigError(
                f"The couplings are frustrated (a closed path through spin {twins[0]} cannot satisfy them all): "
                "cluster moves gain nothing there; use heat_bath or parallel_tempering."
            )


def _spin_clusters(system: Ising, s: Tensor, beta: float | Tensor, ids: Tensor, key: Key) -> Tensor:
    content = s[..., system.pairs[:, 0]] * s[..., system.pairs[:, 1]] * system.couplings > 0
    return _clusters(system.pairs, system.num_spins, content, 2 * system.couplings.abs(), beta, ids, key)


def _clusters(
    pairs: Tensor, num_sites: int, may_join: Tensor, strength: Tensor, beta: float | Tensor, ids: Tensor, key: Key
) -> Tensor:
    """The first site of the cluster of each site, int64 [*b, n], where pairs [*b, M] are joined with 1 - e^(-beta J)."""
    beta = beta.unsqueeze(-1) if isinstance(beta, Tensor) and beta.ndim else beta
    chance = -torch.expm1(-(beta * strength).nan_to_num(0.0, torch.inf))
    joined = may_join & (random.uniform(key.fold("join"), ids, len(pairs)) < chance)
    batch = joined.shape[:-1]
    chain, pair = joined.reshape(-1, len(pairs)).nonzero(as_tuple=True)
    offset = chain * num_sites
    source, target = ((pairs[pair, end] + offset).cpu().numpy() for end in (0, 1))
    size = batch.numel() * num_sites
    graph = coo_array((np.ones(len(source), np.int8), (source, target)), (size, size))
    count, label = connected_components(graph, directed=False)
    label = torch.from_numpy(label.astype(np.int64))
    site = torch.arange(size)
    root = torch.full((count,), size).scatter_reduce_(0, label, site, "amin")
    return (root[label] % num_sites).reshape(*batch, num_sites).to(joined.device)
