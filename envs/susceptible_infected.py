r"""Susceptible or infected: to go out is pleasant and catching.

$$ P(S \to I \mid \text{out}) = \beta \mu_t(I), \qquad P(S \to I \mid \text{home}) = 0, \qquad P(I \to S) = \rho,
   \qquad r = -c\,[I] - d\,[\text{home}] $$

Cui and Koeppl 2021 (arXiv 2102.01585, appendix; beta = 0.9^2). Answers come late: how many go out now is felt by those
who choose next, so fixed-point iteration, fictitious play and mirror descent at any rate go round. With a horizon there
is a pure equilibrium: the susceptible go out and stay at home together, at the default numbers in a rhythm of five
steps (out, home, out, out, home). `sequential` finds it exactly.

Without a horizon the equilibrium has a closed form. The infected go out, V_S - V_I = D with
(1 - gamma (1 - rho)) D = c - d, and the susceptible are indifferent where gamma beta mu_I D = d:

$$ \mu_I = \frac{d\,(1 - \gamma (1 - \rho))}{\gamma \beta\, (c - d)}, \qquad
   P(\text{out} \mid S) = \frac{\rho}{\beta (1 - \mu_I)} $$

(.38284 and .60012 at beta .81, rho .3, c 1, d .5, gamma .99), unless the infection does not reach that share with
everyone out, mu_I = max(0, 1 - rho / beta): then all go out.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Annotated

import torch
from torch import Tensor

from mfmarl.games.flow import Flow, flow
from mfmarl.games.game import Crowd, GameState, MeanFieldGame, table
from mfmarl.games.kernels import Dense
from mfmarl.games.reference import equilibrium, means
from mfmarl.games.solve import solve
from mfmarl.games.solvers.sequential_response import SequentialResponse
from mfmarl.options import Amount, Bounds, Count
from mfmarl.population import picture
from mfmarl.population.known import Known
from mfmarl.population.pettingzoo_out import faces
from mfmarl.registry import register

OUT, HOME = 0, 1
_LONG = 100  # decisions up to which the equilibrium with a horizon is looked for


@register("susceptible_infected")
@dataclass(frozen=True)
class SusceptibleInfected(MeanFieldGame):
    """An epidemic without immunity, among people who choose between going out and staying at home."""

    horizon: Count | None = 50
    """Number of decisions; none: without end, discounted, in its stationary state."""
    infection: Annotated[float, Bounds(0, 1)] = 0.81
    """beta: probability that who goes out falls ill when all others are."""
    recovery: Annotated[float, Bounds(0, 1, open_low=True)] = 0.3
    """rho: probability that the infected recover in a step."""
    illness: Amount = 1.0
    """c: what a step of illness costs."""
    distance: Amount = 0.5
    """d: what a step at home costs."""
    infected: Annotated[float, Bounds(0, 1)] = 0.6
    """Share that is infected at the start."""

    @property
    def num_states(self) -> int:
        return 2

    @property
    def num_actions(self) -> int:
        return 2

    def initial(self) -> Tensor:
        return torch.tensor([1 - self.infected, self.infected], dtype=torch.float64)

    def outcomes(self, t: int, crowd: Crowd) -> Dense:
        # Asked at every time of every iteration: two tables and one product, rather than their entries one by one.
        alone, each = (table.to(crowd.mu) for table in self._tables)
        infected = crowd.mu[..., 1].unsqueeze(-1).unsqueeze(-1).unsqueeze(-1)
        return Dense(torch.addcmul(alone, each, infected))

    @cached_property
    def _tables(self) -> tuple[Tensor, Tensor]:
        """[S, A, S]: the kernel where nobody is infected, and what a share of infected adds."""
        heal, catch = [self.recovery, 1 - self.recovery], [-self.infection, self.infection]
        alone = table([[[1.0, 0.0], [1.0, 0.0]], [heal, heal]])
        each = table([[catch, [0.0, 0.0]], [[0.0, 0.0], [0.0, 0.0]]])
        return alone, each

    def rewards(self, t: int, crowd: Crowd) -> Tensor:
        return table([[0.0], [-self.illness]], crowd.mu)

    def effort(self) -> Tensor:
        return table([[0.0, self.distance]] * 2)

    def measures(self, mu: Tensor) -> dict[str, Tensor]:
        return {"infected": mu[..., 0, 1]}

    def render(self, state: GameState, copy: int = 0) -> Tensor:
        """Everyone as a square, the infected last."""
        return picture.crowd(state.state[copy], picture.palette(2))

    # ----------------------------------------------------------------------------------- what theory knows

    def stationary(self) -> tuple[float, float]:
        """Share of infected and probability that the susceptible go out, at the stationary equilibrium.

        With the infection alive, where it can live: without any infected everyone goes out too.
        """
        endemic = max(0.0, 1 - self.recovery / self.infection) if self.infection > 0 else 0.0
        if self.distance <= 0 or self.illness <= self.distance:
            return endemic, 1.0
        lasting = 1 - self.discount * (1 - self.recovery)
        feared = (
            self.distance * lasting / (self.discount * self.infection * (self.illness - self.distance))
            if endemic
            else 1.0
        )
        if feared >= endemic:
            return endemic, 1.0
        return feared, self.recovery / (self.infection * (1 - feared))

    def reference(self, temperature: float = 0.0) -> dict[str, Known]:
        if self.horizon is None and temperature == 0 and self.distance > 0:
            ill, out = self.stationary()
            source = "stationary equilibrium of infinitely many agents: who is susceptible is indifferent"
            paid = -self.illness * ill - self.distance * (1 - ill) * (1 - out)
            return {
                "reward": Known(paid, source, "equilibrium"),
                "infected": Known(ill, source, "equilibrium"),
            }
        if self.horizon is not None and self.horizon <= _LONG and temperature == 0:
            found = _pure_equilibrium(self)
            if found is not None:
                source = "pure Nash equilibrium of infinitely many agents, exact; N differ from it"
                return {name: Known(value, source, "equilibrium") for name, value in means(self, found).items()}
        return equilibrium(self, temperature)


@lru_cache(64)
def _pure_equilibrium(game: SusceptibleInfected) -> Flow | None:
    """The crowd's way at the equilibrium that `sequential` comes to; None where it comes to none."""
    assert game.horizon is not None
    found = solve(game, SequentialResponse(), 2 * game.horizon, 1e-10, every=1)
    return flow(game, found.policy) if found.stopped == "tolerance" else None


parallel_env, env = faces(SusceptibleInfected)
