r"""How much one of N agents gains by leaving a policy that the N - 1 others keep: exactly, by counting.

The deviator sees its own state s, the time, and how many of the others stand where, n. With mu = (n + e_s) / N

$$ V_t(s, n) = \max_a r_t(s, a; \mu) + \gamma \sum_{s'} P_t(s' \mid s, a; \mu)\, E[V_{t+1}(s', n')] , \qquad
   n' = \sum_{s} \mathrm{Multinomial}(n_s, (\pi_t P_t(\mu))_s) $$

The expectation over the next counts is taken in Fourier space, where the sum of independent multinomials is a product:

$$ E[V(n')] = \frac{1}{N^{S-1}} \sum_k \hat V(k) \prod_s \Big( \sum_{s'} (\pi P)_{s s'}\, e^{2 \pi i k_{s'} / N} \Big)^{n_s} $$

so that it is exact up to rounding. In the limit (`exploitability`) nobody sees fluctuations and nobody moves the crowd;
here a deviator uses both, and the limit's number says little of it: theory has it larger by O(1/sqrt(N)) where
fluctuations make a difference between actions that are tied in the limit, else by O(1/N). An extended game is summed
over the others' choices too.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from mfmarl.errors import ConfigError, NumericFault
from mfmarl.games import values
from mfmarl.games.flow import check_policy, flow
from mfmarl.games.game import Crowd, MeanFieldGame

BUDGET = 4e8
"""Terms of the sums above that are computed without complaint: about 20 seconds."""
_BLOCK = 1 << 20  # terms held at a time
_CHAIN = 2048  # own states times counts up to which a game without end is solved as one chain
_ZERO = -1e4  # the logarithm of 0, which a count of 0 may be multiplied with


class FiniteGap(NamedTuple):
    """What one agent of N can gain. Values are sums over an episode, discounted, of one agent."""

    exploitability: float  # best - value
    value: float  # what everybody gets who keeps the policy
    best: float  # what an informed deviator gets: it sees its own state, the time and all counts
    limit_value: float  # what infinitely many agents of this policy get
    agents: int


def gap(game: MeanFieldGame, policy: Tensor, agents: int | None = None, budget: float = BUDGET) -> FiniteGap:
    """The exact gain of one informed deviator among `agents` (default: the game's) from a policy [T, 1, S, A].

    Of a game without a horizon the agents begin in the limit's stationary distribution.
    Raises ConfigError for several groups, for a batch of policies and where there is more to sum than the budget:
    `mfmarl.games.sampled` then finds a lower bound with its error.
    """
    check_policy(game, policy)
    if policy.ndim != 4:
        raise ConfigError(f"One policy at a time is held against N agents, [T, G, S, A], not {list(policy.shape)}.")
    agents = _number(game, agents)
    terms = cost(game, agents)
    if not terms <= budget:
        raise ConfigError(
            f"Of {agents} agents in {game.num_states} states {_told(terms)} terms are to be summed, more than {budget:.1g}: "
            "use mfmarl.games.sampled, which learns a best response and gives a lower bound with its error."
        )
    with torch.no_grad():
        policy = policy.double()
        path = flow(game, policy)
        start = path.mu[0, 0]
        held = (path.mu[0] * values.of_policy(game, path).v[0]).sum()
        counts = count_vectors(agents - 1, game.num_states).to(policy.device)
        if game.horizon is None:
            v = _endless(game, policy[0, 0], agents, counts)
        else:
            v = _backwards(game, policy[:, 0], agents, counts)
        began = multinomial(counts, start).exp()
        value, best = (float((start * (x @ began)).sum()) for x in v)
    if not math.isfinite(best):
        raise NumericFault(
            f"{type(game).__name__}: rewards of {agents} agents are not finite; a counted share may be 0 (add a small "
            "number to mu before its logarithm)."
        )
    return FiniteGap(best - value, value, best, float(held), agents)


def cost(game: MeanFieldGame, agents: int | None = None) -> float:
    """Terms that `gap` sums over the whole game; infinite where it cannot."""
    if game.num_groups > 1 or game.common_states > 1:
        return math.inf
    agents = _number(game, agents)
    states, actions, others = game.num_states, game.num_actions, agents - 1
    counts = number_of_vectors(others, states)
    if game.horizon is None and states * counts > _CHAIN:
        return math.inf
    cells, rows = (states * actions, states * actions) if game.extended and game.crowd_moves else (states, states)
    waves = float(agents) ** (states - 1) / 2
    terms = float(cells * (rows if game.crowd_moves else 1)) * number_of_vectors(others, cells) * waves
    # Rewards, asked for every own state (and action) and all counts.
    asked = states * actions if game.extended else states
    terms += float(asked * states * actions) * number_of_vectors(others, asked if game.extended else states)
    return terms * (game.horizon or 1)


def uninformed(game: MeanFieldGame, policy: Tensor, agents: int | None = None, budget: float = BUDGET) -> FiniteGap:
    """The gain of one deviator who sees its own state and the time alone, where nobody moves anybody.

    With dynamics that do not depend on the crowd the others are independent: their counts are multinomial around the
    limit's flow, whatever the deviator does, and only these are summed over. The policy is [T, 1, S, A].
    Raises ConfigError for a game whose crowd moves its agents, for several groups, without a horizon, and beyond the
    budget.
    """
    check_policy(game, policy)
    agents = _number(game, agents)
    if game.crowd_moves or game.num_groups > 1 or game.horizon is None or policy.ndim != 4:
        raise ConfigError(
            f"{type(game).__name__}: who sees no crowd is judged where dynamics do not depend on it, in one group, with a "
            "horizon, one policy at a time."
        )
    cells = game.num_states * game.num_actions if game.extended else game.num_states
    terms = float(number_of_vectors(agents - 1, cells)) * cells * game.num_states * game.num_actions * game.horizon
    if terms > budget:
        raise ConfigError(f"Of {agents} agents {_told(terms)} rewards are to be summed, more than {budget:.1g}.")
    with torch.no_grad():
        policy = policy.double()
        path = flow(game, policy)
        counts = count_vectors(agents - 1, cells).to(policy.device)
        shares = (path.joint if game.extended else path.mu)[:, 0].flatten(1)
        rewards = [_mean_reward(game, t, counts, share, agents) for t, share in enumerate(shares.unbind(0))]
        terminal = None
        if path.terminal is not None:
            where = counts if not game.extended else count_vectors(agents - 1, game.num_states).to(policy.device)
            last = path.kernels[-1].carry(path.joint[-1])[0]
            paid = _last(game, where, agents)
            assert paid is not None
            terminal = (paid @ multinomial(where, last).exp()).unsqueeze(0)
        met = path._replace(rewards=torch.stack(rewards).unsqueeze(1), terminal=terminal)
        start = path.mu[0]
        value, best, limit = (
            float((start * x.v[0]).sum())
            for x in (values.of_policy(game, met), values.best(game, met), values.of_policy(game, path))
        )
    return FiniteGap(best - value, value, best, limit, agents)


def _mean_reward(game: MeanFieldGame, t: int, counts: Tensor, share: Tensor, agents: int) -> Tensor:
    """The mean of rewards [S, A] over others who stand by themselves, each in a cell with chance `share`."""
    total = torch.zeros(game.num_states, game.num_actions, dtype=share.dtype, device=share.device)
    width = counts.shape[-1] * game.num_states * game.num_actions
    for part in counts.split(max(1, _BLOCK // width)):
        total += torch.einsum("c,csa->sa", multinomial(part, share).exp(), _rewards(game, t, part, agents))
    return total


# ------------------------------------------------------------------------------------------------- counting


def number_of_vectors(total: int, cells: int) -> int:
    """In how many ways a number of agents stand in so many cells."""
    return math.comb(total + cells - 1, cells - 1)


def count_vectors(total: int, cells: int) -> Tensor:
    """Every way in which `total` agents stand in so many cells, int64 [C, cells], in lexicographic order."""
    if cells == 1:
        return torch.tensor([[total]])
    if cells == 2:
        first = torch.arange(total + 1)
        return torch.stack([first, total - first], -1)
    # A way is the places of cells - 1 bars among total + cells - 1.
    size = number_of_vectors(total, cells)
    places = itertools.chain.from_iterable(itertools.combinations(range(total + cells - 1), cells - 1))
    bars = torch.from_numpy(np.fromiter(places, np.int64, size * (cells - 1)).reshape(size, cells - 1))
    edges = torch.cat([torch.full((size, 1), -1), bars, torch.full((size, 1), total + cells - 1)], -1)
    return edges.diff(dim=-1) - 1


def multinomial(counts: Tensor, probability: Tensor) -> Tensor:
    """Logarithms [C] of the chances of counts [C, cells] when each agent falls into a cell by itself."""
    n = counts.to(probability.dtype)
    chance = torch.special.xlogy(n, probability).sum(-1)
    return torch.lgamma(n.sum(-1) + 1) - torch.lgamma(n + 1).sum(-1) + chance


class _Waves:
    """Fourier sums over the counts of the others: E[V(n')] for any laws of their moves."""

    def __init__(self, counts: Tensor, agents: int) -> None:
        self.agents, self.axes = agents, counts.shape[-1] - 1
        strides = torch.tensor([agents**k for k in range(self.axes - 1, -1, -1)], device=counts.device)
        self.place = (counts[:, : self.axes] * strides).sum(-1)
        device = counts.device
        if self.axes == 0:
            self.phase, self.weight = torch.ones(1, 1, dtype=torch.complex128), torch.ones(1, dtype=torch.float64)
            return
        half = agents // 2 + 1
        axes = [torch.arange(agents, device=device)] * (self.axes - 1) + [torch.arange(half, device=device)]
        k = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).reshape(-1, self.axes)
        angle = torch.cat([k, torch.zeros_like(k[:, :1])], -1).double() * (2 * math.pi / agents)
        self.phase = torch.polar(torch.ones_like(angle), angle)  # [waves, S]
        # A real function's other half of waves is the conjugate of this one.
        alone = (k[:, -1] == 0) | (2 * k[:, -1] == agents)
        self.weight = torch.where(alone, 1.0, 2.0).double() / agents**self.axes

    def spectrum(self, v: Tensor) -> Tensor:
        """Of functions [..., C] of the counts: [..., waves]."""
        if self.axes == 0:
            return v.to(torch.complex128)
        grid = v.new_zeros((*v.shape[:-1], self.agents**self.axes)).index_copy(-1, self.place, v)
        grid = grid.unflatten(-1, (self.agents,) * self.axes)
        waves = torch.fft.rfftn(grid, dim=tuple(range(-self.axes, 0))).flatten(-self.axes)
        return waves * self.weight

    def mean(self, counts: Tensor, moves: Tensor, spectrum: Tensor) -> Tensor:
        """E of functions [X, waves] one step after counts [c, cells] that move by laws [..., c or 1, cells, S]: [..., c, X]."""
        each = moves.to(torch.complex128) @ self.phase.T  # [..., c, cells, waves]
        log = torch.complex(each.abs().log().clamp(min=_ZERO), each.angle())
        power = torch.einsum(
            "cz,...czw->...cw", counts.to(torch.complex128), log.expand(*log.shape[:-3], len(counts), -1, -1)
        )
        return (power.exp() @ spectrum.T).real

    def blocks(self, rows: int, cells: int, laws: int) -> Iterator[slice]:
        """Stretches of rows whose terms fit in memory together."""
        length = max(1, _BLOCK // (len(self.weight) * cells * laws))
        for first in range(0, rows, length):
            yield slice(first, min(first + length, rows))


# --------------------------------------------------------------------------------------------- the deviator


def _backwards(game: MeanFieldGame, policy: Tensor, agents: int, counts: Tensor) -> tuple[Tensor, Tensor]:
    """Values [S, C] at the start, of the policy [T, S, A] itself and of the best deviation."""
    legal = game.legal_mask(policy.device)
    waves = _Waves(counts, agents)
    joint = count_vectors(agents - 1, policy.shape[-1] * policy.shape[-2]).to(counts.device) if game.extended else None
    v = None
    last = _last(game, counts, agents)
    if last is not None:
        v = torch.stack([last, last])
    for t in range(len(policy) - 1, -1, -1):
        q = _worth(game, t, policy[t], agents, counts, waves, v, joint)
        own = (policy[t] * q[0]).sum(-1)
        open_ = q[1] if legal is None else q[1].masked_fill(~legal[0], -torch.inf)
        v = torch.stack([own, open_.amax(-1)]).transpose(-1, -2)  # [2, S, C]
    assert v is not None
    return v[0], v[1]


def _worth(
    game: MeanFieldGame, t: int, policy: Tensor, agents: int, counts: Tensor, waves: _Waves, v: Tensor | None,
    joint: Tensor | None,
) -> Tensor:  # fmt: skip
    """q [2, C, S, A] of what follows worth v [2, S, C] (None: nothing)."""
    states, actions = policy.shape
    spectrum = None if v is None else waves.spectrum(v).flatten(0, 1)  # [2 S, waves]
    told = counts if joint is None else joint
    q = counts.new_zeros((2, len(told), states, actions), dtype=torch.float64)
    laws = told.shape[-1] if game.crowd_moves else 1
    for rows in waves.blocks(len(told), told.shape[-1], laws):
        q[:, rows] = _rewards(game, t, told[rows], agents)
        if spectrum is not None and game.crowd_moves:
            own, moves = _moves(game, t, told[rows], agents, policy)
            ahead = waves.mean(told[rows], moves, spectrum).unflatten(-1, (2, states))  # [own, c, 2, S]
            ahead = ahead.unflatten(0, (states, -1)).expand(-1, own.shape[1], -1, -1, -1)
            q[:, rows] += game.discount * torch.einsum("sacz,sackz->kcsa", own, ahead)
    if joint is not None:
        chance, place = _of_choices(joint, counts, policy)
        q = torch.zeros((2, len(counts), states, actions), dtype=q.dtype, device=q.device).index_add(
            1, place, q * chance.view(-1, 1, 1)
        )
    if spectrum is not None and not game.crowd_moves:
        dense = _dense(game, t, Crowd(torch.full((1, states), 1 / states, dtype=torch.float64, device=counts.device)))
        moves = torch.einsum("sa,saz->sz", policy, dense).unsqueeze(0)
        for rows in waves.blocks(len(counts), states, 1):
            ahead = waves.mean(counts[rows], moves, spectrum).unflatten(-1, (2, states))
            q[:, rows] += game.discount * torch.einsum("saz,ckz->kcsa", dense, ahead)
    return q


def _seen(game: MeanFieldGame, counts: Tensor, agents: int) -> Crowd:
    """The crowds [Z, c] of the others at counts [c, Z] and oneself in each of the Z cells."""
    whole = counts.unsqueeze(0) + torch.eye(counts.shape[-1], dtype=counts.dtype, device=counts.device).unsqueeze(1)
    share = (whole.double() / agents).unsqueeze(-2)  # [Z, c, 1, Z]
    if not game.extended:
        return Crowd(share)
    joint = share.unflatten(-1, (game.num_states, game.num_actions))
    return Crowd(joint.sum(-1), counted=joint)


def _rewards(game: MeanFieldGame, t: int, counts: Tensor, agents: int) -> Tensor:
    """What the deviator earns in each state by each action, [c, S, A]."""
    table = game.paid(t, _seen(game, counts, agents)).squeeze(-3)  # [Z, c, S, A]
    if game.extended:
        return table.flatten(-2).diagonal(dim1=0, dim2=2).unflatten(-1, table.shape[-2:])
    return table.diagonal(dim1=0, dim2=2).transpose(-1, -2)


def _dense(game: MeanFieldGame, t: int, crowd: Crowd) -> Tensor:
    """P(s' | s, a): [..., S, A, S], the axis of groups taken off."""
    dense = game.kernel(t, crowd).dense().double()
    return dense if dense.ndim == 3 else dense.squeeze(-4)


def _moves(game: MeanFieldGame, t: int, counts: Tensor, agents: int, policy: Tensor) -> tuple[Tensor, Tensor]:
    """The deviator's law [S, A, c, S'], or [S, A, c, S'] by its action, and the others' by cell [Z, c, Z, S']."""
    crowd = _seen(game, counts, agents)
    cells, states, actions = counts.shape[-1], *policy.shape
    dense = _dense(game, t, crowd).expand(cells, len(counts), states, actions, states)
    if game.extended:
        each = dense.flatten(2, 3)  # [Z, c, Z, S']
        own = each.diagonal(dim1=0, dim2=2).permute(2, 0, 1)  # [Z, c, S']
        return own.unflatten(0, (states, actions)), each
    own = dense.diagonal(dim1=0, dim2=2).permute(3, 1, 0, 2)  # [S, A, c, S']
    return own, torch.einsum("sa,ocsaz->ocsz", policy, dense)


def _of_choices(joint: Tensor, counts: Tensor, policy: Tensor) -> tuple[Tensor, Tensor]:
    """The chance [J] of each vector of states and actions, given its states, and which of `counts` these are, [J]."""
    m = joint.double().unflatten(-1, policy.shape)
    n = m.sum(-1)
    chance = (
        torch.lgamma(n + 1).sum(-1) - torch.lgamma(m + 1).sum((-1, -2)) + torch.special.xlogy(m, policy).sum((-1, -2))
    )
    # Counts in lexicographic order are numbers in order, to any base above the most that a count can be.
    base = float(counts.max()) + 1
    strides = base ** torch.arange(counts.shape[-1] - 1, -1, -1, dtype=torch.float64, device=joint.device)
    if base ** counts.shape[-1] >= 2.0**53:
        raise ConfigError("An extended game of so many agents and states is not enumerated: use mfmarl.games.sampled.")
    place = torch.searchsorted((counts * strides).sum(-1), (n * strides).sum(-1))
    return chance.exp(), place


def _last(game: MeanFieldGame, counts: Tensor, agents: int) -> Tensor | None:
    """The terminal reward [S, C]."""
    if game.horizon is None or type(game).terminal is MeanFieldGame.terminal:
        return None
    whole = counts.unsqueeze(0) + torch.eye(counts.shape[-1], dtype=counts.dtype, device=counts.device).unsqueeze(1)
    paid = game.terminal(Crowd((whole.double() / agents).unsqueeze(-2)))  # [S, C, 1, S]
    if paid is None:
        return None
    return paid.expand(*whole.shape[:-1], 1, -1).squeeze(-2).diagonal(dim1=0, dim2=2).T.double()


# ------------------------------------------------------------------------------------------ without an end


def _endless(game: MeanFieldGame, policy: Tensor, agents: int, counts: Tensor) -> tuple[Tensor, Tensor]:
    """Values [S, C] of a policy [S, A] and of the best deviation, by policy iteration on own state and counts."""
    if game.extended:
        raise ConfigError("An extended game without a horizon is not enumerated at finite N: give it a horizon.")
    states, actions = policy.shape
    waves = _Waves(counts, agents)
    every = waves.spectrum(torch.eye(len(counts), dtype=torch.float64, device=counts.device))
    own = torch.empty((states, actions, len(counts), states), dtype=torch.float64, device=counts.device)
    others = torch.empty((states, len(counts), len(counts)), dtype=torch.float64, device=counts.device)
    for rows in waves.blocks(len(counts), states, states):
        own[:, :, rows], moves = _moves(game, 0, counts[rows], agents, policy)
        others[:, rows] = waves.mean(counts[rows], moves, every)
    reward = _rewards(game, 0, counts, agents).permute(1, 2, 0)  # [S, A, C]
    legal = game.legal_mask(policy.device)
    size = states * len(counts)

    def worth(chosen: Tensor) -> Tensor:
        """V [S, C] of choices [S, A, C]."""
        law = torch.einsum("sac,sacz->scz", chosen, own)
        chain = torch.einsum("scz,scn->sczn", law, others).reshape(size, size)
        paid = (chosen * reward).sum(1).reshape(size)
        here = torch.eye(size, dtype=chain.dtype, device=chain.device)
        return torch.linalg.solve(here - game.discount * chain, paid).view(states, -1)

    value = worth(policy.unsqueeze(-1).expand(-1, -1, len(counts)))
    best = value
    for _ in range(1000):
        q = reward + game.discount * torch.einsum("sacz,scn,zn->sac", own, others, best)
        open_ = q if legal is None else q.masked_fill(~legal[0].unsqueeze(-1), -torch.inf)
        top, choice = open_.max(1)
        if not bool((top - best > 1e-11 * (1 + best.abs())).any()):
            break
        best = worth(torch.nn.functional.one_hot(choice, actions).permute(0, 2, 1).to(q.dtype))
    return value, best


def _number(game: MeanFieldGame, agents: int | None) -> int:
    agents = game.num_agents if agents is None else agents
    if game.num_groups > 1:
        raise ConfigError(
            f"{type(game).__name__} has {game.num_groups} groups, whose counts are not enumerated: use mfmarl.games.sampled."
        )
    if game.common_states > 1:
        raise ConfigError(
            f"{type(game).__name__} has common noise, whose pasts are not enumerated with counts: use mfmarl.games.sampled."
        )
    if agents < 1:
        raise ConfigError(f"There must be at least 1 agent, not {agents}.")
    return agents


def _told(terms: float) -> str:
    return "too many" if math.isinf(terms) else f"{terms:.2g}"
