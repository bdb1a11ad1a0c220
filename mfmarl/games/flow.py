r"""The crowd in time: what a policy makes of the initial distribution.

$$ \mu_{t+1} = L_t P_t(\mu_t), \qquad L_t(s, a) = \mu_t(s)\, \pi_t(a \mid s) $$

A policy is [T, *b, G, S, A]; a game without a horizon has one time, and its flow is the stationary distribution.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from mfmarl.errors import ConfigError, EnvironmentFault, NumericFault
from mfmarl.games import stationary
from mfmarl.games.common_noise import Tree
from mfmarl.games.game import Crowd, MeanFieldGame
from mfmarl.games.kernels import Kernel


class Flow(NamedTuple):
    """The crowd's way, and what every state and action lead to and pay along it."""

    mu: Tensor  # [T, *b, G, S]
    policy: Tensor  # [T, *b, G, S, A]
    kernels: Sequence[Kernel]  # T of them
    rewards: Tensor  # [T, *b, G, S, A]
    terminal: Tensor | None  # [*b, G, S]
    chances: Sequence[Tensor] = ()
    """With common noise, for each time the probability of its nodes given their parents: [K, *b], or [K, *b, A] where
    a major agent's action decides (of the first time [K, 1...])."""

    @property
    def joint(self) -> Tensor:
        """L, [T, *b, G, S, A]."""
        return self.mu.unsqueeze(-1) * self.policy


Chooser = Callable[[int, Tensor], Tensor]
"""(time, mu [*b, G, S]) -> probabilities [*b, G, S, A]: a policy that watches the crowd."""


def times(game: MeanFieldGame) -> int:
    """T, the number of policies: the horizon; 1 of a stationary game; every past of common noise."""
    return (game.horizon or 1) if game.tree is None else game.tree.nodes


def uniform(
    game: MeanFieldGame,
    batch: Sequence[int] = (),
    dtype: torch.dtype = torch.float64,
    device: torch.device | str = "cpu",
) -> Tensor:
    """The policy that takes each legal action alike, [T, *batch, G, S, A] (of many games, before G their own axis)."""
    shape = (times(game), *batch, *game.batch, game.num_groups, game.num_states, game.num_actions)
    legal = game.legal_mask(device)
    if legal is None:
        return torch.full(shape, 1 / game.num_actions, dtype=dtype, device=device)
    weight = legal.to(dtype)
    return (weight / weight.sum(-1, keepdim=True)).expand(shape).clone()


def check_policy(game: MeanFieldGame, policy: Tensor) -> None:
    """Raises ConfigError for a policy of the wrong shape or that takes illegal actions, NumericFault for one that is
    not a probability distribution (a NaN above all)."""
    shape = (times(game), game.num_groups, game.num_states, game.num_actions)
    if policy.ndim < 4 or (policy.shape[0], *policy.shape[-3:]) != shape:
        raise ConfigError(
            f"A policy for {type(game).__name__} is [T={shape[0]}, ..., G={shape[1]}, S={shape[2]}, A={shape[3]}], "
            f"not {list(policy.shape)}."
        )
    if not policy.is_floating_point():
        raise ConfigError(f"A policy holds probabilities, not {policy.dtype}.")
    off = ~((policy.sum(-1) - 1).abs() <= 1e-4) | ~(policy >= 0).all(-1)
    if bool(off.any()):
        t, *_, s = off.nonzero()[0].tolist()
        row = policy[tuple(off.nonzero()[0].tolist())].tolist()
        told = ", ".join(f"{p:.4g}" for p in row[:6])
        raise NumericFault(f"The policy at time {t}, state {s} is no probability distribution: ({told}).")
    legal = game.legal_mask(policy.device)
    if legal is not None and bool((policy > 0).logical_and(~legal).any()):
        t, *_, s, a = (policy > 0).logical_and(~legal).nonzero()[0].tolist()
        raise ConfigError(f"The policy takes action {a} in state {s} at time {t}, which is not legal there.")


def flow(game: MeanFieldGame, policy: Tensor, mu: Tensor | None = None, check: bool = False) -> Flow:
    """The flow of a policy [T, *b, G, S, A]; from `mu` [*b, G, S] instead of the initial distribution where given.

    `check` looks at every kernel. Raises EnvironmentFault for kernels that are none, NumericFault for rewards that
    are not finite.
    """
    batch = policy.shape[1:-1]
    start = (game.start(policy.dtype, policy.device) if mu is None else mu).expand(batch)
    if game.horizon is None:
        return along(game, stationary.distribution(game, policy[0], start).unsqueeze(0), policy, check=check)
    if game.tree is not None:
        return _branching(game, game.tree.to(policy.device), policy, start, check)
    path, kernels = [start], []
    for t, chosen in enumerate(policy.unbind(0)):
        crowd = Crowd(path[-1], chosen)
        kernels.append(_kernel(game, t, crowd, check))
        if t + 1 < len(policy) or type(game).terminal is not MeanFieldGame.terminal:
            path.append(kernels[-1].carry(crowd.joint))
    return along(
        game, torch.stack(path[: len(policy)]), policy, kernels, path[len(policy)] if len(path) > len(policy) else None
    )


def _branching(game: MeanFieldGame, tree: Tree, policy: Tensor, start: Tensor, check: bool) -> Flow:
    """The flow over all pasts of the common noise: nodes along the first axis."""
    roots = tree.common[0]
    mu = start.expand(len(roots), *start.shape)
    inner = (1,) * (start.ndim - 2)
    chances = [game.common_initial().to(policy)[roots].reshape(-1, *inner)]
    path, kernels, rewards = [], [], []
    for t, level in enumerate(tree.levels):
        if t > 0:
            mu = mu.index_select(0, tree.parent[t])
        common = tree.common[t].reshape(-1, *inner, 1, 1)
        crowd = Crowd(mu, policy[level], common=common)
        kernels.append(_kernel(game, t, crowd, check))
        path.append(mu)
        rewards.append(game.paid(t, crowd))
        mu = kernels[-1].carry(crowd.joint)
        if t + 1 < len(tree.levels):
            chances.append(_chances(game, t, crowd, tree, check))
    mu_all, paid = torch.cat(path), torch.cat(rewards)
    paid = _finite(game, paid)
    terminal = None
    if type(game).terminal is not MeanFieldGame.terminal:
        terminal = game.terminal(Crowd(mu, common=tree.common[-1].reshape(-1, *inner, 1, 1)))
        terminal = None if terminal is None else terminal.expand(mu.shape)
    return Flow(mu_all, policy, kernels, paid, terminal, chances)


def _chances(game: MeanFieldGame, t: int, crowd: Crowd, tree: Tree, check: bool) -> Tensor:
    """The probability of each node of time t + 1 given its parent: [K', *b], or [K', *b, A] under a major agent."""
    moves = game.common_moves(t, crowd)
    shape = (*crowd.mu.shape[:-2], game.num_actions) if game.major else crowd.mu.shape[:-2]
    moves = moves.expand(*shape, game.common_states)
    if check:
        outside = ~game.common_support(t).to(moves.device)[tree.common[t]]
        outside = outside.reshape(len(outside), *[1] * (moves.ndim - 2), -1)
        off = (moves.sum(-1) - 1).abs().amax() if not bool((moves < 0).any()) else 1.0
        if not off <= 1e-6 or bool((moves * outside).any()):
            raise EnvironmentFault(
                f"{type(game).__name__} at time {t}: common_moves must be probabilities of the states that common_support allows."
            )
    return (
        moves.index_select(0, tree.parent[t + 1])
        .gather(
            -1,
            tree.common[t + 1]
            .reshape(-1, *[1] * (moves.ndim - 1))
            .expand(len(tree.parent[t + 1]), *moves.shape[1:-1], 1),
        )
        .squeeze(-1)
    )


def reach(game: MeanFieldGame, path: Flow) -> Tensor:
    """The probability of each past [T, *b]: of each time 1, without common noise."""
    if game.tree is None:
        return path.mu.new_ones(path.mu.shape[:-2])
    tree = game.tree.to(path.mu.device)
    found = [path.chances[0].expand(len(tree.common[0]), *path.mu.shape[1:-2])]
    for t in range(1, len(tree.levels)):
        chance = path.chances[t]
        if game.major:
            acts = path.policy[tree.levels[t - 1]][..., -1, 0, :].index_select(0, tree.parent[t])
            chance = (chance * acts).sum(-1)
        found.append(chance * found[-1].index_select(0, tree.parent[t]))
    return torch.cat(found)


def watched(game: MeanFieldGame, choose: Chooser, batch: Sequence[int] = (), dtype: torch.dtype = torch.float64,
            device: torch.device | str = "cpu") -> Flow:  # fmt: skip
    """The flow of a policy that is asked at every time, with the crowd as it then is."""
    if game.horizon is None:
        raise ConfigError("A policy that watches the crowd is followed in a game with a horizon.")
    if game.tree is not None:
        raise ConfigError("A policy that watches the crowd cannot be followed through common noise yet: tabulate it.")
    mu = game.start(dtype, device)
    mu = mu.expand(*batch, *mu.shape)
    path, chosen, kernels = [mu], [], []
    for t in range(game.horizon):
        chosen.append(choose(t, path[-1]).to(dtype))
        crowd = Crowd(path[-1], chosen[-1])
        kernels.append(game.kernel(t, crowd))
        path.append(kernels[-1].carry(crowd.joint))
    return along(game, torch.stack(path[:-1]), torch.stack(chosen), kernels, path[-1])


def along(
    game: MeanFieldGame,
    mu: Tensor,
    policy: Tensor,
    kernels: Sequence[Kernel] | None = None,
    last: Tensor | None = None,
    check: bool = False,
) -> Flow:
    """What a crowd's given way mu [T, *b, G, S] makes everything lead to and pay, whether it is a flow or not.

    `last` [*b, G, S] is the crowd after the last step, for a terminal reward.
    """
    if game.tree is not None:
        raise ConfigError("Under common noise a crowd's way is that of a policy: use flow().")
    crowd = Crowd(mu, policy)
    if kernels is None:
        kernels = [
            _kernel(game, t, Crowd(m, p), check)
            for t, (m, p) in enumerate(zip(mu.unbind(0), policy.unbind(0), strict=True))
        ]
    if game.time_dependent:
        pairs = zip(mu.unbind(0), policy.unbind(0), strict=True)
        rewards = torch.stack([game.paid(t, Crowd(m, p)) for t, (m, p) in enumerate(pairs)])
    else:
        rewards = game.paid(0, crowd)
    rewards = _finite(game, rewards)
    terminal = None
    if game.horizon is not None and type(game).terminal is not MeanFieldGame.terminal:
        if last is None:
            last = kernels[-1].carry(mu[-1].unsqueeze(-1) * policy[-1])
        terminal = game.terminal(Crowd(last))
        if terminal is not None:
            terminal = terminal.expand(last.shape)
    return Flow(mu, policy, kernels, rewards, terminal)


def _kernel(game: MeanFieldGame, t: int, crowd: Crowd, check: bool) -> Kernel:
    kernel = game.kernel(t, crowd)
    if check:
        if not isinstance(kernel, Kernel):
            raise EnvironmentFault(
                f"{type(game).__name__}.outcomes must return Outcomes, Dense or Moves, not {type(kernel).__name__}."
            )
        kernel.check(f"{type(game).__name__} at time {t}")
    return kernel


def _finite(game: MeanFieldGame, rewards: Tensor) -> Tensor:
    """The rewards, with 0 in the place of anything infinite that nobody may do."""
    legal = game.legal_mask(rewards.device)
    # One sum says whether all are finite; which is not is looked for only then.
    if not bool(torch.isfinite(rewards.detach().sum())):
        bad = ~torch.isfinite(rewards) if legal is None else ~torch.isfinite(rewards) & legal
        if bool(bad.any()):
            t, *_, s, a = bad.nonzero()[0].tolist()
            raise NumericFault(
                f"{type(game).__name__}: the reward at time {t} of state {s}, action {a} is "
                f"{float(rewards[tuple(bad.nonzero()[0].tolist())]):g}; rewards must be finite for every crowd "
                "(the logarithm of an empty state is not: add a small number to mu)."
            )
        if legal is not None:
            return torch.where(legal, rewards, 0.0)
    return rewards
