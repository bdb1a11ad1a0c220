r"""What deep solvers share: small networks side by side, what they see of a game, and sampled paths of its agents.

A mind is one network, of one group in one entry of the batch: M = *b x G minds, and all their products are one. A mind
sees rows, one for each (start, time, state), by `MeanFieldGame.views`; its policy is tabulated on all of them, so that
the crowd it makes is exact. What it learns from are paths of single agents, who meet that crowd and do not move it.

All that learns is flat: [*b, G, 3, P], the weights and Adam's two moments (Kingma and Ba 2015, arXiv 1412.6980).
Noise is keyed, so that a step is a function of its state and an entry of a batch does not know of the others.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from mfmarl import random
from mfmarl.errors import ConfigError
from mfmarl.games.flow import Flow, flow, times, uniform
from mfmarl.games.game import Crowd, MeanFieldGame
from mfmarl.random import Key

_BETAS = (0.9, 0.999)
_LARGEST = 10.0  # norm of a mind's gradient, beyond which it is scaled down
_TINY = 1e-8

Head = Callable[[Tensor], Tensor]
"""What networks answer, [T', E, G, S, A] -> the policy, [T', E, G, S, A]."""


@dataclass(frozen=True)
class Layout:
    """How tables by time, [T, E, G, S, ...] with E = *b x D flows, become tables by mind, [M, D T S, ...], and back."""

    times: int
    batch: tuple[int, ...]
    starts: int
    groups: int
    states: int

    @property
    def flows(self) -> int:
        return math.prod(self.batch) * self.starts

    @property
    def minds(self) -> int:
        return math.prod(self.batch) * self.groups

    def by_mind(self, x: Tensor) -> Tensor:
        """[T', E, G, S, X] -> [M, D T' S, X], for any number T' of times; E may come as 1."""
        x = x.expand(-1, self.flows, -1, -1, -1)
        x = x.unflatten(1, (-1, self.starts))
        return x.permute(1, 3, 2, 0, 4, 5).reshape(self.minds, -1, x.shape[-1])

    def by_time(self, x: Tensor) -> Tensor:
        """[M, D T' S, X] -> [T', E, G, S, X]."""
        x = x.unflatten(0, (-1, self.groups)).unflatten(2, (self.starts, -1, self.states))
        return x.permute(3, 0, 2, 1, 4, 5).flatten(1, 2)


def layout_of(game: MeanFieldGame, batch: Sequence[int], starts: int = 1) -> Layout:
    return Layout(times(game), tuple(batch), starts, game.num_groups, game.num_states)


def uniform_start(game: MeanFieldGame, policy: Tensor, name: str) -> None:
    """Raises ConfigError where a solver whose networks know nothing yet is to begin with another policy than uniform."""
    if not torch.allclose(policy, _uniform_like(game, policy)):
        raise ConfigError(f"{name} begins with the uniform policy: its networks have learned nothing of another.")


def _uniform_like(game: MeanFieldGame, policy: Tensor) -> Tensor:
    return uniform(game, (1,) * (policy.ndim - 4), policy.dtype, policy.device)


# -------------------------------------------------------------------------------------------------- networks


def parameters(sizes: Sequence[int]) -> int:
    """P, of a network from sizes[0] features through hidden layers to sizes[-1] answers."""
    return sum(a * b + b for a, b in pairwise(sizes))


def features(game: MeanFieldGame) -> int:
    """O, how much an agent of the game sees."""
    return int(math.prod(game.spec().observation_space.shape or ()))


def new_networks(layout: Layout, sizes: Sequence[int], rows: Tensor, key: Key) -> Tensor:
    """[*b, G, 3, P] that answers 0 everywhere: float32, from a key.

    Hidden weights are He's (2015, arXiv 1502.01852), the first layer's by the length of what is seen: of a one-hot row
    few features are other than 0.
    """
    ids = torch.arange(layout.minds, device=rows.device)
    seen = float(rows.square().sum(-1).mean())
    parts = []
    for layer, (a, b) in enumerate(pairwise(sizes)):
        bound = math.sqrt(6 / max(seen if layer == 0 else a, 1e-6))
        weight = (random.uniform(key.fold(layer), ids, a * b) * 2 - 1) * bound
        parts += [weight if layer < len(sizes) - 2 else torch.zeros_like(weight), weight.new_zeros(len(ids), b)]
    weights = torch.cat(parts, 1)
    learned = torch.stack([weights, torch.zeros_like(weights), torch.zeros_like(weights)], 1)
    return learned.view(*layout.batch, layout.groups, 3, -1)


def answers(weights: Tensor, sizes: Sequence[int], x: Tensor) -> Tensor:
    """Of weights [M, P] to rows [M, R, O]: [M, R, sizes[-1]]."""
    shapes = list(pairwise(sizes))
    parts = weights.split([n for a, b in shapes for n in (a * b, b)], 1)
    for layer, (a, b) in enumerate(shapes):
        x = torch.baddbmm(parts[2 * layer + 1].unsqueeze(1), x, parts[2 * layer].view(-1, a, b))
        if layer < len(shapes) - 1:
            x = x.relu()
    return x


def descend(learned: Tensor, loss: Callable[[Tensor], Tensor], rate: float, step: int) -> Tensor:
    """One step of Adam, the `step`-th of all, down each mind's own loss(weights [M, P]) -> [M]; [M, 3, P] -> the same."""
    weights, first, second = learned.unbind(1)
    with torch.enable_grad():
        leaf = weights.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(loss(leaf).sum(), leaf)
    gradient = gradient * (_LARGEST / gradient.norm(dim=1, keepdim=True).clamp(min=_LARGEST))
    first = first.lerp(gradient, 1 - _BETAS[0])
    second = second.lerp(gradient.square(), 1 - _BETAS[1])
    size = rate * math.sqrt(1 - _BETAS[1] ** step) / (1 - _BETAS[0] ** step)
    return torch.stack([weights - size * first / (second.sqrt() + _TINY), first, second], 1)


def minibatches(
    learned: Tensor,
    loss: Callable[[Tensor, Tensor], Tensor],
    count: int,
    rows: int,
    updates: int,
    rate: float,
    done: int,
    key: Key,
) -> Tensor:
    """`updates` steps of descent of learned [M, 3, P], `done` having been made, each on `rows` of `count` transitions.

    `loss` (weights [M, P], drawn [M, rows]) -> [M], `drawn` being numbers in [0, count).
    """
    ids = torch.arange(len(learned) * rows, device=learned.device).view(-1, rows)
    for update in range(updates):
        drawn = random.integers(key.fold(update), ids, count)
        learned = descend(learned, lambda weights, drawn=drawn: loss(weights, drawn), rate, done + update + 1)  # type: ignore[misc]
    return learned


def fit_values(
    learned: Tensor,
    sizes: Sequence[int],
    seen: Tensor,
    row: Tensor,
    action: Tensor,
    target: Tensor,
    rows: int,
    updates: int,
    rate: float,
    done: int,
    key: Key,
) -> Tensor:
    """Descent of the squared error of what networks say of `action` [M, N] at the rows `row` [M, N] of `seen`."""

    def loss(weights: Tensor, drawn: Tensor) -> Tensor:
        said = answers(weights, sizes, look(seen, row.gather(1, drawn)))
        taken = said.gather(-1, action.gather(1, drawn).unsqueeze(-1)).squeeze(-1)
        return (taken - target.gather(1, drawn)).square().mean(-1)

    return minibatches(learned, loss, row.shape[1], rows, updates, rate, done, key)


# ------------------------------------------------------------------------------------------ what is seen, and done


class Seen(NamedTuple):
    """The crowd that networks make, and what they see of it."""

    flow: Flow  # of E flows
    rows: Tensor  # [1 or M, D T S, O], float32
    said: Tensor  # [T, E, G, S, A], float64: what the networks answer to the rows


def rows_of(game: MeanFieldGame, layout: Layout, mu: Tensor) -> Tensor:
    """What there is to be seen of crowds mu [T', E, G, S] at times 0, 1, ...: [1 or M, D T' S, O]."""
    if game.sight == "state":
        mine = torch.stack([game.views(t, mu[t, 0, 0]) for t in range(len(mu))])
        return mine.flatten(0, 1).repeat(layout.starts, 1).unsqueeze(0)
    return layout.by_mind(torch.stack([game.views(t, now) for t, now in enumerate(mu.unbind(0))]))


def tabulate(
    game: MeanFieldGame, layout: Layout, weights: Tensor, sizes: Sequence[int], head: Head, start: Tensor
) -> Seen:
    """The policy of networks [M, P] on every state and time, and its flow from `start` [E, G, S]."""
    if game.sight == "state":
        rows = rows_of(game, layout, start.expand(layout.times, *start.shape))
        said = layout.by_time(answers(weights, sizes, rows.expand(layout.minds, -1, -1)).to(start.dtype))
        return Seen(flow(game, head(said), start), rows, said)
    if game.horizon is None:
        raise ConfigError("A policy that watches the crowd is learned in a game with a horizon; use sight=state.")
    # The crowd of now is seen before it moves on: time by time.
    mu, views, said, policies = start, [], [], []
    for t in range(layout.times):
        views.append(game.views(t, mu))
        seen = layout.by_mind(views[-1].unsqueeze(0))
        said.append(layout.by_time(answers(weights, sizes, seen).to(start.dtype)))
        policies.append(head(said[-1]))
        crowd = Crowd(mu, policies[-1].squeeze(0))
        mu = game.kernel(t, crowd).carry(crowd.joint)
    return Seen(flow(game, torch.cat(policies), start), layout.by_mind(torch.stack(views)), torch.cat(said))


def look(rows: Tensor, index: Tensor) -> Tensor:
    """The rows [1 or M, R, O] at `index` [M, B]: [M, B, O]."""
    if len(rows) == 1:
        return rows[0].index_select(0, index.flatten()).unflatten(0, index.shape)
    line = index + torch.arange(len(rows), device=index.device).unsqueeze(1) * rows.shape[1]
    return rows.flatten(0, 1).index_select(0, line.flatten()).unflatten(0, index.shape)


# -------------------------------------------------------------------------------------------------- experience


class Paths(NamedTuple):
    """What `agents` of each flow met with, L steps long: N = D x agents to a mind."""

    row: Tensor  # [L, M, N] int64, what they saw
    action: Tensor  # [L, M, N] int64
    reward: Tensor  # [L, M, N] float32, a terminal reward included
    after: Tensor  # [L, M, N] int64, what they saw next; where nothing comes next, any row
    goes_on: Tensor  # [L] float32, 1 where something does

    def transitions(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Row, action, reward, row after, whether it goes on: [M, L N]."""
        on = self.goes_on.view(-1, 1, 1).expand(self.reward.shape)
        row, action, reward, after, on = (
            x.transpose(0, 1).flatten(1) for x in (self.row, self.action, self.reward, self.after, on)
        )
        return row, action, reward, after, on


def walk(
    game: MeanFieldGame,
    layout: Layout,
    path: Flow,
    behaviour: Tensor,
    agents: int,
    length: int,
    scatter: float,
    key: Key,
) -> Paths:
    """Paths of agents who follow `behaviour` [T, E, G, S, A] amid the crowd of `path`: T steps, or `length` without a
    horizon. At each step an agent finds itself, with probability `scatter`, in any state instead of the one it came to.
    """
    flows, groups, states, width = layout.flows, layout.groups, layout.states, game.num_actions
    device = behaviour.device
    ids = torch.arange(flows * groups * agents, device=device).view(flows, -1)
    group = torch.arange(groups, device=device).repeat_interleave(agents)
    steps = layout.times if game.horizon is not None else length
    state = _drawn(path.mu[0], group, random.uniform(key.fold("start"), ids))
    found: list[tuple[Tensor, ...]] = []
    for step in range(steps):
        t = step if game.horizon is not None else 0
        if scatter:
            anywhere = random.integers(key.fold("where", step), ids, states)
            state = torch.where(random.uniform(key.fold("scatter", step), ids) < scatter, anywhere, state)
        cell = group * states + state
        chances = _rows_at(behaviour[t].flatten(1, 2), cell)
        action = _inverse(chances, random.uniform(key.fold("act", step), ids))
        reward = path.rewards[t].reshape(flows, -1).gather(1, cell * width + action)
        level = random.uniform(key.fold("move", step), ids)
        after = path.kernels[t].draw(group, state, action, level)
        if game.horizon is not None and step == steps - 1 and path.terminal is not None:
            # What comes at the end is discounted once: the value of the step is r + gamma x terminal.
            reward = reward + game.discount * path.terminal.reshape(flows, -1).gather(1, group * states + after)
        following = t + 1 if game.horizon is not None and t + 1 < layout.times else t
        found.append((_row(layout, t, state), _of_mind(layout, action), _of_mind(layout, reward).float(),
                      _row(layout, following, after)))  # fmt: skip
        state = after
    on = torch.ones(steps, device=device)
    if game.horizon is not None:
        on[-1] = 0
    row, action, reward, after = (torch.stack(x) for x in zip(*found, strict=True))
    return Paths(row, action, reward, after, on)


def _of_mind(layout: Layout, x: Tensor) -> Tensor:
    """[E, G n] -> [M, D n]."""
    x = x.unflatten(1, (layout.groups, -1)).unflatten(0, (-1, layout.starts))
    return x.transpose(1, 2).reshape(layout.minds, -1)


def _row(layout: Layout, t: int, state: Tensor) -> Tensor:
    """The rows [M, D n] of agents in `state` [E, G n] at time t."""
    which = torch.arange(layout.flows, device=state.device).remainder(layout.starts).unsqueeze(1)
    return _of_mind(layout, (which * layout.times + t) * layout.states + state)


def _drawn(mu: Tensor, group: Tensor, level: Tensor) -> Tensor:
    """States [E, N] of agents of those groups, from mu [E, G, S]."""
    state = torch.empty(level.shape, dtype=torch.int64, device=mu.device)
    cumulative = mu.cumsum(-1)
    for g in range(mu.shape[1]):
        mine = group == g
        edges = cumulative[:, g].contiguous()
        state[:, mine] = torch.searchsorted(edges, (level[:, mine].to(mu.dtype) * edges[:, -1:]).contiguous(), right=True)
    return state.clamp_(max=mu.shape[-1] - 1)


def _rows_at(table: Tensor, cell: Tensor) -> Tensor:
    """[E, G S, A] at cell [E, N]: [E, N, A]."""
    return table.gather(1, cell.unsqueeze(-1).expand(-1, -1, table.shape[-1]))


def _inverse(chances: Tensor, level: Tensor) -> Tensor:
    """Which action the level falls to: int64, never one of probability 0."""
    cumulative = chances.cumsum(-1)
    return (level.to(chances.dtype).unsqueeze(-1) * cumulative[..., -1:] >= cumulative[..., :-1]).sum(-1)


def exploring(policy: Tensor, legal: Tensor | None, share: float) -> Tensor:
    """The policy [..., A] that takes any legal action alike with probability `share`."""
    if legal is None:
        return (1 - share) * policy + share / policy.shape[-1]
    weight = legal.to(policy.dtype)
    return (1 - share) * policy + share * weight / weight.sum(-1, keepdim=True)


def reward_scale(game: MeanFieldGame, path: Flow, layout: Layout) -> Tensor:
    """How large values are, [*b, G] float64: the root mean square of what is paid along the flow, times how long."""
    steps = 1 / (1 - game.discount) if game.horizon is None else float(game.horizon)
    each = (path.joint * path.rewards.square()).sum((-2, -1)).mean(0).sqrt()  # [E, G]
    each = each.unflatten(0, (-1, layout.starts)).mean(1).view(*layout.batch, layout.groups)
    return (each * steps).clamp(min=1e-6)
