r"""Agents who infer a common cause from each other's actions and act out what they believe: a Boltzmann machine.

Agent i takes each other's action as evidence of a hidden cause z_i and samples its own action from its posterior:

$$ p(\sigma_j \mid z_i) = \frac{e^{w_{ij} \sigma_j z_i}}{2 \cosh w_{ij}}, \quad
   p(z_i) = \frac{e^{h_i z_i}}{2 \cosh h_i}, \qquad
   q_i(+1) = \mathrm{logistic}\, 2 \big( h_i + \sum_j w_{ij} \sigma_j \big), \quad \sigma_i \sim q_i^\alpha / Z $$

which is a heat bath. With w_ij = w_ji, w_ii = 0, one agent acting at a time (at random or in a fixed sweep), the prior
taken anew at every step and alpha = 1 the only stationary law is Boltzmann's; alpha is its inverse temperature:

$$ \pi(\sigma) \propto \exp \alpha \Big( \sum_{i<j} w_{ij} \sigma_i \sigma_j + \sum_i h_i \sigma_i \Big), \qquad
   \text{all at once:} \quad
   \pi(\sigma) \propto e^{\alpha h \cdot \sigma} \prod_i 2 \cosh \alpha \big( h_i + \sum_j w_{ij} \sigma_j \big) $$

(the second is Peretto 1984, Biol. Cybern. 50, 51; Little 1974). By expected free energy, with log-preferences
c_ij sigma_i sigma_j for agreeing and the same ambiguity for both actions, softmax(gamma g) is the same agent with
alpha w = gamma c. Collectives of this kind: Heins et al. 2022, arXiv 2208.00288; that sequential updates are exactly
Boltzmann's is Glauber 1963. Whoever carries its belief over, or whose couplings differ by direction, obeys another law.

Actions are -1 and +1 [*b, N], couplings w [N, N] (row: who is told), biases h [N]. Exact kernels are [2^N, 2^N],
from the row's state to the column's, numbered as `statmech.exact.enumeration.spins` does.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from mfmarl import random
from mfmarl.errors import ConfigError
from mfmarl.random import Key
from mfmarl.statmech.energies import spins
from mfmarl.statmech.exact import enumeration

_LARGEST = 12  # agents whose kernel is written down: 2^24 numbers


def coupling_of(reliability: float | Tensor) -> Tensor:
    """w = logit(reliability) / 2: how much the action of somebody tells who is right with that probability.

    Raises ConfigError unless it lies strictly between 0 and 1.
    """
    r = torch.as_tensor(reliability, dtype=torch.float64)
    if not bool(((r > 0) & (r < 1)).all()):
        raise ConfigError("A reliability lies strictly between 0 and 1: who is always right leaves nothing to infer.")
    return torch.logit(r) / 2


def reliability_of(coupling: float | Tensor) -> Tensor:
    """The inverse of `coupling_of`: the chance that an action equals the cause."""
    return torch.sigmoid(2 * torch.as_tensor(coupling, dtype=torch.float64))


# ------------------------------------------------------------------------------------------------- the agents


def log_odds(
    actions: Tensor, couplings: Tensor, bias: Tensor, before: Tensor | None = None, stay: float = 0.5
) -> Tensor:
    """ln q_i(+1) / q_i(-1) of everybody's exact posterior [*b, N], having seen `actions` of -1 and +1 [*b, N].

    With the log-odds of the belief `before` and causes that stay as they are with probability `stay`, the belief is
    carried over, the bias being seen anew at every step: at 1/2 nothing is remembered.
    """
    found = 2 * (actions.to(couplings.dtype) @ couplings.mT + bias)
    if before is None:
        return found
    if not 0 < stay < 1:
        raise ConfigError(f"stay must lie strictly between 0 and 1, not {stay:g}.")
    q = torch.sigmoid(before)
    return found + torch.logit(stay * q + (1 - stay) * (1 - q))


def up_probability(odds: Tensor, alpha: float = 1.0) -> Tensor:
    """The chance of acting +1, from log-odds [*b, N]: a posterior sample, sharpened by the action precision alpha."""
    return torch.sigmoid(alpha * odds)


def act(odds: Tensor, ids: Tensor, key: Key, alpha: float = 1.0) -> Tensor:
    """Everybody's action -1 or +1 [*b, N], drawn by keyed noise of `ids` int64 [*b, N]."""
    up = random.uniform(key, ids).to(odds.dtype) < up_probability(odds, alpha)
    return torch.where(up, 1.0, -1.0).to(odds.dtype)


def preferring(
    actions: Tensor, preferences: Tensor, bias: Tensor, gamma: float = 1.0, ambiguity: float = 0.0
) -> Tensor:
    """The chance of acting +1 [*b, N] by expected free energy: softmax over both actions of gamma g, g = -risk - ambiguity.

    Log-preferences are c_ij a s_j for what is seen of each other agent after acting a, and h_i a for one's own action;
    every sense is as ambiguous after either action, so that it cancels.
    """
    pull = actions.to(preferences.dtype) @ preferences.mT + bias
    g = torch.stack([-pull - ambiguity, pull - ambiguity], -1)
    return torch.softmax(gamma * g, -1)[..., 1]


# ------------------------------------------------------------------------------------------- exact stationarity


def choices(couplings: Tensor, bias: Tensor, alpha: float = 1.0) -> Tensor:
    """The chance that each agent acts +1, in every joint state: [2^N, N].

    Raises ConfigError for more agents than can be enumerated.
    """
    n = len(bias)
    if couplings.shape != (n, n):
        raise ConfigError(f"Couplings of {n} agents are [{n}, {n}], not {list(couplings.shape)}.")
    if n > _LARGEST:
        raise ConfigError(f"The kernel of {n} agents has 4^{n} entries: at most {_LARGEST} are enumerated; sample.")
    if not bool(torch.isfinite(couplings).all() & torch.isfinite(bias).all()):
        raise ConfigError("Couplings and biases must be finite.")
    states = enumeration.spins(n).states().to(bias)
    return up_probability(log_odds(states, couplings, bias), alpha)


def moves(up: Tensor, acts: Tensor) -> Tensor:
    """The kernel [2^N, 2^N] of a step in which agent i acts with chance `acts` [N], independently, and else stays.

    All 1: the parallel update; all p: the partial one; 1 for one agent: that agent alone. `up` is of `choices`.
    """
    size, n = up.shape
    states = enumeration.spins(n).states().to(up)
    kernel = up.new_ones(size, size)
    for i in range(n):
        new = states[:, i] > 0
        chosen = torch.where(new, up[:, i, None], 1 - up[:, i, None])
        stays = (states[:, i, None] == states[:, i]).to(up)
        kernel = kernel * (acts[i] * chosen + (1 - acts[i]) * stays)
    return kernel


def parallel(up: Tensor, participation: float = 1.0) -> Tensor:
    """The kernel of all acting at once, or each with the same chance."""
    if not 0 < participation <= 1:
        raise ConfigError(f"participation must be above 0 and at most 1, not {participation:g}.")
    return moves(up, up.new_full((up.shape[1],), participation))


def random_scan(up: Tensor) -> Tensor:
    """The kernel of one agent at a time, drawn anew for every step."""
    n = up.shape[1]
    return torch.stack([moves(up, one) for one in torch.eye(n, dtype=up.dtype)]).mean(0)


def sweep(up: Tensor, groups: Sequence[Sequence[int]] | None = None) -> Tensor:
    """The kernel of a whole sweep: the agents one after the other, or group after group, each group at once.

    Groups of agents that are not coupled (the colours of a graph: a checkerboard) are as good as one after the other.
    """
    n = up.shape[1]
    kernel = torch.eye(len(up), dtype=up.dtype)
    for group in [[i] for i in range(n)] if groups is None else groups:
        acts = up.new_zeros(n)
        acts[list(group)] = 1.0
        kernel = kernel @ moves(up, acts)
    return kernel


def checkerboard(up: Tensor, couplings: Tensor) -> Tensor:
    """The kernel of two halves that act in turns; raises ConfigError where couplings do not split into two halves."""
    pairs = ((couplings != 0) | (couplings.mT != 0)).triu(1).nonzero()
    colour = [-1] * up.shape[1]
    near: list[list[int]] = [[] for _ in colour]
    for i, j in pairs.tolist():
        near[i].append(j)
        near[j].append(i)
    for root in range(len(colour)):
        if colour[root] >= 0:
            continue
        colour[root], stack = 0, [root]
        while stack:
            i = stack.pop()
            for j in near[i]:
                if colour[j] < 0:
                    colour[j] = 1 - colour[i]
                    stack.append(j)
                elif colour[j] == colour[i]:
                    raise ConfigError(
                        f"Agents {i} and {j} lie on an odd cycle of couplings, so there is no checkerboard: use sweep."
                    )
    return sweep(up, [[i for i, c in enumerate(colour) if c == side] for side in (0, 1)])


def stationary(kernel: Tensor) -> Tensor:
    """The law [2^N] that a kernel keeps: its only one, as every action has a chance in every state."""
    size = len(kernel)
    system = kernel.mT - torch.eye(size, dtype=kernel.dtype)
    system[-1] = 1.0
    target = kernel.new_zeros(size)
    target[-1] = 1.0
    law = torch.linalg.solve(system, target)
    # One push sharpens the last digits, where the solution is smallest.
    law = law.clamp(min=0) @ kernel
    return law / law.sum()


def boltzmann(couplings: Tensor, bias: Tensor, beta: float = 1.0) -> Tensor:
    """exp beta(sum_{i<j} w_ij s_i s_j + sum_i h_i s_i) / Z, [2^N]: of symmetric couplings."""
    return enumeration.probabilities(spins.from_matrix(couplings, bias), beta)


def peretto(couplings: Tensor, bias: Tensor, beta: float = 1.0) -> Tensor:
    """exp(beta h s) prod_i 2 cosh beta(h_i + sum_j w_ij s_j) / Z, [2^N]: of symmetric couplings, all acting at once."""
    states = enumeration.spins(len(bias)).states().to(bias)
    pull = beta * (states @ couplings.mT + bias)
    # ln 2 cosh x = |x| + ln(1 + exp(-2|x|)), without overflow.
    weight = pull.abs() + torch.log1p(torch.exp(-2 * pull.abs()))
    return torch.softmax(beta * states @ bias + weight.sum(-1), -1)


def total_variation(one: Tensor, other: Tensor) -> float:
    """Half the sum of |p - q|: the largest difference of the chance of anything."""
    return float((one - other).abs().sum() / 2)


def imbalance(kernel: Tensor, law: Tensor) -> float:
    """max |pi_x K_xy - pi_y K_yx|: 0 where the chain is reversible (detailed balance)."""
    current = law.unsqueeze(-1) * kernel
    return float((current - current.mT).abs().max())


# ------------------------------------------------------------------------------------------------ the ordering


def complete_moments(
    num_agents: int, coupling: float, bias: float = 0.0, at_once: bool = False
) -> tuple[float, float, float]:
    """<m>, <|m|> and <m^2> of N agents who all see each other with w = coupling / (N - 1), summed over magnetisations.

    Acting one at a time (Boltzmann's law), or all `at_once` (Peretto's), at any N.
    """
    if num_agents < 1:
        raise ConfigError(f"num_agents must be at least 1, not {num_agents}.")
    n = num_agents
    up = torch.arange(n + 1, dtype=torch.float64)
    total = 2 * up - n
    count = math.lgamma(n + 1) - torch.lgamma(up + 1) - torch.lgamma(n - up + 1)
    w = coupling / max(n - 1, 1)
    if at_once:

        def weight(x: Tensor) -> Tensor:
            return x.abs() + torch.log1p(torch.exp(-2 * x.abs()))

        felt = up * weight(bias + w * (total - 1)) + (n - up) * weight(bias + w * (total + 1))
        logs = count + bias * total + felt
    else:
        logs = count + w * (total.square() - n) / 2 + bias * total
    p = torch.softmax(logs, 0)
    m = total / n
    return float((p * m).sum()), float((p * m.abs()).sum()), float((p * m.square()).sum())
