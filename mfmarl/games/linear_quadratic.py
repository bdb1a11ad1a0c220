r"""Linear-quadratic games as populations: N agents with vectors for states and actions, and what Riccati says of them.

The author writes one matrix game (`problem`) and which forms of deviation and mean are of interest; steps of N agents,
observations, measures, equilibrium, social optimum and exploitability follow. Rewards are minus the costs; a terminal
cost is paid, discounted, with the last step.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, NamedTuple

import numpy as np
import torch
from gymnasium.spaces import Box
from torch import Tensor

from mfmarl import random
from mfmarl.errors import ConfigError
from mfmarl.games import riccati
from mfmarl.games.riccati import Array, LinearQuadratic, Rule
from mfmarl.options import Bounds, Count, Share
from mfmarl.population.environment import PopulationEnv
from mfmarl.population.known import Known
from mfmarl.population.spec import Spec
from mfmarl.random import Key

_BLOCK = 4096  # agents summed at once: the same order of additions however many copies there are


class State(NamedTuple):
    x: Tensor  # [E, N, d] float64
    time: Tensor  # [E] int64


@dataclass(frozen=True)
class LinearQuadraticGame(PopulationEnv):
    """Agents with linear dynamics and quadratic costs, who meet through their mean."""

    num_agents: Count = 100
    """Number of agents."""
    horizon: Count | None = 50
    """Number of decisions; none: without end, discounted."""
    discount: Share = 0.95
    """Discount per step."""
    reach: Annotated[float, Bounds(0, 1e6, open_low=True)] = 5.0
    """Bound of each component of an action. What theory knows is of agents without it: leave it beyond their use."""

    def __post_init__(self) -> None:
        if self.num_agents < 1:
            raise ConfigError(f"num_agents must be at least 1, not {self.num_agents}.")
        if self.horizon is not None and self.horizon < 1:
            raise ConfigError(f"horizon must be at least 1, not {self.horizon}.")
        if not 0 < self.discount <= 1 or (self.horizon is None and self.discount == 1):
            raise ConfigError(
                f"discount must lie in (0, 1], and below 1 in a game without a horizon, not {self.discount:g}."
            )
        if not self.reach > 0:
            raise ConfigError(f"reach must be positive, not {self.reach:g}.")

    # ------------------------------------------------------------------------------- what an author writes

    @abstractmethod
    def problem(self) -> LinearQuadratic:
        """The game in matrices, with this horizon and discount."""

    @abstractmethod
    def forms(self) -> dict[str, tuple[Array, Array]]:
        """Order parameters by name: forms [d, d] of a deviation from the mean, averaged over agents, and of the mean."""

    # ------------------------------------------------------------------------------------------- the rules

    @cached_property
    def _problem(self) -> LinearQuadratic:
        return self.problem()

    @cached_property
    def _tables(self) -> dict[str, Tensor]:
        game = self._problem
        roots = {name: _root(getattr(game, name)) for name in ("noise", "common", "spread")}
        plain = {
            name: getattr(game, name) for name in ("own", "crowd", "control", "cost", "cross", "effort", "terminal")
        }
        return {name: torch.from_numpy(table) for name, table in {**plain, **roots, "mean": game.mean}.items()}

    def _table(self, name: str, like: Tensor) -> Tensor:
        return self._tables[name].to(like.device)

    def spec(self) -> Spec:
        d, l = self._problem.control.shape  # noqa: E741
        return Spec(
            num_agents=self.num_agents,
            observation_space=Box(-np.inf, np.inf, (2 * d + (self.horizon is not None),), np.float32),
            action_space=Box(-self.reach, self.reach, (l,), np.float32),
            horizon=self.horizon,
            ends=self.horizon is not None,
            discount=self.discount,
        )

    def reset(self, ids: Tensor, key: Key) -> State:
        noise = random.normal(key.fold("state"), ids, self._problem.d).double()
        x = self._table("mean", noise) + noise @ self._table("spread", noise).mT
        return State(x, torch.zeros(len(ids), dtype=torch.int64, device=ids.device))

    def observe(self, state: State) -> Tensor:
        """One's own state, the mean, and the share of the time that is over."""
        mean = mean_of(state.x).unsqueeze(1).expand_as(state.x)
        seen = [state.x, mean]
        if self.horizon is not None:
            seen.append((state.time.double() / self.horizon).view(-1, 1, 1).expand(*state.x.shape[:2], 1))
        return torch.cat(seen, -1).to(torch.float32)

    def step(self, state: State, action: Tensor, ids: Tensor, key: Key) -> tuple[State, Tensor]:
        x, a = state.x, action.to(torch.float64)
        mean = mean_of(x).unsqueeze(1)
        table = {name: self._table(name, x) for name in self._tables}
        z = torch.cat([x, mean.expand_as(x)], -1)
        cost = _form(z, table["cost"]) + 2 * (a @ table["cross"] * z).sum(-1) + _form(a, table["effort"])
        own = random.normal(key.fold("noise"), ids, x.shape[-1]).double() @ table["noise"].mT
        moved = x @ table["own"].mT + mean @ table["crowd"].mT + a @ table["control"].mT + own
        if bool(self._problem.common.any()):
            copy = (ids[:, :1] >> 32) << 32  # one draw for all of a copy
            moved = moved + random.normal(key.fold("common"), copy, x.shape[-1]).double() @ table["common"].mT
        time = state.time + 1
        if self.horizon is not None:
            last = torch.cat([moved, mean_of(moved).unsqueeze(1).expand_as(moved)], -1)
            paid = self.discount * _form(last, table["terminal"])
            cost = cost + torch.where((time == self.horizon).unsqueeze(-1), paid, 0.0)
        return State(moved, time), (-cost).to(torch.float32)

    def measure(self, state: State) -> dict[str, Tensor]:
        mean = mean_of(state.x)
        away = state.x - mean.unsqueeze(1)
        measured = {}
        for name, (deviation, of_mean) in self.forms().items():
            each = _form(away, torch.from_numpy(deviation).to(away.device))
            total = mean_of(each.unsqueeze(-1)).squeeze(-1)
            measured[name] = (total + _form(mean, torch.from_numpy(of_mean).to(away.device))).to(torch.float32)
        return measured

    def policy(self, rule: Rule, state: State) -> Tensor:
        """The actions [E, N, l] of a rule, float32. The copies keep step with each other."""
        t = 0 if self.horizon is None else min(int(state.time[0]), self.horizon - 1)
        own = torch.from_numpy(rule.own[min(t, len(rule.own) - 1)]).to(state.x.device)
        crowd = torch.from_numpy(rule.crowd[min(t, len(rule.crowd) - 1)]).to(state.x.device)
        return (-(state.x @ own.mT) - (mean_of(state.x) @ crowd.mT).unsqueeze(1)).to(torch.float32)

    # ----------------------------------------------------------------------------------- what theory knows

    def nash(self, limit: bool = False) -> Rule:
        """The symmetric feedback equilibrium of these agents, or (`limit`) of infinitely many."""
        return riccati.nash(self._problem, math.inf if limit else self.num_agents)

    def planner(self) -> Rule:
        """The rule that is best for all together."""
        return riccati.planner(self._problem)

    def exploitability(self, rule: Rule, limit: bool = False) -> float:
        """What one of these agents (or of infinitely many) expects to gain, discounted from the start, by leaving a
        rule that all others keep. Exact."""
        return riccati.exploitability(self._problem, rule, math.inf if limit else self.num_agents)

    def value(self, rule: Rule, limit: bool = False) -> float:
        """What an agent expects from the start, discounted, when all keep the rule: minus the cost."""
        return -riccati.cost(self._problem, rule, math.inf if limit else self.num_agents)

    def reference(self, temperature: float = 0.0) -> dict[str, Known]:
        """The feedback equilibrium of these very agents, N of them; at T > 0 they tremble as Gibbs agents do."""
        rule = self.nash()
        shake = riccati.trembling(self._problem, rule, temperature, self.num_agents) if temperature > 0 else None
        source = f"symmetric feedback Nash equilibrium of N = {self.num_agents}, by Riccati equations"
        if shake is not None:
            source += f"; actions Gaussian around it at temperature {temperature:g}"
        return {name: Known(v, source, "equilibrium") for name, v in self.means(rule, shake).items()}

    def optimum(self) -> dict[str, Known]:
        """The planner's: what agents who share their rewards could reach."""
        source = "social optimum of N agents, by two Riccati equations"
        return {name: Known(v, source, "optimum") for name, v in self.means(self.planner()).items()}

    def fitted(self, states: Sequence[State], actions: Sequence[Tensor]) -> tuple[Rule, float]:
        """The rule nearest to what agents of any kind did: least squares on their own state and the mean, at every time.

        `states` are those of one run, with the actions [E, N, l] chosen in them; a game with a horizon needs all of its
        times, and copies whose means differ. Also the share of the actions' variance that no rule explains: only where
        that is small is the rule's `exploitability` that of the agents. Raises ConfigError for states of the wrong times.
        """
        times = [0] * len(states) if self.horizon is None else [int(state.time[0]) for state in states]
        wanted = range(self.horizon or 1)
        if set(times) != set(wanted) or len(actions) != len(states):
            raise ConfigError(
                f"A rule is fitted to states of the times 0 to {len(wanted) - 1} and as many actions, not to "
                f"{len(states)} states of the times {sorted(set(times))[:6]} and {len(actions)} actions."
            )
        gains, unexplained, whole = [], 0.0, 0.0
        for t in wanted:
            seen = [
                (torch.cat([s.x, mean_of(s.x).unsqueeze(1).expand_as(s.x)], -1).flatten(0, 1), a.double().flatten(0, 1))
                for s, a, at in zip(states, actions, times, strict=True)
                if at == t
            ]
            z, a = (torch.cat(part).cpu().numpy() for part in zip(*seen, strict=True))
            gain = np.linalg.lstsq(z, a, rcond=None)[0]
            gains.append(-gain.T)
            unexplained += float(((a - z @ gain) ** 2).sum())
            whole += float(((a - a.mean(0)) ** 2).sum())
        both, d = np.stack(gains), self._problem.d
        return Rule(both[..., :d], both[..., d:]), unexplained / whole if whole else 0.0

    def means(self, rule: Rule, shake: Array | None = None) -> dict[str, float]:
        """`reward` per agent and step and the measures after each step, averaged over an episode of N agents who keep
        a rule; without a horizon in the stationary state, where there is one. Exact."""
        game, n = self._problem, self.num_agents
        if self.horizon is None:
            found = {name: riccati.settled(game, rule, n, forms, shake) for name, forms in self.forms().items()}
            shaken = 0.0 if shake is None else float(np.tensordot(game.effort, shake[0]))
            found["reward"] = -riccati.settled(game, rule, n, riccati.spending(game, rule, 0), shake) - shaken
            return {name: v for name, v in found.items() if math.isfinite(v)}
        path = riccati.moments(game, rule, n, self.horizon, shake)
        paid = self.discount * _held(path, self.horizon, _split(game.terminal))
        for t in range(self.horizon):
            paid += _held(path, t, riccati.spending(game, rule, t))
            paid += 0.0 if shake is None else float(np.tensordot(game.effort, shake[t]))
        found = {"reward": -paid / self.horizon}
        for name, forms in self.forms().items():
            found[name] = float(np.mean([_held(path, t, forms) for t in range(1, self.horizon + 1)]))
        return found


def mean_of(x: Tensor) -> Tensor:
    """The mean over agents of [E, N, d] float64: [E, d], by additions whose order no other copy changes."""
    rows = x.movedim(1, -1).contiguous()
    whole = rows.shape[-1] // _BLOCK * _BLOCK
    total = rows[..., whole:].sum(-1)
    if whole:
        total = total + rows[..., :whole].unflatten(-1, (-1, _BLOCK)).sum(-1).sum(-1)
    return total / rows.shape[-1]


def _form(z: Tensor, matrix: Tensor) -> Tensor:
    return (z @ matrix * z).sum(-1)


def _root(covariance: Array) -> Array:
    """R with R R^T the covariance, which may be singular."""
    values, vectors = np.linalg.eigh(covariance)
    if values.min(initial=0) < -1e-9:
        raise ConfigError("A covariance of a linear-quadratic game has a negative eigenvalue.")
    return np.asarray(vectors * np.sqrt(np.maximum(values, 0)))


def _split(form: Array) -> tuple[Array, Array]:
    """A form of z = (x, m) as its part of the deviation and its part of the mean."""
    d = len(form) // 2
    return form[:d, :d], form[:d, :d] + form[:d, d:] + form[d:, :d] + form[d:, d:]


def _held(path: riccati.Moments, t: int, forms: tuple[Array, Array]) -> float:
    return float(np.tensordot(path.deviation[t], forms[0]) + np.tensordot(path.mean[t], forms[1]))
