r"""What deep solvers share: small networks side by side, what they see of a game, and how they learn.

A mind is one network, of one group in one entry of the batch: M = *b x G minds, and all their products are one. A mind
sees rows, one for each (start, time, state), by `MeanFieldGame.views`; its policy is tabulated on all of them, so that
the crowd it makes is exact. What it learns from are paths of single agents (`sampling`).

All that learns is flat: [*b, G, 3, P], the weights and Adam's two moments (Kingma and Ba 2015, arXiv 1412.6980).
Noise is keyed, so that a step is a function of its state and an entry of a batch does not know of the others.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from mfmarl import random
from mfmarl.errors import ConfigError
from mfmarl.games.flow import Flow, flow, uniform
from mfmarl.games.game import Crowd, MeanFieldGame
from mfmarl.games.sampling import Layout
from mfmarl.random import Key

_BETAS = (0.9, 0.999)
_LARGEST = 10.0  # norm of a mind's gradient, beyond which it is scaled down
_TINY = 1e-8

Head = Callable[[Tensor], Tensor]
"""What networks answer, [T', E, G, S, A] -> the policy, [T', E, G, S, A]."""


def check_beginning(game: MeanFieldGame, policy: Tensor, name: str) -> None:
    """Raises ConfigError where a solver that learns from samples cannot begin: with another policy than uniform, of
    which its networks and tables know nothing, under common noise, or with many games side by side."""
    if game.tree is not None:
        raise ConfigError(f"{name} follows one crowd, and common noise makes many: use omd or fp.")
    if game.batch:
        raise ConfigError(f"{name} learns one game at a time.")
    if not torch.allclose(policy, _uniform_like(game, policy)):
        raise ConfigError(f"{name} begins with the uniform policy: it has learned nothing of another.")


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
    """One step of Adam, the `step`-th of all, down each mind's own loss(weights [M, P]) -> [M]; [M, 3, P] -> the same.

    A mind without any gradient stays where it is, and is not carried on by its momentum.
    """
    weights, first, second = learned.unbind(1)
    with torch.enable_grad():
        leaf = weights.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(loss(leaf).sum(), leaf)
    norm = gradient.norm(dim=1, keepdim=True)
    gradient = gradient * (_LARGEST / norm.clamp(min=_LARGEST))
    first = first.lerp(gradient, 1 - _BETAS[0])
    second = second.lerp(gradient.square(), 1 - _BETAS[1])
    size = rate * math.sqrt(1 - _BETAS[1] ** step) / (1 - _BETAS[0] ** step)
    after = torch.stack([weights - size * first / (second.sqrt() + _TINY), first, second], 1)
    moved = norm > 0
    return after if bool(moved.all()) else torch.where(moved.unsqueeze(-1), after, learned)


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
    mu, views, told, policies = start, [], [], []
    for t in range(layout.times):
        views.append(game.views(t, mu))
        seen = layout.by_mind(views[-1].unsqueeze(0))
        told.append(layout.by_time(answers(weights, sizes, seen).to(start.dtype)))
        policies.append(head(told[-1]))
        crowd = Crowd(mu, policies[-1].squeeze(0))
        mu = game.kernel(t, crowd).carry(crowd.joint)
    return Seen(flow(game, torch.cat(policies), start), layout.by_mind(torch.stack(views)), torch.cat(told))


def look(rows: Tensor, index: Tensor) -> Tensor:
    """The rows [1 or M, R, O] at `index` [M, B]: [M, B, O]."""
    if len(rows) == 1:
        return rows[0].index_select(0, index.flatten()).unflatten(0, index.shape)
    line = index + torch.arange(len(rows), device=index.device).unsqueeze(1) * rows.shape[1]
    return rows.flatten(0, 1).index_select(0, line.flatten()).unflatten(0, index.shape)


def reward_scale(game: MeanFieldGame, path: Flow, layout: Layout) -> Tensor:
    """How large values are, [*b, G]: the root mean square of what is paid along the flow, times how long; 1 for nothing."""
    each = (path.joint * path.rewards.square()).sum((-2, -1)).sum(0)  # [E, G]
    if path.terminal is not None:
        last = path.kernels[-1].carry(path.joint[-1])
        each = each + (last * path.terminal.square()).sum(-1)
    steps = 1 / (1 - game.discount) if game.horizon is None else float(game.horizon)
    scale = (each / layout.times).sqrt() * steps
    scale = scale.unflatten(0, (-1, layout.starts)).mean(1).view(*layout.batch, layout.groups)
    return torch.where(scale > 1e-9, scale, torch.ones_like(scale))
