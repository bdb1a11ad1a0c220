r"""Is a trained population in equilibrium, and near a transition? Its susceptibility, measured in two ways.

$$ \chi = \frac{N}{T} \operatorname{Var}(m), \qquad R = \frac{d \langle m \rangle}{dh}, \qquad m = \sum_a c_a x_a $$

with x_a the share of the N agents whose action in force is a. In equilibrium (moves that keep detailed balance with
respect to one energy) the fluctuation-dissipation theorem says chi = R; learning that goes on, moves made all at once
and games without a potential break it. R is measured: every agent's energy of action a is lowered by h c_a, an
incentive h, and by -h c_a. The direction c is that in which shares fluctuate most, with largest entry 1: for Ising
spins m is the magnetisation. chi peaks where the population is about to change its mind, before m moves.

Policies are frozen. Kubo 1966 (Rep. Prog. Phys. 29, 255); for a population of N = 400 spins of Curie and Weiss at
beta = .8 both are 3.8.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mfmarl.errors import ConfigError, NumericFault
from mfmarl.learning.agent import Agent
from mfmarl.learning.build import open_population
from mfmarl.learning.durable import write_atomic
from mfmarl.learning.episode import Episode
from mfmarl.learning.players import Player
from mfmarl.learning.run import load_training
from mfmarl.learning.thermodynamics import thermodynamics
from mfmarl.population.simulation import Env
from mfmarl.random import Key
from mfmarl.statmech import response
from mfmarl.statmech.sampling import diagnostics

_STILL = "The shares of {}'s actions never change: there are no fluctuations to measure."
_STILL = "The shares of {}'s actions never change: there are no fluctuations to measure."
_COPIES, _SLOTS = 32, 1 << 18
_APART = 2.0  # R-hat: 1.1 to 1.5 where memory is a tenth of the steps, many where two phases are seen


class Number(NamedTuple):
    """A value and its standard error."""

    value: float
    error: float

    def __str__(self) -> str:
        return f"{self.value:.4g} +- {self.error:.2g}"


class Diagnosis(NamedTuple):
    """Of one player."""

    agents: int
    temperature: float
    direction: list[float]
    """c [A]."""
    order: Number
    """<|m|>."""
    susceptibility: Number
    """chi, from fluctuations."""
    response: Number
    """R, from incentives of both signs."""
    incentive: float
    """h."""
    autocorrelation_time: float
    """Of m, in steps: how long the population remembers."""
    apart: bool
    """Whether copies settled on different sides, as below a transition: chi is then that within each."""
    gibbs: dict[str, float]
    """Means over agents: energy, entropy, free_energy, heat_capacity (and uncertainty, of replicas)."""

    @property
    def violation(self) -> Number:
        """R/chi: 1 in equilibrium."""
        ratio = self.response.value / self.susceptibility.value
        spread = math.hypot(
            self.response.error / self.susceptibility.value,
            ratio * self.susceptibility.error / self.susceptibility.value,
        )
        return Number(ratio, spread)

    def to_table(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        table = {k: v._asdict() if isinstance(v, Number) else v for k, v in self._asdict().items()}
        return {**table, "violation": self.violation._asdict()}


class Pushed:
    """An agent whose energies are lowered by `push` [A]; everything else is the agent's own."""

    def __init__(self, agent: Agent, push: Tensor) -> None:
        self._agent, self._push = agent, push

    def __getattr__(self, name: str) -> Any:
        return getattr(self._agent, name)

    def energy(self, obs: Tensor, field: Tensor) -> Tensor:
        return self._agent.energy(obs, field) - self._push

    act = Agent.act
    choose = Agent.choose


Watched = Callable[[int], None]
"""Told how many steps of the diagnosis are done."""


def diagnose_run(
    path: Path, steps: int = 1000, copies: int = 8, watched: Watched | None = None
) -> dict[str, Diagnosis]:
    """Diagnose the population of a run folder as its last checkpoint has it; kept as `diagnosis.json` there.

    Raises ConfigError, CheckpointError, NumericFault.
    """
    config, built = load_training(path)
    copies = copies or max(4, min(_COPIES, _SLOTS // built.env.spec.num_agents))
    try:
        env = open_population(config, copies, built.env.device)
        try:
            key = Key.of(config.run.seed).fold("diagnose")
            # As long again to forget the start: next to a transition that takes several memories.
            found = diagnose(env, built.players, key, steps, steps, watched)
        finally:
            env.close()
    finally:
        built.close()
    table = {"steps": steps, "copies": copies, "players": {name: one.to_table() for name, one in found.items()}}
    write_atomic(Path(path) / "diagnosis.json", (json.dumps(table, indent=1) + "\n").encode())
    return found


def diagnose(
    env: Env, players: list[Player], key: Key, steps: int = 1000, warm_up: int = 200, watched: Watched | None = None
) -> dict[str, Diagnosis]:
    """Let the frozen players act for `warm_up + steps` steps, once and twice more for each of them.

    Errors account for correlations in time. Raises ConfigError for a Box of actions, a temperature of 0, or too few
    steps; NumericFault where nobody's shares ever change.
    """
    if steps < 64 or warm_up < 0:
        raise ConfigError(f"A diagnosis needs at least 64 steps, not {steps}.")
    for player in players:
        if not player.agent.spec.discrete:
            raise ConfigError(f"{player.name} has a Box of actions; a susceptibility is that of shares of actions.")
        if not float(player.agent.temperature) > 0:
            raise ConfigError(f"{player.name} acts at temperature 0: its fluctuations say nothing of its response.")
    still = [torch.zeros(p.agent.spec.num_actions, device=env.device) for p in players]
    watched = watched or (lambda done: None)
    parts = iter(range(1 + 2 * len(players)))

    def watch(push: list[Tensor]) -> tuple[list[Tensor], list[float], list[dict[str, float]]]:
        done = next(parts) * (warm_up + steps)
        return _watch(env, players, push, key, steps, warm_up, lambda step: watched(done + step))

    shares, counts, gibbs = watch(still)
    found = {}
    for i, player in enumerate(players):
        temperature, agents = float(player.agent.temperature), counts[i]
        direction = _direction(shares[i], player.name)
        m = shares[i] @ direction
        chi, apart = fluctuation(m, temperature, round(agents))
        if not chi.value > 0:
            raise NumericFault(_STILL.format(player.name))
        # A third of a standard deviation of m: in proportion still. The same noise on both sides makes it visible.
        incentive = math.sqrt(temperature / (agents * chi.value)) / 3
        ends = []
        for sign in (1, -1):
            push = [x if j != i else (sign * incentive * direction).to(x) for j, x in enumerate(still)]
            ends.append(watch(push)[0][i] @ direction)
        slope = _number(response.finite_difference(ends[0], ends[1], incentive))
        found[player.name] = Diagnosis(
            round(agents),
            temperature,
            direction.tolist(),
            _number(diagnostics.mean_and_error(m.abs())),
            chi,
            slope,
            incentive,
            float(diagnostics.autocorrelation_time(m).mean()),
            apart,
            gibbs[i],
        )
    return found


def fluctuation(m: Tensor, temperature: float, agents: int) -> tuple[Number, bool]:
    """chi of m [steps, E], and whether copies settled on different sides.

    Such copies are not one fluctuating population: each is judged about its own mean, which takes a share of about
    memory/steps away. Where they are alike, the mean of all is the better one.
    """
    apart = bool(diagnostics.split_r_hat(m) > _APART)
    return _number(response.susceptibility(m - m.mean(0) if apart else m, 1 / temperature, agents)), apart


def _number(found: diagnostics.Estimate) -> Number:
    return Number(float(found.value), float(found.error))


@torch.no_grad()
def _watch(
    env: Env, players: list[Player], push: list[Tensor], key: Key, steps: int, warm_up: int, watched: Watched
) -> tuple[list[Tensor], list[float], list[dict[str, float]]]:
    """Of each player: shares [steps, E, A] float64 of its agents, how many they are on average, and their means."""
    pushed = [Player(p.name, Pushed(p.agent, x), p.slots, None) for p, x in zip(players, push, strict=True)]  # type: ignore[arg-type]
    episode = Episode(env, pushed, key)
    seen: list[list[Tensor]] = [[] for _ in players]
    alive = [0.0] * len(players)
    for step in range(warm_up + steps):
        _, _, after, now = episode.play()
        if step >= warm_up:
            for i, player in enumerate(players):
                action, there = after.action[:, player.slots], after.alive[:, player.slots]
                there = there & (action >= 0)
                total = torch.zeros(
                    (len(action), player.agent.spec.num_actions), dtype=torch.float64, device=action.device
                )
                total.scatter_add_(1, action.clamp(min=0).long(), there.double())
                count = total.sum(1, keepdim=True)
                seen[i].append(total / count.clamp(min=1))
                alive[i] += float(count.mean()) / steps
        episode.go_on(after, now)
        watched(step + 1)
    means = []
    for player, view, felt in zip(players, episode.seen, episode.felt, strict=True):
        values = thermodynamics(player.agent, view, felt)
        means.append({name: float(value) for name, value in values.items()})
    return [torch.stack(x) for x in seen], alive, means


def _direction(shares: Tensor, name: str) -> Tensor:
    """c [A]: the leading eigenvector of the shares' covariance within copies, its largest entry 1 (the last of equals)."""
    away = (shares - shares.mean(0)).flatten(0, 1)
    values, vectors = torch.linalg.eigh(away.mT @ away / len(away))
    if not float(values[-1]) > 0:
        raise NumericFault(_STILL.format(name))
    c = vectors[:, -1]
    # Of entries as large as each other (two actions), the last one counts as positive.
    largest = int((c.abs() >= c.abs().max() * (1 - 1e-9)).nonzero()[-1])
    return c / c[largest]
