r"""What states and actions are worth along a given flow: of a policy, at best, and at a temperature.

$$ Q_t(s, a) = r_t(s, a; \mu_t) + \gamma \sum_{s'} P_t(s' \mid s, a; \mu_t)\, V_{t+1}(s') $$

with V = sum_a pi Q of a policy, V = max_a Q at best, and V = T log sum_a exp(Q / T) of entropy-regularised agents.
The crowd is held: one agent of infinitely many does not move it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from mfmarl.games import stationary
from mfmarl.games.common_noise import Tree, to_parents
from mfmarl.games.flow import Flow
from mfmarl.games.game import MeanFieldGame
from mfmarl.games.kernels import Dense
from mfmarl.statmech import gibbs

_SMALL = 1 << 14  # entries of all matrices [T, *b, G, S, A, S] up to which they are made
TIE = 1e-9  # actions this close to the best, relative to 1 + |best|, share it alike


class Values(NamedTuple):
    q: Tensor  # [T, *b, G, S, A]
    v: Tensor  # [T, *b, G, S]


def of_policy(game: MeanFieldGame, flow: Flow, policy: Tensor | None = None) -> Values:
    """Of a policy [T, *b, G, S, A] (default: the flow's own)."""
    chosen = flow.policy if policy is None else policy
    if game.horizon is None:
        return Values(*stationary.of_policy(game, flow.kernels[0], flow.rewards[0], chosen[0]))
    if _is_small(game, flow):
        return _by_matrices(game, flow, chosen)
    parts = _by_time(game, chosen)
    return _backwards(game, flow, lambda t, q: (parts[t] * q).sum(-1))


def _is_small(game: MeanFieldGame, flow: Flow) -> bool:
    return (
        game.tree is None
        and flow.rewards.numel() * game.num_states <= _SMALL
        and all(type(kernel) is Dense for kernel in flow.kernels)
    )


def _by_matrices(game: MeanFieldGame, flow: Flow, policy: Tensor) -> Values:
    """Of a policy, where everything is small: whole matrices for all times at once leave one product a step."""
    shape = (*flow.rewards.shape, game.num_states)
    first = flow.kernels[0].dense()
    if all(kernel is flow.kernels[0] for kernel in flow.kernels):
        dense = first.expand(shape)
    else:
        dense = torch.stack([kernel.dense().expand(shape[1:]) for kernel in flow.kernels])
    moves = (policy.unsqueeze(-1) * dense).sum(-2).flatten(1, -3) * game.discount  # [T, B, S, S]
    paid = (policy * flow.rewards).sum(-1).flatten(1, -2).unsqueeze(-1)  # [T, B, S, 1]
    ahead = paid.new_zeros(paid.shape[1:]) if flow.terminal is None else flow.terminal.reshape(paid.shape[1:])
    found = [ahead]
    for now, step in zip(reversed(paid.unbind(0)), reversed(moves.unbind(0)), strict=True):
        found.append(torch.baddbmm(now, step, found[-1]))
    v = torch.stack(found[::-1]).squeeze(-1).view(len(found), *flow.mu.shape[1:])
    q = torch.add(flow.rewards, (dense * v[1:].unsqueeze(-2).unsqueeze(-2)).sum(-1), alpha=game.discount)
    return Values(q, v[:-1])


def best(game: MeanFieldGame, flow: Flow) -> Values:
    """Of the best an agent can do."""
    legal = game.legal_mask(flow.mu.device)
    if game.horizon is None:
        return Values(*stationary.best(game, flow.kernels[0], flow.rewards[0], legal))
    if legal is None:
        return _backwards(game, flow, lambda t, q: q.amax(-1))
    return _backwards(game, flow, lambda t, q: q.masked_fill(~legal, -torch.inf).amax(-1))


def soft(game: MeanFieldGame, flow: Flow, temperature: float | Tensor, prior: Tensor | None = None) -> Values:
    """Of the best under a bonus of T times the entropy, or minus T times the divergence from a `prior` policy.

    V = T log sum_a prior(a) exp(Q(a) / T): minus the free energy of energies -Q - T log prior. `temperature` is
    positive, a number or a tensor that broadcasts against [*b, G, S].
    """
    legal = game.legal_mask(flow.mu.device)
    logs = None if prior is None else _by_time(game, prior.log())

    def value(t: int, q: Tensor) -> Tensor:
        energy = -q if logs is None else -q - _last(temperature) * logs[t]
        return -gibbs.free_energy(energy if legal is None else energy.masked_fill(~legal, torch.inf), temperature)

    if game.horizon is None:
        return Values(*stationary.soft(game, flow.kernels[0], flow.rewards[0], lambda q: value(0, q)))
    return _backwards(game, flow, value)


def greedy(game: MeanFieldGame, q: Tensor, tie: float = TIE) -> Tensor:
    """The policy that takes the best actions of q [..., G, S, A], those within `tie` of the best alike.

    The rule for ties matters: fictitious play from two tied actions goes another way than from the first of them.
    """
    legal = game.legal_mask(q.device)
    q = q if legal is None else q.masked_fill(~legal, -torch.inf)
    top = q.amax(-1, keepdim=True)
    near = (q >= top - tie * (1 + top.abs())).to(q.dtype)
    return near / near.sum(-1, keepdim=True)


def boltzmann(game: MeanFieldGame, q: Tensor, temperature: float | Tensor, prior: Tensor | None = None) -> Tensor:
    """pi(a) ~ prior(a) exp(q(a)/T), [..., G, S, A]; at T = 0 uniform over the best. By log-sum-exp, so never NaN."""
    legal = game.legal_mask(q.device)
    energy = -q if prior is None else -q - _last(temperature) * prior.log()
    return gibbs.probabilities(energy if legal is None else energy.masked_fill(~legal, torch.inf), temperature)


def _last(temperature: float | Tensor) -> float | Tensor:
    return temperature.unsqueeze(-1) if isinstance(temperature, Tensor) and temperature.ndim else temperature


def _by_time(game: MeanFieldGame, policy: Tensor) -> Sequence[Tensor]:
    """[*b, G, S, A] for each time, or [K, *b, G, S, A] of the nodes of common noise."""
    return policy.unbind(0) if game.tree is None else [policy[level] for level in game.tree.levels]


def at_start(flow: Flow, v: Tensor) -> Tensor:
    """The mean of values v [T, *b, G, S] at the start: [*b, G]."""
    if not flow.chances:
        return (flow.mu[0] * v[0]).sum(-1)
    first = flow.chances[0]
    roots = len(first)
    return (first.unsqueeze(-1) * (flow.mu[:roots] * v[:roots]).sum(-1)).sum(0)


def _backwards(game: MeanFieldGame, flow: Flow, value: Callable[[int, Tensor], Tensor]) -> Values:
    if game.tree is not None:
        return _up_the_tree(game, game.tree.to(flow.mu.device), flow, value)
    rewards = flow.rewards.unbind(0)
    qs: list[Tensor] = []
    vs: list[Tensor] = []
    ahead = flow.terminal
    for t in range(len(rewards) - 1, -1, -1):
        if ahead is None:
            q = rewards[t]
        elif game.discount == 1:
            q = rewards[t] + flow.kernels[t].expect(ahead)
        else:
            q = rewards[t] + game.discount * flow.kernels[t].expect(ahead)
        ahead = value(t, q)
        qs.append(q)
        vs.append(ahead)
    return Values(torch.stack(qs[::-1]), torch.stack(vs[::-1]))


def _up_the_tree(game: MeanFieldGame, tree: Tree, flow: Flow, value: Callable[[int, Tensor], Tensor]) -> Values:
    """Backwards over the pasts of common noise: what lies ahead is the mean over a node's children."""
    qs: list[Tensor] = []
    vs: list[Tensor] = []
    ahead = flow.terminal
    for t in range(len(tree.levels) - 1, -1, -1):
        q = flow.rewards[tree.levels[t]]
        if ahead is not None:
            crowd_waits = ahead if t == len(tree.levels) - 1 else _mean_of_children(game, tree, flow, t, ahead)
            q = q + game.discount * flow.kernels[t].expect(crowd_waits)
            if game.major and t < len(tree.levels) - 1:
                # The major agent's own action chooses among the children; its crowd does not move.
                own = flow.chances[t + 1] * ahead[..., -1, 0].unsqueeze(-1)
                own = to_parents(own, tree.parent[t + 1], len(q))
                q[..., -1, 0, :] = flow.rewards[tree.levels[t]][..., -1, 0, :] + game.discount * own
        ahead = value(t, q)
        qs.append(q)
        vs.append(ahead)
    return Values(torch.cat(qs[::-1]), torch.cat(vs[::-1]))


def _mean_of_children(game: MeanFieldGame, tree: Tree, flow: Flow, t: int, ahead: Tensor) -> Tensor:
    """The mean over each node's children of values [K', *b, G, S], under the major agent's policy where there is one."""
    chance = flow.chances[t + 1]
    if game.major:
        acts = flow.policy[tree.levels[t]][..., -1, 0, :].index_select(0, tree.parent[t + 1])
        chance = (chance * acts).sum(-1)
    levels = tree.levels[t]
    return to_parents(chance.unsqueeze(-1).unsqueeze(-1) * ahead, tree.parent[t + 1], levels.stop - levels.start)
