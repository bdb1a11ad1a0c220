r"""Heat bath and Metropolis for spins and Potts variables on any graph, one colour of sites at a time.

$$ P(s_i = +1 \mid \text{rest}) = \sigma(2 \beta h_i), \qquad
   P(\text{flip}) = \min(1, e^{-2 \beta s_i h_i}), \qquad h_i = h + \sum_j J_{ij} s_j $$

Glauber 1963 (J. Math. Phys. 4, 294); Metropolis et al. 1953 (J. Chem. Phys. 21, 1087). Sites of one colour do not
interact, so updating them at once is updating them in turn: the Gibbs distribution stays. (All sites at once is
another dynamics with another stationary law: Little 1974, Peretto 1984.) A sweep by colours is stationary but not
reversible; `in_random_order` is both. One colour per site (`torch.arange(n)`) updates them one after another.
Probabilities are met to 2^-24, the grain of the noise. Nothing is kept but the states: [*b, n] in any signed dtype.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from mfmarl import random
from mfmarl.errors import ConfigError
from mfmarl.random import Key
from mfmarl.statmech import check
from mfmarl.statmech.energies.potts import Potts
from mfmarl.statmech.energies.spins import Ising
from mfmarl.statmech.sampling.chains import Sweep

Rule = Literal["heat_bath", "metropolis"]


def heat_bath(system: Ising, colouring: Tensor | None = None) -> Sweep:
    """Every spin once, colour by colour, drawn from its distribution given the others.

    `colouring` (int64 [n]; default `system.colours`) gives the order: colours go up. Raises ConfigError if two spins
    that interact share a colour.
    """
    return _by_colour(system, heat_bath_spin, colouring)


def metropolis(system: Ising, colouring: Tensor | None = None) -> Sweep:
    """A flip proposed to every spin once, colour by colour. Arguments and errors as for `heat_bath`.

    What costs nothing is always done, so at beta = 0 all spins flip in every sweep, for ever.
    """
    return _by_colour(system, metropolis_spin, colouring)


def in_random_order(system: Ising, rule: Rule = "heat_bath") -> Sweep:
    """n updates, each of a spin drawn anew by each chain: reversible, and slow here (a step of torch per update)."""
    update = _rule(rule)

    def sweep(s: Tensor, beta: float | Tensor, ids: Tensor, key: Key) -> Tensor:
        check.spins(s, system.num_spins)
        noise = random.uniform(key.fold("spin"), ids, system.num_spins)
        order = random.integers(key.fold("order"), ids, system.num_spins, system.num_spins)
        s, fields = s.clone(), system.fields.expand(*s.shape)
        couplings = system.neighbour_couplings.expand(*s.shape, system.neighbours.shape[-1])
        for step in range(system.num_spins):
            site = order[..., step : step + 1]
            near = s.gather(-1, system.neighbours[site.squeeze(-1)])
            strength = couplings.gather(-2, site.unsqueeze(-1).expand(*near.shape[:-1], 1, near.shape[-1])).squeeze(-2)
            local = (near * strength).sum(-1, keepdim=True) + fields.gather(-1, site)
            s.scatter_(-1, site, update(s.gather(-1, site), local, beta, noise[..., step : step + 1]))
        return s

    return sweep


def potts_heat_bath(system: Potts, colouring: Tensor | None = None) -> Sweep:
    """Every site once, colour by colour, drawn from the Gibbs distribution of its q states given the others."""
    groups = _groups(system, colouring)
    near = [system.neighbours[group] for group in groups]
    couplings = [system.neighbour_couplings[..., group, :] for group in groups]
    fields = [system.fields[..., group, :] for group in groups]
    states = torch.arange(system.num_states, device=system.fields.device)

    def sweep(k: Tensor, beta: float | Tensor, ids: Tensor, key: Key) -> Tensor:
        system.check_states(k)
        noise = random.uniform(key, ids, system.num_sites)
        k = k.clone()
        for group, others, strength, field in zip(groups, near, couplings, fields, strict=True):
            agree = (k[..., others].unsqueeze(-1) == states).to(strength.dtype)
            below = state_probabilities((agree * strength.unsqueeze(-1)).sum(-2) + field, beta).cumsum(-1)
            # The last sum is 1 but for rounding: what lies above it belongs to the last state that has any chance.
            k[..., group] = (noise[..., group].unsqueeze(-1) * below[..., -1:] >= below).sum(-1)
        return k

    return sweep


def potts_metropolis(system: Potts, colouring: Tensor | None = None) -> Sweep:
    """Another state, drawn evenly, proposed to every site once, colour by colour."""
    groups = _groups(system, colouring)
    near = [system.neighbours[group] for group in groups]
    couplings = [system.neighbour_couplings[..., group, :] for group in groups]
    fields = [system.fields[..., group, :] for group in groups]

    def sweep(k: Tensor, beta: float | Tensor, ids: Tensor, key: Key) -> Tensor:
        system.check_states(k)
        noise = random.uniform(key.fold("accept"), ids, system.num_sites)
        shift = random.integers(key.fold("propose"), ids, system.num_states - 1, system.num_sites) + 1
        k, q = k.clone(), system.num_states
        for group, others, strength, field in zip(groups, near, couplings, fields, strict=True):
            old, around = k[..., group], k[..., others]
            new = (old + shift[..., group]) % q
            gain = ((new.unsqueeze(-1) == around).to(strength.dtype) * strength).sum(-1)
            gain -= ((old.unsqueeze(-1) == around).to(strength.dtype) * strength).sum(-1)
            field = field.expand(*old.shape, q)
            gain += (field.gather(-1, new.unsqueeze(-1)) - field.gather(-1, old.unsqueeze(-1))).squeeze(-1)
            accept = noise[..., group] < torch.exp(_times(beta, gain, 1))
            k[..., group] = torch.where(accept, new, old)
        return k

    return sweep


# -------------------------------------------------------------------------------- one site given the others


def up_probability(local: Tensor, beta: float | Tensor) -> Tensor:
    """P(s = +1) of a spin in local fields [*b, g] at beta ([*b] or a number): a fair coin for inf * 0."""
    return torch.sigmoid(2 * _times(beta, local, 1))


def flip_probability(s: Tensor, local: Tensor, beta: float | Tensor) -> Tensor:
    """Metropolis' chance [*b, g] that spins s flip in local fields: what costs nothing is always done."""
    return torch.exp(-2 * _times(beta, s * local, 1)).clamp(max=1)


def state_probabilities(fields: Tensor, beta: float | Tensor) -> Tensor:
    """The Gibbs distribution [*b, g, q] of a Potts site that gains `fields` by each state; at inf even among the best."""
    return torch.softmax(_times(beta, fields - fields.amax(-1, keepdim=True), 2), -1)


def heat_bath_spin(s: Tensor, local: Tensor, beta: float | Tensor, noise: Tensor) -> Tensor:
    """New spins in the dtype of s, from uniform noise."""
    return (noise < up_probability(local, beta)).to(s.dtype).mul_(2).sub_(1)


def metropolis_spin(s: Tensor, local: Tensor, beta: float | Tensor, noise: Tensor) -> Tensor:
    """Spins s, flipped where the noise lies below the chance."""
    return torch.where(noise < flip_probability(s, local, beta), -s, s)


Update = Callable[[Tensor, Tensor, float | Tensor, Tensor], Tensor]
"""(spins, local fields, beta, uniform noise) -> new spins."""


def _rule(rule: Rule) -> Update:
    if rule not in ("heat_bath", "metropolis"):
        raise ConfigError(f"The rule of an update is 'heat_bath' or 'metropolis', not {rule!r}.")
    return heat_bath_spin if rule == "heat_bath" else metropolis_spin


def _times(beta: float | Tensor, values: Tensor, inner: int) -> Tensor:
    """beta [*b] times values [*b, ...] with `inner` more axes; 0 where beta is infinite and a value 0."""
    if isinstance(beta, Tensor) and beta.ndim:
        beta = beta.reshape(*beta.shape, *[1] * inner)
    return (beta * values).nan_to_num(0.0, torch.inf, -torch.inf)


def _groups(system: Ising | Potts, colouring: Tensor | None) -> list[Tensor]:
    """The sites of each colour, colours going up. Raises ConfigError for a colouring that is none."""
    if colouring is None:
        colouring = system.colours
    else:
        n = system.fields.shape[-1] if isinstance(system, Ising) else system.num_sites
        if colouring.shape != (n,) or colouring.dtype != torch.int64:
            raise ConfigError(
                f"A colouring is int64 [{n}], a colour per site, not {colouring.dtype} {list(colouring.shape)}."
            )
        colouring = colouring.to(system.pairs.device)
        clash = (colouring[system.pairs[:, 0]] == colouring[system.pairs[:, 1]]) & (
            system.couplings.reshape(-1, len(system.pairs)) != 0
        ).any(0)
        if bool(clash.any()):
            i, j = system.pairs[clash][0].tolist()
            raise ConfigError(
                f"Sites {i} and {j} interact and share colour {int(colouring[i])}: they cannot move at once."
            )
    colouring = colouring.to(system.fields.device)
    return [(colouring == colour).nonzero().squeeze(-1) for colour in colouring.unique()]


def _by_colour(system: Ising, update: Update, colouring: Tensor | None) -> Sweep:
    groups = _groups(system, colouring)
    fields = [system.fields[..., group] for group in groups]
    if system.dense:
        columns = [system.matrix[..., group] for group in groups]

        def local_field(s: Tensor, part: int) -> Tensor:
            j = columns[part]
            pull = s.to(j.dtype) @ j if j.ndim == 2 else (s.to(j.dtype).unsqueeze(-2) @ j).squeeze(-2)
            return pull + fields[part]
    else:
        near = [system.neighbours[group] for group in groups]
        couplings = [system.neighbour_couplings[..., group, :] for group in groups]

        def local_field(s: Tensor, part: int) -> Tensor:
            return (s[..., near[part]] * couplings[part]).sum(-1) + fields[part]

    def sweep(s: Tensor, beta: float | Tensor, ids: Tensor, key: Key) -> Tensor:
        check.spins(s, system.num_spins)
        noise = random.uniform(key, ids, system.num_spins)
        s = s.clone()
        for part, group in enumerate(groups):
            s[..., group] = update(s[..., group], local_field(s, part), beta, noise[..., group])
        return s

    return sweep
