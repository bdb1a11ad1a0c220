r"""The mean-field equilibrium of expected free energy, played: backward values, forward crowd, damped.

$$ \pi_t(u \mid s) = E(u \mid s)\, e^{\gamma (g_t(s, u; \mu) - V_t(s))}, \qquad \mu = \text{the flow of } \pi, \qquad
   E_t(s, u) = -T \log \pi_t(u \mid s) - V_t(s) \;\to\; -g_t - T \log E, \quad T = 1/\gamma $$

`mfmarl.inference.equilibrium` has the mathematics. The agent is given the rules of a mean-field game and no experience:
with every step of the environment it makes an iteration, whose cost is O(T A S^2) however many agents there are. So it
is solved while it plays, and curves of training show the iterations: how the population's free energy falls, and both
exploitabilities; where that is not wanted, `beforehand` iterations are made first. Under a schedule the equilibrium
follows its temperature from hot to cold, which is the safest way to a cold one.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from torch import Tensor

from mfmarl.errors import ConfigError
from mfmarl.games import exploitability
from mfmarl.games.flow import flow
from mfmarl.games.game import MeanFieldGame
from mfmarl.games.reference import means
from mfmarl.games.sight import Sight
from mfmarl.inference import equilibrium
from mfmarl.learning.agent import Agent, AgentConfig, Positive, Transition, finite
from mfmarl.options import Bounds
from mfmarl.population.known import Known
from mfmarl.population.spec import Spec
from mfmarl.population.timestep import Timestep
from mfmarl.random import Key
from mfmarl.registry import register

_log = logging.getLogger(__name__)

_KNOWN = 50_000  # times, groups, states and actions up to which the equilibrium is iterated for a report
_SETTLED = 1e-6  # difference of probabilities from their answer: tables are float32
_NUMBERS = ("regularised", "exploitability", "residual", "weight", "spectral_radius", "population_free_energy")


@dataclass(frozen=True)
class FreeEnergyEquilibriumConfig(AgentConfig):
    """Options of the equilibrium of expected free energy."""

    field: str = "nothing"
    """It knows the crowd by its rules, and feels nothing."""
    temperature: str = "1"
    """1/gamma, in units of reward: a number above 0, a schedule such as `geometric(1, 0.01)`, or `entropy(0.5)`."""
    habit: tuple[Annotated[float, Bounds(0.0, 1e12)], ...] = ()
    """Weights of the actions from which leaving costs temperature per nat; empty: all legal ones alike."""
    method: Literal["damped", "fictitious_play", "mirror_descent"] = "damped"
    """How the crowd moves to its answer: mixed with it, averaged over all answers, or by mixing logarithms."""
    weight: Annotated[float, Bounds(0.0, 1.0, open_low=True)] | None = None
    """What an answer counts (not of fictitious play); 1: undamped; none: smaller where answers go back and forth,
    larger where they go on the same way."""
    iterations: Positive = 1
    """Iterations with every step of the environment."""
    beforehand: Annotated[int, Bounds(0, 1 << 40)] = 0
    """Iterations before the first step."""


@register("free_energy_equilibrium")
class FreeEnergyEquilibrium(Agent):
    """Plays the mean-field equilibrium of expected free energy of a mean-field game whose rules it is given."""

    Config = FreeEnergyEquilibriumConfig
    needs_discrete = True
    memory = "latest"
    log_policy: Tensor
    worth: Tensor
    share: Tensor
    direction: Tensor
    settled_at: Tensor
    iteration: Tensor
    numbers: Tensor

    def __init__(self, config: FreeEnergyEquilibriumConfig, spec: Spec, slots: slice, minds: int, key: Key) -> None:
        super().__init__(config, spec, slots, minds, key)
        self.game = _rules(spec)
        groups = spec.group[slots].unique().tolist()
        self.group: int = groups[0]
        # What is seen does not tell the group: a mind of several is told it beside what it sees.
        self.perceives = len(groups) > 1  # type: ignore[misc]
        if self.schedule.kind != "entropy":
            for progress in (0.0, 1.0):
                equilibrium.check_precision(1 / max(self.schedule.at(progress), 1e-300))
            if min(self.schedule.at(0.0), self.schedule.at(1.0)) < 1e-9:
                raise ConfigError(
                    "free_energy_equilibrium needs a temperature above 0, its 1/gamma: a cold one is geometric(1, 0.01)."
                )
        self.habit = equilibrium.habits(self.game, config.habit or None)
        self.sight = Sight(self.game)
        path = flow(self.game, self.habit)
        self.minimises = equilibrium.free_energy(self.game, path, 1.0, self.habit) is not None
        start = equilibrium.begin(self.habit, config.weight)
        self.register_buffer("log_policy", start.log_policy.float())
        self.register_buffer("worth", torch.zeros(self.habit.shape[:-1]))
        self.register_buffer("share", start.weight.float())
        self.register_buffer("direction", start.direction.float())
        # The temperature at which it came to rest; -1: not yet.
        self.register_buffer("settled_at", torch.full((), -1.0))
        self.register_buffer("iteration", torch.zeros((), dtype=torch.int64))
        self.register_buffer("numbers", torch.zeros(len(_NUMBERS)))
        self.told = ""
        for _ in range(config.beforehand):
            self._iterate()

    # ---------------------------------------------------------------------------------------------- acting

    def perceive(
        self, carried: dict[str, Tensor], timestep: Timestep, field: Tensor, ids: Tensor, key: Key
    ) -> tuple[Tensor, dict[str, Tensor]]:
        obs = timestep.obs[:, self.slots]
        group = self.spec.group[self.slots].to(obs).view(1, -1, 1).expand(*obs.shape[:2], 1)
        return torch.cat([obs, group], -1), {}

    def energy(self, obs: Tensor, field: Tensor) -> Tensor:
        """E = -T log pi - V: at the equilibrium -g - T log E, the expected free energy and what is not a habit."""
        group = obs[..., -1].round().long() if self.perceives else self.group
        table = -(self.temperature * self.log_policy + self.worth.unsqueeze(-1))  # [T, G, S, A]
        number = self.sight(obs)
        states = table.shape[2]
        return table[number.div(states, rounding_mode="floor"), group, number % states]

    def known_answers(self, temperature: float) -> dict[str, Known]:
        """The equilibrium at its end, iterated without it: its gaps, and what the crowd of it is like."""
        game = self.game
        if self.habit.numel() > _KNOWN:
            return {}
        found = equilibrium.solve(game, 1 / temperature, self.config.habit or None, tolerance=1e-8)
        if not found.settled:
            return {}
        source = (
            f"mean-field equilibrium of expected free energy at gamma = {1 / temperature:g}, infinitely many agents"
        )
        values = {"limit/exploitability": float(found.exploitability), **means(game, found.flow)}
        return {name: Known(value, source, "equilibrium") for name, value in values.items()}

    # -------------------------------------------------------------------------------------------- learning

    @torch.no_grad()
    def learn(self, batch: Transition) -> dict[str, Tensor]:
        """Iterations; what happened in the `batch` is of no interest to one that knows the rules."""
        for _ in range(self.config.iterations):
            self._iterate()
        found = {name: self.numbers[i].clone() for i, name in enumerate(_NUMBERS)}
        if not self.minimises:
            del found["population_free_energy"]
        return found

    @torch.no_grad()
    def _iterate(self) -> None:
        temperature = float(torch.as_tensor(self.temperature, dtype=torch.float32))  # as `settled_at` can hold it
        if float(self.settled_at) == temperature:
            return
        game, config, gamma = self.game, self.config, 1 / temperature
        habit = self.habit.to(self.log_policy.device)
        state = equilibrium.State(self.log_policy.double(), self.share.double(), self.direction.double())
        self.iteration += 1
        k = int(self.iteration)
        after, response = equilibrium.step(game, state, k, gamma, habit, config.method, config.weight)
        residual = (response.answer - response.flow.policy).abs().max()
        finite(residual, "residual of free_energy_equilibrium")
        settled = float(residual) <= _SETTLED
        if k & (k - 1) == 0 or settled:  # 48 times the work of an iteration: at 1, 2, 4, 8, ... and at the end
            radius = equilibrium.spectral_radius(game, response.flow.policy, gamma, habit)
            self.numbers[4] = radius
            sentence = equilibrium.told(True, residual, radius, config.method) if settled else ""
            if sentence and sentence != self.told:
                _log.warning("free_energy_equilibrium: %s", sentence)
            self.told = sentence or self.told
        free = equilibrium.free_energy(game, response.flow, gamma, habit)
        plain = exploitability.of_flow(game, response.flow).exploitability
        self.numbers[0], self.numbers[1], self.numbers[2] = equilibrium.gap_of(game, response, gamma), plain, residual
        self.numbers[3] = after.weight
        if free is not None:
            self.numbers[5] = free
        self.worth.copy_(response.values.v)
        self.direction.copy_(after.direction)
        self.share.copy_(after.weight)
        self.settled_at.fill_(temperature if settled else -1.0)
        if not settled:
            self.log_policy.copy_(after.log_policy)
        if self.schedule.kind == "entropy":
            policy, mu = response.flow.policy, response.flow.mu
            entropy = -(mu * torch.special.xlogy(policy, policy).sum(-1)).sum(-1).mean()
            self.adapt_temperature(entropy.to(self.log_temperature.dtype))


def _rules(spec: Spec) -> MeanFieldGame:
    game = spec.rules
    if not isinstance(game, MeanFieldGame):
        raise ConfigError(
            "free_energy_equilibrium needs the rules of a mean-field game, and this environment is none: try beach_bar, "
            "or mfq where there are no such rules."
        )
    if game.tree is not None:
        raise ConfigError(
            f"{type(game).__name__} has common noise, and what an agent sees does not tell which past the crowd has had: "
            "free_energy_equilibrium plays games without it."
        )
    return game
