r"""Correlated equilibria: a mediator draws a crowd and tells everybody what to play, and nobody gains by refusing.

The mediator draws a signal k with probability rho_k; then of each group a share w_k(m) is told to play policy m, and the
crowd goes its way mu_k. With J(pi; mu) what one agent of infinitely many gets, nobody may gain

$$ \max_{\pi'} \sum_k \rho_k \big( J(\pi'; \mu_k) - \sum_m w_k(m)\, J(\pi_m; \mu_k) \big) \le 0, \qquad
   \sum_m \max_{\pi'} \sum_k \rho_k\, w_k(m)\, \big( J(\pi'; \mu_k) - J(\pi_m; \mu_k) \big) = 0 $$

by committing to a policy before he is told anything (coarse) or after (correlated). An equilibrium in the sense of
Nash is a mediator with one signal. Both kinds exist and are learnt by minimising regret in every game, monotone or
not: Muller et al. 2022 (arXiv 2208.10138) and, with the double oracle over policies, 2021 (arXiv 2111.08350); Campi and
Fischer 2022 (arXiv 2004.06185). With dynamics that the crowd does not move the gains are exact: the
deviator meets the average of the rewards, and backward induction does the rest. Where the crowd moves them, who watches
his own way learns about the signal; that problem is refused.

Shapes: K signals, M policies; policies [T, M, G, S, A] as a batch of policies.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from scipy.optimize import linprog
from torch import Tensor

from mfmarl.errors import ConfigError, NumericFault
from mfmarl.games import values
from mfmarl.games.flow import Flow, along, check_policy, flow, uniform
from mfmarl.games.game import Crowd, MeanFieldGame
from mfmarl.games.solver import Solver

Kind = Literal["coarse", "correlated"]

_PAIRS = 16  # policies up to which crowds between every two are proposed
_ANSWERS = 3  # of those told, whose best answers join in a round
_LEAST = 1e-12  # probability of a signal, and share of a policy, that are worth keeping


class Mediator(NamedTuple):
    """Who draws the signal and tells everybody what to play."""

    chance: Tensor  # rho, [K]
    shares: Tensor  # w, [K, M, G]: of each group, who is told to play which policy
    policies: Tensor  # [T, M, G, S, A]


class Gaps(NamedTuple):
    """What is gained by refusing, summed over groups."""

    coarse: float  # before being told; below 0 where commitment costs
    correlated: float  # after being told; at least 0, and at least `coarse`
    value: float  # what an agent who obeys expects
    gains: Tensor  # [M, G]: what the told gain, times how often they are told m; `correlated` is the sum
    deviations: Tensor  # [T, M, G, S, A]: the best answer to being told m
    commitment: Tensor  # [T, G, S, A]: the best answer to being told nothing


def mediator(policies: Tensor, chance: Tensor | None = None) -> Mediator:
    """Everybody is told the same one of the policies [T, M, G, S, A], drawn uniformly or by `chance` [M]."""
    count, groups = policies.shape[1:3]
    if chance is None:
        chance = policies.new_full((count,), 1 / count)
    shares = torch.eye(count, dtype=policies.dtype, device=policies.device).unsqueeze(-1).expand(-1, -1, groups)
    return Mediator(chance, shares, policies)


def crowds(game: MeanFieldGame, told: Mediator) -> tuple[Flow, Tensor]:
    """The flow of each signal, batch [K], and the flow of those told each policy, mu [T, M, K, G, S].

    The policy of a signal's flow is what its crowd does as a whole, L / mu.
    """
    if game.horizon is None or game.tree is not None or game.batch:
        raise ConfigError("Correlated equilibria are of one game at a time, with a horizon and without common noise.")
    check_policy(game, told.policies)
    shares = told.shares.movedim(1, 0)  # [M, K, G]
    start = game.start(told.policies.dtype, told.policies.device)
    mine = start.expand(*shares.shape, -1)  # [M, K, G, S]
    joints, ways = [], []
    for t, policy in enumerate(told.policies.unbind(0)):
        joint = mine.unsqueeze(-1) * policy.unsqueeze(1)  # [M, K, G, S, A]
        joints.append((shares.unsqueeze(-1).unsqueeze(-1) * joint).sum(0))
        ways.append(mine)
        kernel = game.kernel(t, Crowd(joints[-1].sum(-1), counted=joints[-1]))
        mine = kernel.carry(joint)
    whole = torch.stack(joints)  # [T, K, G, S, A]
    mu = whole.sum(-1)
    nobody = uniform(game, whole.shape[1:-3], whole.dtype, whole.device)
    policy = torch.where(mu.unsqueeze(-1) > 0, whole / mu.unsqueeze(-1).clamp(min=_tiny(mu)), nobody)
    last = (shares.unsqueeze(-1) * mine).sum(0)
    return along(game, mu, policy, last=last), torch.stack(ways)


def payoffs(game: MeanFieldGame, told: Mediator) -> Tensor:
    """J(pi_m; mu_k), [K, M, G]: what one agent of each group gets by playing m when the signal is k."""
    path, _ = crowds(game, told)
    return torch.stack([_worth(game, path, policy) for policy in told.policies.unbind(1)], 1)


def gaps(game: MeanFieldGame, told: Mediator) -> Gaps:
    """What can be gained against a mediator, exactly.

    Raises ConfigError where the crowd moves the dynamics, or for a mediator that is none.
    """
    _fixed(game)
    _check(game, told)
    path, _ = crowds(game, told)
    paid = torch.stack([_worth(game, path, policy) for policy in told.policies.unbind(1)], 1)  # [K, M, G]
    weight = told.chance.reshape(-1, 1, 1) * told.shares  # [K, M, G]
    told_m = weight.movedim(1, 0)  # [M, K, G]
    commitment, free = _answer(game, path, told.chance.reshape(1, -1, 1).expand(1, -1, game.num_groups))
    deviations, best = _answer(game, path, told_m)
    obeyed = (weight * paid).sum(0)  # [M, G]
    gains = best - obeyed
    value = float(obeyed.sum())
    return Gaps(float(free.sum()) - value, float(gains.sum()), value, gains, deviations, commitment[:, 0].contiguous())


def _answer(game: MeanFieldGame, path: Flow, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Best policies [T, M, G, S, A] against signals of weights [M, K, G], and what they get [M, G], times the weight."""
    wide = weight.unsqueeze(-1).unsqueeze(-1)
    rewards = torch.stack([(wide * part).sum(1) for part in path.rewards.unbind(0)])
    last = None if path.terminal is None else (weight.unsqueeze(-1) * path.terminal).sum(1)
    some = path.mu[:, :1].expand(-1, len(weight), -1, -1)
    mean = path._replace(mu=some, policy=path.policy[:, :1], rewards=rewards, terminal=last)
    best = values.best(game, mean)
    start = game.start(best.v.dtype, best.v.device)
    return values.greedy(game, best.q), (start * best.v[0]).sum(-1)


def _worth(game: MeanFieldGame, path: Flow, policy: Tensor) -> Tensor:
    """What one agent who plays a policy [T, G, S, A] gets along each of K flows, [K, G]."""
    held = policy.unsqueeze(1).expand_as(path.policy)
    return (game.start(policy.dtype, policy.device) * values.of_policy(game, path, held).v[0]).sum(-1)


# ------------------------------------------------------------------------------------------- how they are found


@dataclass(frozen=True)
class Found:
    """A mediator, how much there is to gain against it, and how it was come by."""

    mediator: Mediator
    gaps: Gaps
    rows: list[dict[str, Any]]
    """For each round: policies, coarse, correlated, value."""


def empirical(
    game: MeanFieldGame, solver: Solver, iterations: int, every: int = 1, policy: Tensor | None = None
) -> Found:
    """The mediator who draws one of a solver's iterates and tells it to everybody.

    Of solvers without regret (omd with a rate of the order of 1/sqrt(iterations)) its coarse gap goes to 0 in every
    game with fixed dynamics, whether the iterates settle or go round.
    """
    _fixed(game)
    first = uniform(game) if policy is None else policy
    check_policy(game, first)
    state = solver.begin(game, first)
    seen = []
    for k in range(1, iterations + 1):
        if (k - 1) % every == 0:
            seen.append(solver.policy(game, state))
        state = solver.step(game, state, k)
    told = mediator(torch.stack(seen, 1))
    found = gaps(game, told)
    return Found(told, found, [_row(len(seen), found)])


def psro(
    game: MeanFieldGame,
    kind: Kind = "coarse",
    rounds: int = 50,
    tolerance: float = 1e-6,
    regret_steps: int = 200,
    best_for_all: bool = False,
    first: Tensor | None = None,
) -> Found:
    """Mean-field PSRO: an equilibrium among a few policies, the best answers to it, and again with these.

    Among M policies, regret matching proposes crowds (of commitment for `coarse`, of swaps for `correlated`) and a linear
    programme weighs them, with those kept from before and what lies between these. With `best_for_all`, the weights are those that pay most among all that leave nothing to gain,
    and crowds part-way between two policies are proposed too: often better for all than every Nash equilibrium. Ends
    when nobody gains more than `tolerance`, or after so many rounds, with the mediator against whom least was gained.
    """
    _fixed(game)
    policies = uniform(game, (1,)) if first is None else first
    check_policy(game, policies)
    if policies.ndim != 5:
        raise ConfigError(f"The first policies are [T, M, G, S, A], not {list(policies.shape)}.")
    kept: Tensor | None = None
    rows: list[dict[str, Any]] = []
    found: Found | None = None
    least = float("inf")
    for _ in range(rounds):
        rules = Restricted.of(game, policies)
        shares = torch.cat([rules.regret_matching(kind, regret_steps), rules.between(best_for_all)])
        if kept is not None:
            fill = shares.new_zeros(len(kept), rules.size - kept.shape[1], game.num_groups)
            shares = torch.cat([shares, torch.cat([kept, fill], 1)])
        told = rules.weighed(shares, kind, best_for_all)
        # In a monotone game the mean of an equilibrium's crowds is one of Nash: near them there is more to be found.
        mean = torch.einsum("k,kmg->mg", told.chance, told.shares).unsqueeze(0)
        kept = torch.cat([told.shares, mean, _midpoints(torch.cat([told.shares, mean])[-_PAIRS:])])
        measured = gaps(game, told)
        rows.append(_row(rules.size, measured))
        gain = measured.coarse if kind == "coarse" else measured.correlated
        if found is None or gain < least:
            found, least = Found(told, measured, rows), gain
        if gain <= tolerance:
            break
        if kind == "coarse":
            answers = [measured.commitment]
        else:
            most = measured.gains.sum(-1).topk(min(_ANSWERS, rules.size))
            answers = [measured.deviations[:, m] for m in most.indices[most.values > 0].tolist()]
        policies = torch.cat([policies, *(a.unsqueeze(1) for a in _new(policies, answers))], 1)
    assert found is not None
    return found


class Restricted(NamedTuple):
    """The game in which only M policies may be played."""

    game: MeanFieldGame
    policies: Tensor  # [T, M, G, S, A]
    joints: Tensor  # their flows L, [T, M, G, S, A]
    last: Tensor  # their distributions after the last step, [M, G, S]

    @classmethod
    def of(cls, game: MeanFieldGame, policies: Tensor) -> Restricted:
        path = flow(game, policies)
        return cls(game, policies, path.joint, path.kernels[-1].carry(path.joint[-1]))

    @property
    def size(self) -> int:
        return self.policies.shape[1]

    def payoffs(self, shares: Tensor) -> Tensor:
        """[K, M, G] of crowds made of shares [K, M, G]."""
        game = self.game
        whole = torch.einsum("kmg,tmgsa->tkgsa", shares, self.joints)
        if game.time_dependent:
            paid = torch.stack([game.paid(t, Crowd(p.sum(-1), counted=p)) for t, p in enumerate(whole.unbind(0))])
        else:
            paid = game.paid(0, Crowd(whole.sum(-1), counted=whole))
        legal = game.legal_mask(paid.device)
        paid = paid if legal is None else torch.where(legal, paid, 0.0)
        weight = game.discount ** torch.arange(len(whole), dtype=whole.dtype, device=whole.device)
        found = torch.einsum("t,tkgsa,tmgsa->kmg", weight, paid, self.joints)
        after = torch.einsum("kmg,mgs->kgs", shares, self.last)
        terminal = game.terminal(Crowd(after))
        if terminal is not None:
            found = found + game.discount ** len(whole) * torch.einsum("kgs,mgs->kmg", terminal, self.last)
        if not bool(torch.isfinite(found).all()):
            raise NumericFault(f"{type(game).__name__}: rewards are not finite at a mixture of policies.")
        return found

    def regret_matching(self, kind: Kind, steps: int) -> Tensor:
        """The crowds [K, M, G] that agents pass through who choose in proportion to their regrets (Hart and Mas-Colell
        2000, 2001), K of them."""
        m, g = self.size, self.game.num_groups
        share = self.policies.new_full((1, m, g), 1 / m)
        total = self.policies.new_zeros(m, m, g) if kind == "correlated" else self.policies.new_zeros(m, g)
        seen = []
        for _ in range(steps):
            seen.append(share)
            pay = self.payoffs(share)[0]  # [M, G]
            if kind == "coarse":
                total = total + pay - (share[0] * pay).sum(0)
                share = _normal(total.clamp(min=0)).unsqueeze(0)
            else:
                total = total + share[0].unsqueeze(1) * (pay.unsqueeze(0) - pay.unsqueeze(1))  # told m, would play n
                share = _standing(total.clamp(min=0)).unsqueeze(0)
        return torch.cat(seen)

    def between(self, parts: bool) -> Tensor:
        """Crowds [K, M, G] of one policy each, and with `parts` those a quarter, half and three quarters of the way
        between two."""
        corners = torch.eye(self.size, dtype=self.policies.dtype).unsqueeze(-1).expand(-1, -1, self.game.num_groups)
        if not parts or self.size > _PAIRS:
            return corners
        return torch.cat([corners, _midpoints(corners, 0.25), _midpoints(corners), _midpoints(corners, 0.75)])

    def weighed(self, shares: Tensor, kind: Kind, best_for_all: bool) -> Mediator:
        """The mediator over crowds [K, M, G] against whom least is gained by playing one of the M policies."""
        pay = self.payoffs(shares)
        signals, count, groups = pay.shape
        if kind == "coarse":
            gain = pay - (shares * pay).sum(1, keepdim=True)  # [K, M, G]
            rules, owners = gain.flatten(1).mT, groups
            belongs = torch.arange(groups).repeat(count)
        else:
            swap = shares.unsqueeze(2) * (pay.unsqueeze(1) - pay.unsqueeze(2))  # [K, told, would, G]
            rules = swap.permute(1, 2, 3, 0).reshape(-1, signals)
            owners = count * groups
            which = torch.arange(count * groups).reshape(count, 1, groups)
            belongs = which.expand(count, count, groups).reshape(-1)
        value = (shares * pay).sum((1, 2))
        chance = torch.as_tensor(_programme(rules.numpy(), belongs.numpy(), owners, value.numpy(), best_for_all))
        keep = chance > _LEAST
        return Mediator(chance[keep] / chance[keep].sum(), shares[keep], self.policies)


def _programme(
    rules: np.ndarray, belongs: np.ndarray, owners: int, value: np.ndarray, best_for_all: bool
) -> np.ndarray:
    """Probabilities [K] for which the sum over owners of the largest of their rules [R, K] is least.

    Then, where it is asked for, those of the largest value among all as good (to 1e-9).
    """
    signals = rules.shape[1]
    owner = np.zeros((len(rules), owners))
    owner[np.arange(len(rules)), belongs] = 1
    within = np.hstack([rules, -owner])
    cost = np.concatenate([np.zeros(signals), np.ones(owners)])
    one = np.concatenate([np.ones(signals), np.zeros(owners)])[None]
    bounds = [(0, None)] * signals + [(None, None)] * owners
    found = linprog(cost, within, np.zeros(len(rules)), one, [1.0], bounds, method="highs")
    if found.status != 0:
        raise NumericFault(f"The linear programme of a correlated equilibrium was not solved: {found.message}")
    if best_for_all:
        # Who obeys loses nothing: to punish refusal beyond that is worth nothing here.
        least = max(float(found.fun), 0.0) + 1e-9
        within = np.vstack([within, cost[None]])
        limit = np.concatenate([np.zeros(len(rules)), [least]])
        aim = np.concatenate([-value, np.zeros(owners)])
        better = linprog(aim, within, limit, one, [1.0], bounds, method="highs")
        found = better if better.status == 0 else found
    return np.clip(found.x[:signals], 0, None)


def _midpoints(shares: Tensor, way: float = 0.5) -> Tensor:
    """The crowds [K (K - 1) / 2, M, G] part of the way between every two of [K, M, G]."""
    first, second = torch.triu_indices(len(shares), len(shares), 1)
    return way * shares[first] + (1 - way) * shares[second]


def _standing(rate: Tensor) -> Tensor:
    """The distribution [M, G] that switching from m to n at `rate` [M, M, G] keeps in place."""
    count = len(rate)
    parts = []
    for each in rate.unbind(-1):
        most = float(each.max())
        if most == 0:
            parts.append(each.new_full((count,), 1 / count))
            continue
        # A little switching to anywhere makes it unique.
        each = each / most + 1e-9 / count
        balance = (each - torch.diag(each.sum(1))).mT.clone()
        balance[-1] = 1.0
        goal = each.new_zeros(count)
        goal[-1] = 1.0
        parts.append(_normal(torch.linalg.solve(balance, goal).clamp(min=0)))
    return torch.stack(parts, -1)


def _normal(weight: Tensor) -> Tensor:
    """Along the first axis, uniform where all are 0."""
    total = weight.sum(0, keepdim=True)
    return torch.where(total > 0, weight / total.clamp(min=_tiny(weight)), 1 / len(weight))


def _new(known: Tensor, answers: list[Tensor]) -> list[Tensor]:
    """Those of the answers [T, G, S, A] that are not among known policies [T, M, G, S, A], nor there twice."""
    found: list[Tensor] = []
    for answer in answers:
        others = [*known.unbind(1), *found]
        if all(float((answer - other).abs().max()) > 1e-9 for other in others):
            found.append(answer)
    return found


def _row(count: int, found: Gaps) -> dict[str, Any]:
    return {"policies": count, "coarse": found.coarse, "correlated": found.correlated, "value": found.value}


def _tiny(x: Tensor) -> float:
    return torch.finfo(x.dtype).tiny


def _fixed(game: MeanFieldGame) -> None:
    if game.crowd_moves:
        raise ConfigError(
            f"In {type(game).__name__} the crowd moves the dynamics, and who watches his own way learns what the "
            "mediator drew: gains are computed exactly where dynamics are fixed."
        )


def _check(game: MeanFieldGame, told: Mediator) -> None:
    signals, count = len(told.chance), told.policies.shape[1]
    if told.shares.shape != (signals, count, game.num_groups):
        raise ConfigError(
            f"The shares of a mediator with {signals} signals and {count} policies are [{signals}, {count}, "
            f"{game.num_groups}], not {list(told.shares.shape)}."
        )
    sums = torch.cat([told.chance.sum().reshape(1), told.shares.sum(1).flatten()])
    least = min(float(told.chance.min()), float(told.shares.min()))
    if not least >= 0 or not bool(((sums - 1).abs() < 1e-6).all()):
        raise ConfigError("A mediator's chances, and its shares of each signal, must be at least 0 and sum to 1.")
