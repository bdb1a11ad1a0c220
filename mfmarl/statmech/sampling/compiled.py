r"""Heat bath and Metropolis as compiled loops: many times faster than in torch, on the CPU, with numba.

Needs the extra `fast` (`pip install 'mfmarl[fast]'`); compiling takes seconds on first use in a process. Spins go in
and come out as in torch; between, they are bits or bytes. The laws are those of `single_spin`; the noise is another.

| function | systems | state while it runs | chances met to |
|---|---|---|---|
| `torus_sweeps` | square lattice, J = 1, side a multiple of 128 | 1 bit per spin | 2^-32 |
| `packed_sweeps` | any graph with couplings of one size, many chains | 1 bit per spin | 2^-32 |
| `graph_sweeps` | any graph, couplings and fields in float32 | 1 byte per spin (and J where dense) | 2e-7 of each |

`graph_sweep` offers the last as a `Sweep`. With fewer than some 500 chains it is also the faster of the last two.

In each, what a chain does depends on the key, its id and its own betas, and not on how many others there are. A key
serves one call: give the next call another. Sites are visited in order of their number (colour by colour on the
square lattice), so a sweep is stationary but not reversible.
"""

from __future__ import annotations

from types import ModuleType
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mfmarl import random
from mfmarl.errors import ConfigError
from mfmarl.random import Key
from mfmarl.statmech import check
from mfmarl.statmech.energies.spins import Ising
from mfmarl.statmech.sampling.chains import Sweep, chain_ids
from mfmarl.statmech.sampling.single_spin import Rule


def torus_sweeps(
    s: Tensor, beta: float | Tensor, sweeps: int, key: Key, rule: Rule = "heat_bath", ids: Tensor | None = None
) -> Tensor:
    """The ferromagnet H = -sum s_i s_j on the torus, spins [*b, L, L] with L a multiple of 128: `sweeps` of them all.

    beta is a number or broadcasts against the chains [*b], and may be inf. 64 segments of the rows share a word
    (multi-spin coding: Zorn, Herrmann and Rebbi 1981, Comput. Phys. Commun. 23, 337), compared bit by bit with the
    two chances that are not 1/2. Raises ConfigError for other shapes.
    """
    kernels = _kernels()
    metropolis = _check_rule(rule)
    if s.ndim < 2 or s.shape[-1] != s.shape[-2] or s.shape[-1] % 128 or not s.shape[-1]:
        raise ConfigError(f"Spins of a packed torus must be [..., L, L] with L a multiple of 128, not {list(s.shape)}.")
    check.spins(s, s.shape[-1])
    check.inverse_temperature(beta)
    if sweeps < 0:
        raise ConfigError(f"The number of sweeps must be at least 0, not {sweeps}.")
    batch, side = s.shape[:-2], s.shape[-1]
    ids = (chain_ids(batch) if ids is None else ids).reshape(-1)
    betas = torch.as_tensor(beta, dtype=torch.float64).expand(batch).reshape(-1)
    out = s.reshape(-1, side, side).to(torch.int8).numpy(force=True).copy()
    words = np.empty((2, side // 64, side // 2), np.uint64)
    for chain in range(len(out)):
        seeds = _seeds(key.fold("torus", int(ids[chain])), torch.arange(side // 2), 2)
        chances = _chances(torch.tensor([8.0, 4.0], dtype=torch.float64) * betas[chain], metropolis)
        kernels.pack_torus(out[chain], words)
        kernels.torus(words, sweeps, _threshold_bits(kernels, chances), metropolis, seeds)
        kernels.unpack_torus(words, out[chain])
    return torch.from_numpy(out).reshape(s.shape).to(s.dtype).to(s.device)


def packed_sweeps(
    system: Ising, s: Tensor, betas: Tensor, key: Key, rule: Rule = "heat_bath", ids: Tensor | None = None
) -> Tensor:
    """A sweep of all chains s [*b, n] at each of `betas` [sweeps], for couplings of +J and -J on any graph.

    Chain i is bit i % 64 of word i // 64 of its ids (default 0, 1, ...): fastest where ids are consecutive and there
    are 512 chains or more. Raises ConfigError for couplings of several sizes or of several realisations; `graph_sweeps`
    takes these. Fields may differ from site to site (heat bath only), at a cost for each different value.
    """
    kernels = _kernels()
    metropolis = _check_rule(rule)
    check.spins(s, system.num_spins)
    if betas.ndim != 1:
        raise ConfigError(f"Betas of packed chains are one per sweep, [sweeps], not {list(betas.shape)}.")
    if not len(betas) or not s.numel():
        return s.clone()
    check.inverse_temperature(betas)
    if system.couplings.ndim != 1 or system.fields.ndim != 1:
        raise ConfigError("Packed chains share one realisation of the couplings; `graph_sweeps` takes several.")
    strength = system.couplings.abs()
    size = float(strength.max()) if len(strength) else 0.0
    if bool((strength != size).any()):
        raise ConfigError("Packed chains need couplings of one size, +J or -J; `graph_sweeps` takes any.")
    if metropolis and bool((system.fields != 0).any()):
        raise ConfigError("Packed chains in fields take the rule 'heat_bath' only.")
    near, degree = _graph(system)
    degrees = torch.from_numpy(degree).double()
    kinds, kind = torch.unique(torch.stack([degrees, system.fields.double()], -1), dim=0, return_inverse=True)
    costs: list[Tensor] = []
    starts = [0]
    pick = np.full((len(kinds), near.shape[1] + 1), kernels.NEVER, np.int64)
    invert = np.zeros(pick.shape, np.uint64)
    for c, (links, field) in enumerate(kinds.tolist()):
        # Where k neighbours favour +1 (Metropolis: agree), half the cost of -1 (of the flip).
        gains = [size * (2 * k - links) + field for k in range(int(links) + 1)]
        sizes = sorted({abs(gain) for gain in gains if gain > 0 or (gain < 0 and not metropolis)})
        for k, gain in enumerate(gains):
            if metropolis and gain <= 0:
                invert[c, k] = _ONES  # not never: always
            elif gain == 0:
                pick[c, k] = kernels.COIN
            else:
                pick[c, k] = sizes.index(abs(gain))
                invert[c, k] = _ONES if gain > 0 and not metropolis else 0
        sizes += [0.0] * ((-len(sizes) % 3) if sizes else 3)
        costs += torch.tensor(sizes, dtype=torch.float64).reshape(-1, 3)
        starts.append(len(costs))
    cost = torch.stack(costs)
    ids = (chain_ids(s.shape[:-1]) if ids is None else ids).reshape(-1).cpu()
    numbers, which = torch.unique(ids >> 6, return_inverse=True)
    lanes = (which * 64 + (ids & 63)).numpy()
    states = s.reshape(-1, system.num_spins).to(torch.int8).numpy(force=True).copy()
    words = np.empty((system.num_spins, len(numbers)), np.uint64)
    kernels.pack_chains(states, lanes, words)
    flipped = np.where(system.neighbour_couplings.numpy(force=True) < 0, np.uint64(_ONES), np.uint64(0))
    seeds = _seeds(key.fold("packed"), numbers, 2)
    for part in betas.double().cpu().split(max(1, _THRESHOLDS // (cost.numel() * kernels.PLANES))):
        levels = part[:1] if bool((part == part[0]).all()) else part
        doubled = 2 * (levels.reshape(-1, 1, 1) * cost).nan_to_num(0.0, torch.inf)
        bits = _threshold_bits(kernels, _chances(doubled, metropolis))
        kernels.replicas(
            words,
            len(part),
            near,
            flipped,
            degree,
            kind.numpy(force=True),
            np.array(starts),
            bits,
            pick,
            invert,
            metropolis,
            seeds,
        )
    kernels.unpack_chains(words, lanes, states)
    return torch.from_numpy(states).reshape(s.shape).to(s.dtype).to(s.device)


def graph_sweeps(
    system: Ising, s: Tensor, betas: Tensor, key: Key, rule: Rule = "heat_bath", ids: Tensor | None = None
) -> Tensor:
    """A sweep of all chains s [*b, n] at each of `betas`: [sweeps], or [sweeps, *b] for a schedule of each chain's own.

    On sparse graphs 64 chains move side by side, each local field summed anew; where everyone meets everyone (64 spins
    or more) chains go one by one and a flip mends all fields, which cold chains seldom need. Realisations of the
    disorder [*d] broadcast against the chains as in torch.
    """
    return _graph_sweeps(
        _arrays(system), s, betas, key, _check_rule(rule), chain_ids(s.shape[:-1]) if ids is None else ids
    )


def graph_sweep(system: Ising, rule: Rule = "heat_bath", sweeps: int = 1) -> Sweep:
    """`sweeps` of `graph_sweeps` at a time as a sweep like any other: for tempering, annealing, importance sampling.

    Taking the spins apart and together again costs as much as some three sweeps, so more of them at a time cost less.
    """
    _kernels()
    arrays, metropolis = _arrays(system), _check_rule(rule)
    if sweeps < 1:
        raise ConfigError(f"The number of sweeps must be at least 1, not {sweeps}.")

    def sweep(s: Tensor, beta: float | Tensor, ids: Tensor, key: Key) -> Tensor:
        betas = torch.as_tensor(beta)
        return _graph_sweeps(arrays, s, betas.expand(sweeps, *betas.shape), key, metropolis, ids)

    return sweep


class _Arrays(NamedTuple):
    """A system as the loops read it: D realisations of the disorder [*d]."""

    disorder: torch.Size
    together: bool
    """Whether a flip mends all fields: `links` are matrices [D, n, n], else lists [D, n, K]."""
    fields: NDArray[np.float32]
    links: NDArray[np.float32]
    near: NDArray[np.uint32]
    degree: NDArray[np.int64]


def _arrays(system: Ising) -> _Arrays:
    n = system.num_spins
    disorder = torch.broadcast_shapes(system.couplings.shape[:-1], system.fields.shape[:-1])
    together = system.dense and n >= _DENSE
    links = system.matrix if together else system.neighbour_couplings
    links = links.float().expand(*disorder, *links.shape[-2:]).reshape(-1, *links.shape[-2:])
    fields = system.fields.float().expand(*disorder, n).reshape(-1, n)
    return _Arrays(disorder, together, fields.numpy(force=True), links.numpy(force=True), *_graph(system))


def _graph_sweeps(arrays: _Arrays, s: Tensor, betas: Tensor, key: Key, metropolis: bool, ids: Tensor) -> Tensor:
    kernels = _kernels()
    n, batch = arrays.fields.shape[-1], s.shape[:-1]
    check.spins(s, n)
    if betas.ndim < 1:
        raise ConfigError("Betas must be one per sweep, [sweeps] or [sweeps, *b], not a number.")
    if not len(betas) or not s.numel():
        return s.clone()
    check.inverse_temperature(betas)
    # One realisation after another, each with the chains that it meets.
    of = torch.arange(len(arrays.fields)).reshape(arrays.disorder).expand(batch).reshape(-1)
    betas = betas.reshape(len(betas), *[1] * (len(batch) + 1 - betas.ndim), *betas.shape[1:]).cpu()
    betas = betas.clamp(max=_COLDEST).float()
    alike = betas.numel() == len(betas)
    betas = betas.reshape(-1, 1) if alike else betas.expand(len(betas), *batch).reshape(len(betas), -1)
    states, ids = s.reshape(-1, n).to(torch.int8).cpu(), ids.reshape(-1).cpu()
    out = torch.empty_like(states)
    for d in range(len(arrays.fields)):
        mine: slice | Tensor = slice(None) if len(arrays.fields) == 1 else (of == d).nonzero().squeeze(-1)
        chains = states[mine]
        if not len(chains):
            continue
        seeds = _seeds(key.fold("graph"), ids[mine], 2).view(np.uint32)
        seeds = np.ascontiguousarray(seeds.reshape(2, -1, 2).transpose(0, 2, 1).reshape(4, -1))
        own = (betas if alike else betas[:, mine]).contiguous().numpy()
        field, strength = arrays.fields[d], arrays.links[d]
        if arrays.together:
            spins = chains.numpy().copy()
            kernels.dense(spins, field, strength, own, metropolis, seeds)
            out[mine] = torch.from_numpy(spins)
        else:
            spins = chains.T.numpy().copy("C")
            loop = kernels.sparse if len(chains) >= _FEW else kernels.sparse_alone
            loop(spins, field, arrays.near, strength, arrays.degree, own, metropolis, seeds)
            out[mine] = torch.from_numpy(spins).T.contiguous()
    return out.reshape(s.shape).to(s.dtype).to(s.device)


_ONES = (1 << 64) - 1
_COLDEST = 1e30  # beta = inf: finite, so that it times a field of 0 is 0
_THRESHOLDS = 1 << 22  # words of the bits of thresholds held at once: 32 MB
_FEW = 8  # chains below which they move one by one
_DENSE = 64  # spins from which on a flip that mends all fields beats summing each anew


def _graph(system: Ising) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
    """Neighbours of each spin first, then what fills the row, uint32 [n, K]; and degrees [n]."""
    degree = torch.bincount(system.pairs.flatten(), minlength=system.num_spins)
    return system.neighbours.numpy(force=True).astype(np.uint32), degree.numpy(force=True)


def _kernels() -> ModuleType:
    try:
        from mfmarl.statmech.sampling import kernels
    except ModuleNotFoundError as error:
        if error.name != "numba":
            raise
        raise ConfigError("Compiled sweeps need numba: pip install 'mfmarl[fast]'.") from None
    return kernels


def _check_rule(rule: Rule) -> bool:
    if rule not in ("heat_bath", "metropolis"):
        raise ConfigError(f"The rule of an update is 'heat_bath' or 'metropolis', not {rule!r}.")
    return rule == "metropolis"


def _chances(costs: Tensor, metropolis: bool) -> Tensor:
    """Of going against the field, at costs beta dH >= 0."""
    return torch.exp(-costs) if metropolis else torch.sigmoid(-costs)


def _threshold_bits(kernels: ModuleType, chances: Tensor) -> NDArray[np.uint64]:
    """[..., PLANES] words of all ones or zeros: the binary digits of the chances, lowest first."""
    one = 1 << kernels.PLANES
    whole = (chances * one).round().to(torch.int64).clamp(max=one - 1).unsqueeze(-1)
    digits = (whole >> torch.arange(kernels.PLANES)) & 1
    return (-digits).numpy().view(np.uint64)


def _seeds(key: Key, ids: Tensor, words: int) -> NDArray[np.uint64]:
    """[words, len(ids)] words of each id's own."""
    return torch.stack([random.bits(key.fold(word), ids) for word in range(words)]).numpy().view(np.uint64)
