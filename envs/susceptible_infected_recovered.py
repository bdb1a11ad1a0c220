r"""Susceptible, infected, recovered: an epidemic that leaves immunity behind, among people who may stay at home.

$$ P(S \to I \mid \text{out}) = \beta \mu_t(I), \qquad P(S \to I \mid \text{home}) = 0, \qquad P(I \to R) = \rho, \qquad
   P(R \to S) = \omega, \qquad r = -c\,[I] - d\,[\text{home}] $$

Kermack and McKendrick 1927 in discrete time, with the choice of Cui and Koeppl 2021 (arXiv 2102.01585). With waning
immunity (omega > 0) and without a horizon the stationary equilibrium has a closed form: with D = V_S - V_I,
W = V_S - V_R and rewards counted from (1 - gamma) V_S = -d at indifference,

$$ W = \frac{-d}{1 - \gamma (1 - \omega)}, \qquad D = \frac{c - d + \gamma \rho\, W}{1 - \gamma (1 - \rho)}, \qquad
   \mu_I = \frac{d}{\gamma \beta D}, \qquad \mu_R = \frac{\rho}{\omega} \mu_I, \qquad
   P(\text{out} \mid S) = \frac{\rho}{\beta \mu_S} . $$
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from mfmarl.games.game import Crowd, GameState, MeanFieldGame, table
from mfmarl.games.kernels import Dense
from mfmarl.games.reference import equilibrium
from mfmarl.options import Amount, Bounds, Count
from mfmarl.population import picture
from mfmarl.population.known import Known
from mfmarl.population.pettingzoo_out import faces
from mfmarl.registry import register


@register("susceptible_infected_recovered")
@dataclass(frozen=True)
class SusceptibleInfectedRecovered(MeanFieldGame):
    """An epidemic with immunity, which may wane, among people who choose between going out and staying at home."""

    horizon: Count | None = 50
    """Number of decisions; none: without end, discounted, in its stationary state."""
    infection: Annotated[float, Bounds(0, 1)] = 0.81
    """beta: probability that who goes out falls ill when all others are."""
    recovery: Annotated[float, Bounds(0, 1, open_low=True)] = 0.3
    """rho: probability that the infected recover in a step."""
    waning: Annotated[float, Bounds(0, 1)] = 0.0
    """omega: probability that the recovered lose their immunity in a step."""
    illness: Amount = 1.0
    """c: what a step of illness costs."""
    distance: Amount = 0.1
    """d: what a step at home costs."""
    infected: Annotated[float, Bounds(0, 1)] = 0.1
    """Share that is infected at the start; all others are susceptible."""

    @property
    def num_states(self) -> int:
        return 3

    @property
    def num_actions(self) -> int:
        return 2

    def initial(self) -> Tensor:
        return table([1 - self.infected, self.infected, 0.0])

    def outcomes(self, t: int, crowd: Crowd) -> Dense:
        mu = crowd.mu
        caught = self.infection * mu[..., 1]
        out = torch.stack([1 - caught, caught, torch.zeros_like(caught)], -1)
        home = mu.new_tensor([1.0, 0.0, 0.0]).expand(out.shape)
        later = table([[0.0, 1 - self.recovery, self.recovery], [self.waning, 0.0, 1 - self.waning]], mu)
        later = later.unsqueeze(-2).expand(*out.shape[:-1], 2, 2, 3)
        return Dense(torch.cat([torch.stack([out, home], -2).unsqueeze(-3), later], -3))

    def rewards(self, t: int, crowd: Crowd) -> Tensor:
        return table([[0.0], [-self.illness], [0.0]], crowd.mu)

    def effort(self) -> Tensor:
        return table([[0.0, self.distance]] * 3)

    def measures(self, mu: Tensor) -> dict[str, Tensor]:
        return {"infected": mu[..., 0, 1], "recovered": mu[..., 0, 2]}

    def render(self, state: GameState, copy: int = 0) -> Tensor:
        """Everyone as a square, the recovered last."""
        return picture.crowd(state.state[copy], picture.palette(3))

    # ----------------------------------------------------------------------------------- what theory knows

    def stationary(self) -> tuple[float, float, float] | None:
        """Shares of infected and recovered, and probability that the susceptible go out, at the stationary equilibrium.

        None where it is not of the kind with a closed form: without waning, or where to stay at home costs nothing.
        """
        if self.waning == 0 or self.distance <= 0 or self.infection == 0:
            return None
        each = 1 + self.recovery / self.waning  # infected and recovered for one infected
        endemic = max(0.0, 1 - self.recovery / self.infection) / each
        immune = -self.distance / (1 - self.discount * (1 - self.waning))
        fear = (self.illness - self.distance + self.discount * self.recovery * immune) / (
            1 - self.discount * (1 - self.recovery)
        )
        ill = self.distance / (self.discount * self.infection * fear) if fear > 0 else 1.0
        if ill >= endemic:
            return endemic, endemic * (each - 1), 1.0
        return ill, ill * (each - 1), self.recovery / (self.infection * (1 - ill * each))

    def reference(self, temperature: float = 0.0) -> dict[str, Known]:
        found = self.stationary() if self.horizon is None and temperature == 0 else None
        if found is None:
            return equilibrium(self, temperature)
        ill, immune, out = found
        source = "stationary equilibrium of infinitely many agents: who is susceptible is indifferent"
        paid = -self.illness * ill - self.distance * (1 - ill - immune) * (1 - out)
        return {
            "reward": Known(paid, source, "equilibrium"),
            "infected": Known(ill, source, "equilibrium"),
            "recovered": Known(immune, source, "equilibrium"),
        }


parallel_env, env = faces(SusceptibleInfectedRecovered)
