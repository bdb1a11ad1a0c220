r"""Gaps where nothing can be enumerated: a best response that is learned, and policies known by samples alone.

`best_response` learns what one of N agents should do while the others play on, and lets it play against them: what it
gains there over keeping the policy is a lower bound of the gap, with a standard error. The bound is honest however
badly it learned, because it is measured in play that it has not seen.

Crowds are recorded while everybody keeps the policy. Along them, from the last step to the first,

$$ Q_t(s, a; \mu) \approx \phi(\mu)^\top \beta_t(s, a), \qquad
   \text{regressed on } r_t(s, a; \mu) + \gamma \sum_{s'} P_t(s' \mid s, a; \mu) \max_{a'} Q_{t+1}(s', a'; \mu') $$

with phi the counted shares' departure from their mean: linear in fluctuations, which are small in large crowds (Longstaff
and Schwartz 2001, Rev. Financ. Stud. 14, 113, for the method). The rules are known, so every recorded crowd teaches all
states and actions; the deviator's own weight in the crowd is counted, its effect on later crowds is not. Where the gap
can be enumerated, use `finite`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from mfmarl import random
from mfmarl.errors import ConfigError
from mfmarl.games.exploitability import exploitability
from mfmarl.games.flow import check_policy, uniform
from mfmarl.games.game import Crowd, GameState, MeanFieldGame
from mfmarl.population.environment import agent_ids
from mfmarl.random import Key

_WIDE = 48  # shares up to which all are features; beyond, only that of the own state
_RIDGE = 1.0  # what a coefficient costs, in units of one recorded crowd
_TABLE = 1 << 23  # rewards asked for at a time


class SampledGap(NamedTuple):
    """A lower bound of what one agent of N can gain, the sum over groups, with its standard error."""

    exploitability: float
    standard_error: float
    by_group: tuple[float, ...]
    value: float  # what one who keeps the policy gets, the sum over groups
    copies: int


class Recorded(NamedTuple):
    """Crowds of E copies while N agents play: of each time, before the step."""

    mu: Tensor  # [T, E, G, S]
    joint: Tensor | None  # [T, E, G, S, A], of an extended game
    common: Tensor | None  # int64 [T, E]
    own: Tensor  # int64 [T, E, G]: where the first agent of each group stands
    did: Tensor  # int64 [T, E, G]: and what it does
    earned: Tensor  # [E, G]: what these agents get in all
    last: GameState  # after the last step


Deviation = Callable[[int, GameState], Tensor]
"""(time, state) -> actions [E] of the one agent that leaves the policy."""
Play = Callable[[Key, int | None, Deviation | None], Recorded]
"""An episode of all copies; the agent in that slot does what the deviation says instead of what it otherwise would."""


def gap(
    game: MeanFieldGame, policy: Tensor, agents: int | None = None, copies: int = 512, key: Key | None = None
) -> SampledGap:
    """`best_response` to a policy [T, G, S, A], played by `agents` (default: the game's) in so many copies."""
    if agents is not None and agents != game.num_agents:
        game = replace(game, num_agents=agents)
    return best_response(game, table_play(game, policy, copies), key or Key.of(0))


def best_response(game: MeanFieldGame, play: Play, key: Key) -> SampledGap:
    """Learn on one half of the play, measure on the other: everybody is played against twice, with the same noise.

    Raises ConfigError for a game without a horizon.
    """
    if game.horizon is None:
        raise ConfigError(
            f"{type(game).__name__} has no horizon: a best response is learned backwards from one; give it a horizon."
        )
    with torch.no_grad():
        answers = learn(game, play(key.fold("learn"), None, None))
        fresh = key.fold("judge")
        kept = play(fresh, None, None).earned  # [E, G]
        first = [s.start for s in game.spec().group_slices.values()]
        left = torch.stack([play(fresh, first[g], answer).earned[:, g] for g, answer in enumerate(answers)], -1)
    gain = left - kept
    total = gain.sum(-1)
    error = float(total.std()) / math.sqrt(len(total)) if len(total) > 1 else math.inf
    by_group = tuple(float(x) for x in gain.mean(0))
    return SampledGap(float(total.mean()), error, by_group, float(kept.sum(-1).mean()), len(total))


# ------------------------------------------------------------------------------------------------- playing


def table_play(game: MeanFieldGame, policy: Tensor, copies: int) -> Play:
    """Everybody plays a policy [T, G, S, A], whatever the crowd does; under common noise, that of its past."""
    check_policy(game, policy)
    if game.horizon is None:
        raise ConfigError(f"{type(game).__name__} has no horizon and is not played to its end; give it one.")
    if policy.ndim != 4:
        raise ConfigError(f"One policy at a time is played, [T, G, S, A], not {list(policy.shape)}.")
    cumulative = policy.double().cumsum(-1)
    ids = agent_ids(copies, game.num_agents, policy.device)
    group = torch.repeat_interleave(torch.arange(game.num_groups), torch.tensor(game.group_sizes)).to(policy.device)

    def play(key: Key, slot: int | None, deviation: Deviation | None) -> Recorded:
        state = game.reset(ids, key.fold("reset"))
        node = _first_node(game, state)
        log = Log(game)
        for t in range(game.horizon or 0):
            steps = cumulative[node] if game.tree is not None else cumulative[t].expand(copies, -1, -1, -1)
            here = steps.flatten(1, 2).gather(
                1, (group * game.num_states + state.state).unsqueeze(-1).expand(-1, -1, game.num_actions)
            )
            level = random.uniform(key.fold("act", t), ids).double().unsqueeze(-1)
            action = (level * here[..., -1:] >= here[..., :-1]).sum(-1)
            if slot is not None and deviation is not None:
                action[:, slot] = deviation(t, state)
            before = state
            state, reward = game.step(state, action, ids, key.fold("step", t))
            log.note(before, action, reward, state)
            node = _next_node(game, t, node, state)
        return log.recorded()

    return play


def _first_node(game: MeanFieldGame, state: GameState) -> Tensor:
    if game.tree is None:
        return torch.zeros_like(state.common)
    return (game.tree.common[0].to(state.common.device) == state.common.unsqueeze(-1)).long().argmax(-1)


def _next_node(game: MeanFieldGame, t: int, node: Tensor, state: GameState) -> Tensor:
    """The node of the past that each copy has lived, among all nodes."""
    tree = game.tree
    if tree is None or t + 1 >= len(tree.levels):
        return node
    parent = tree.parent[t + 1].to(node.device) + tree.levels[t].start
    same = (parent == node.unsqueeze(-1)) & (tree.common[t + 1].to(node.device) == state.common.unsqueeze(-1))
    return same.long().argmax(-1) + tree.levels[t + 1].start


class Log:
    """What is recorded of an episode."""

    def __init__(self, game: MeanFieldGame) -> None:
        self.game = game
        self.first = [s.start for s in game.spec().group_slices.values()]
        self.parts: list[tuple[Tensor, Tensor | None, Tensor, Tensor, Tensor]] = []
        self.earned: Tensor | float = 0.0
        self.last: GameState | None = None

    def note(self, state: GameState, action: Tensor, reward: Tensor, after: GameState) -> None:
        """One step: the state before it, what everybody did and got, and where that led."""
        crowd = self.game.crowd(state, action)
        own, did = state.state[:, self.first], action[:, self.first]
        self.earned = self.earned + self.game.discount ** len(self.parts) * reward[:, self.first].double()
        self.parts.append((crowd.mu, crowd.counted, state.common, own, did))
        self.last = after

    def recorded(self) -> Recorded:
        mu, joint, common, own, did = zip(*self.parts, strict=True)
        assert isinstance(self.earned, Tensor) and self.last is not None
        noisy = torch.stack(common) if self.game.common_states > 1 else None
        counted = None if joint[0] is None else torch.stack(joint)
        return Recorded(torch.stack(mu), counted, noisy, torch.stack(own), torch.stack(did), self.earned, self.last)


# ------------------------------------------------------------------------------------------------- learning


@dataclass(frozen=True)
class _Features:
    """phi of a crowd, as one agent of a group would count it: 1, departures of shares, and the common noise."""

    game: MeanFieldGame
    group: int
    centre: Tensor  # [T, G, S]
    scale: Tensor  # [T, G, S]

    def __call__(self, t: int, mu: Tensor, common: Tensor | None) -> Tensor:
        """Of crowds mu [E, S', G, S], as seen from each own state S': [E, S', F]."""
        off = (mu - self.centre[t]) / self.scale[t]
        if self.game.num_groups * self.game.num_states <= _WIDE:
            seen = off.flatten(-2)
        else:
            seen = off[..., self.group, :].diagonal(dim1=1, dim2=2).unsqueeze(-1)
        parts = [torch.ones_like(seen[..., :1]), seen]
        if common is not None:
            known = torch.nn.functional.one_hot(common, self.game.common_states).to(mu)
            parts.append(known.unsqueeze(1).expand(-1, mu.shape[1], -1))
        return torch.cat(parts, -1)


def learn(game: MeanFieldGame, seen: Recorded) -> list[Deviation]:
    """For each group, what its first agent should do."""
    return [_learn(game, seen, g) for g in range(game.num_groups)]


def _learn(game: MeanFieldGame, seen: Recorded, group: int) -> Deviation:
    horizon = len(seen.mu)
    centre = seen.mu.mean(1)
    # One agent's weight at least: where a crowd does not fluctuate nothing is to be learned from its shares.
    weight = 1 / torch.tensor(game.group_sizes, dtype=centre.dtype, device=centre.device).unsqueeze(-1)
    scale = torch.maximum(seen.mu.std(1), weight) if seen.mu.shape[1] > 1 else weight.expand_as(centre)
    features = _Features(game, group, centre, scale)
    mask = game.legal_mask(seen.mu.device)
    legal = None if mask is None else mask[group]
    coefficients: list[Tensor] = []
    ahead = _last(game, seen, group)  # [E, S], worth of the next own state along each recorded crowd
    for t in range(horizon - 1, -1, -1):
        phi = features(
            t, _as_seen(game, seen.mu[t], seen.own[t][:, group], group), None if seen.common is None else seen.common[t]
        )
        target = _target(game, seen, t, group, ahead)  # [E, S, A]
        beta = _regress(phi, target)
        coefficients.append(beta)
        q = torch.einsum("esf,sfa->esa", phi, beta)
        ahead = (q if legal is None else q.masked_fill(~legal, -torch.inf)).amax(-1)
    coefficients.reverse()
    slot = list(game.spec().group_slices.values())[group].start

    def answer(t: int, state: GameState) -> Tensor:
        crowd = game.crowd(state)
        own = state.state[:, slot]
        mu = crowd.mu.unsqueeze(1).expand(-1, game.num_states, -1, -1)
        phi = features(t, mu, state.common if game.common_states > 1 else None)
        q = torch.einsum("ef,efa->ea", phi[torch.arange(len(own)), own], coefficients[t][own])
        return (q if legal is None else q.masked_fill(~legal[own], -torch.inf)).argmax(-1)

    return answer


def _as_seen(game: MeanFieldGame, mu: Tensor, own: Tensor, group: int) -> Tensor:
    """A crowd mu [E, G, S] with one of its agents in `own` [E], as it would be with that one in state S': [E, S', G, S]."""
    size, states = game.group_sizes[group], game.num_states
    here = torch.nn.functional.one_hot(own, states).to(mu)
    moved = mu.unsqueeze(1).expand(-1, states, -1, -1).clone()
    moved[:, :, group] += (torch.eye(states, dtype=mu.dtype, device=mu.device) - here.unsqueeze(1)) / size
    return moved


def _last(game: MeanFieldGame, seen: Recorded, group: int) -> Tensor | None:
    """The terminal reward in each own state, [E, S]; None without one."""
    if type(game).terminal is MeanFieldGame.terminal:
        return None
    slot = list(game.spec().group_slices.values())[group].start
    crowd = game.crowd(seen.last)
    mu = _as_seen(game, crowd.mu, seen.last.state[:, slot], group)
    common = None if crowd.common is None else crowd.common.unsqueeze(1)
    paid = game.terminal(Crowd(mu, common=common))
    return None if paid is None else paid.expand(mu.shape)[:, :, group].diagonal(dim1=1, dim2=2)


def _target(game: MeanFieldGame, seen: Recorded, t: int, group: int, ahead: Tensor | None) -> Tensor:
    """r + gamma P V along each recorded crowd: [E, S, A]."""
    copies, states, actions = seen.mu.shape[1], game.num_states, game.num_actions
    cells = states * actions if game.extended else states
    width = cells * game.num_groups * states * actions
    chunk = max(1, _TABLE // width)
    return torch.cat(
        [_target_of(game, seen, t, group, ahead, slice(e, min(e + chunk, copies))) for e in range(0, copies, chunk)]
    )


def _target_of(game: MeanFieldGame, seen: Recorded, t: int, group: int, ahead: Tensor | None, rows: slice) -> Tensor:
    states, actions = game.num_states, game.num_actions
    part = seen._replace(
        mu=seen.mu[:, rows],
        joint=None if seen.joint is None else seen.joint[:, rows],
        common=None if seen.common is None else seen.common[:, rows],
        own=seen.own[:, rows],
        did=seen.did[:, rows],
    )
    crowd = _would_be(game, part, t, group)
    table = game.paid(t, crowd)[..., group, :, :]  # [e, Z, S, A]
    if ahead is not None:
        worth = ahead[rows].unsqueeze(1).unsqueeze(1).expand(*crowd.mu.shape[:2], game.num_groups, states)
        table = table + game.discount * game.kernel(t, crowd).expect(worth)[..., group, :, :]
    if game.extended:
        return table.flatten(-2).diagonal(dim1=1, dim2=2).unflatten(-1, (states, actions))
    return table.diagonal(dim1=1, dim2=2).transpose(-1, -2)


def _would_be(game: MeanFieldGame, seen: Recorded, t: int, group: int) -> Crowd:
    """The recorded crowds [e, Z] with the agent in each of Z states, or states and actions of an extended game."""
    common = None if seen.common is None else seen.common[t].view(-1, 1, 1, 1)
    if seen.joint is None:
        return Crowd(_as_seen(game, seen.mu[t], seen.own[t][:, group], group), common=common)
    states, actions, size = game.num_states, game.num_actions, game.group_sizes[group]
    cells = states * actions
    own = torch.nn.functional.one_hot(seen.own[t][:, group] * actions + seen.did[t][:, group], cells).to(seen.mu)
    joint = seen.joint[t].unsqueeze(1).expand(-1, cells, -1, -1, -1).clone()
    change = torch.eye(cells, dtype=joint.dtype, device=joint.device) - own.unsqueeze(1)
    joint[:, :, group] += change.unflatten(-1, (states, actions)) / size
    return Crowd(joint.sum(-1), counted=joint, common=common)


def _regress(phi: Tensor, target: Tensor) -> Tensor:
    """Ridge regression for each own state: phi [E, S, F], target [E, S, A] -> [S, F, A]. The constant costs nothing."""
    x, y = phi.transpose(0, 1), target.transpose(0, 1)
    cost = torch.full((x.shape[-1],), _RIDGE, dtype=x.dtype, device=x.device)
    cost[0] = 1e-9
    return torch.linalg.solve(x.mT @ x + torch.diag(cost), x.mT @ y)


# ----------------------------------------------------------------------------------------- policies by samples


class Estimate(NamedTuple):
    """An exploitability in the limit that is known from samples of a policy."""

    exploitability: float
    standard_error: float
    policy: Tensor  # [T, G, S, A], the frequencies
    unseen: float  # share of (time, group, state) that nobody was seen in: there the policy is taken as uniform


def from_samples(
    game: MeanFieldGame, states: Tensor, actions: Tensor, resamples: int = 50, key: Key | None = None
) -> Estimate:
    """Of a policy known only by what N agents did: the exploitability of its frequencies, with a bootstrap error.

    `states` and `actions` are int64 [T, E, N], agents in the order of their groups; copies are drawn anew with
    replacement. The error is that of sampling alone: frequencies are no policy that sees the crowd.
    Raises ConfigError for other shapes, and for common noise.
    """
    if game.tree is not None:
        raise ConfigError("Frequencies do not tell the pasts of common noise apart.")
    steps = uniform(game).shape[0]
    if states.shape != actions.shape or states.ndim != 3 or len(states) != steps:
        raise ConfigError(
            f"States and actions of {type(game).__name__} are [T={steps}, E, N] each, not {list(states.shape)} and "
            f"{list(actions.shape)}."
        )
    counts = _visits(game, states, actions)  # [E, T, G, S, A]
    copies = len(counts)
    policy = _frequencies(game, counts.sum(0))
    found = float(exploitability(game, policy))
    error = math.inf
    if copies > 1:
        noise = (key or Key.of(0)).fold("bootstrap")
        draws = random.integers(noise, torch.arange(resamples * copies), copies).view(resamples, copies)
        weight = torch.nn.functional.one_hot(draws, copies).sum(1).to(counts)
        again = _frequencies(game, torch.einsum("re,etgsa->rtgsa", weight, counts)).transpose(0, 1)
        error = float(exploitability(game, again).std())
    unseen = float((counts.sum((0, -1)) == 0).double().mean())
    return Estimate(found, error, policy, unseen)


def _visits(game: MeanFieldGame, states: Tensor, actions: Tensor) -> Tensor:
    """How often each copy's agents did what where: [E, T, G, S, A]."""
    groups, s, a = game.num_groups, game.num_states, game.num_actions
    steps, copies, agents = states.shape
    group = torch.repeat_interleave(torch.arange(groups), torch.tensor(game.group_sizes)).to(states.device)
    if agents != len(group):
        raise ConfigError(f"{type(game).__name__} has {len(group)} agents, and samples of {agents} were given.")
    cell = (group * s + states) * a + actions
    offset = torch.arange(steps * copies, device=states.device).view(steps, copies, 1) * (groups * s * a)
    counts = torch.bincount((cell + offset).flatten(), minlength=steps * copies * groups * s * a)
    return counts.view(steps, copies, groups, s, a).transpose(0, 1).double()


def _frequencies(game: MeanFieldGame, counts: Tensor) -> Tensor:
    total = counts.sum(-1, keepdim=True)
    return torch.where(total > 0, counts / total.clamp(min=1), uniform(game).to(counts))
