r"""An epidemic on a dense network with types: agents stay at home or not, and infection goes as the graphon says.

$$ P(S \to I \mid \text{out}, x) = \beta \int_0^1 W(x, y)\, i_t(y)\, dy, \qquad P(I \to S) = \rho, \qquad
   R_0 = \frac{\beta}{\rho}\, \lambda_{\max}(W) $$

W is cut into blocks: K types, one K-th of all each, with W taken at the blocks' middles; i(y) is the infected share of
type y. At home nobody catches anything, and it costs: r = -c_I 1[I] - c_D 1[home]. If all go out, the disease dies out
for R_0 < 1 and stays for R_0 > 1. Where W = 1 it is the SIS game, whose stationary equilibrium makes the healthy
indifferent between the two:

$$ \Delta = \frac{c_I - c_D}{1 - \gamma (1 - \rho)}, \quad \mu_I = \frac{c_D}{\gamma \beta \Delta}, \quad
   \pi(\text{out} \mid S) = \frac{\rho}{\beta (1 - \mu_I)} $$

Cui and Koeppl 2022 (arXiv 2112.01280) is the graphon game; Lajmanovich and Yorke 1976 (Mathematical Biosciences 28,
221) the threshold.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from torch import Tensor

from mfmarl.errors import ConfigError
from mfmarl.games.game import Crowd, GameState, MeanFieldGame
from mfmarl.games.kernels import Outcomes
from mfmarl.games.reference import equilibrium
from mfmarl.options import Bounds, Count
from mfmarl.population import picture
from mfmarl.population.known import Known
from mfmarl.population.pettingzoo_out import faces
from mfmarl.registry import register

_OUT, _HOME = 0, 1
Graphon = Literal["constant", "uniform_attachment", "ranked_attachment", "communities"]


@register("graphon_epidemic")
@dataclass(frozen=True)
class GraphonEpidemic(MeanFieldGame):
    """A disease that goes from type to type; everyone weighs staying at home against falling ill."""

    horizon: Count | None = 30
    """Number of decisions; none: without end, discounted, in its stationary state."""
    types: Annotated[int, Bounds(1, 256)] = 3
    """K, how many types of agents there are, one K-th of all each."""
    graphon: Graphon = "ranked_attachment"
    """W: 1; 1 - max(x, y); 1 - x y; or 1 within either half and a tenth between them."""
    infection: Annotated[float, Bounds(0, 1)] = 0.8
    """beta, the probability to catch the disease where everyone has it and W = 1."""
    recovery: Annotated[float, Bounds(0, 1, open_low=True)] = 0.3
    """rho, the probability to get well in a step."""
    illness: Annotated[float, Bounds(0, 1e6)] = 1.0
    """c_I, what a step of illness costs."""
    distance: Annotated[float, Bounds(0, 1e6)] = 0.5
    """c_D, what a step at home costs."""
    infected: Annotated[float, Bounds(0, 1)] = 0.2
    """Share of each type that is ill at the start."""

    # States: 2 k for the healthy of type k, 2 k + 1 for the ill.

    @property
    def num_states(self) -> int:
        return 2 * self.types

    @property
    def num_actions(self) -> int:
        return 2

    def initial(self) -> Tensor:
        each = torch.tensor([1 - self.infected, self.infected], dtype=torch.float64) / self.types
        return each.repeat(self.types)

    def coordinates(self) -> Tensor:
        ill = torch.tensor([-1.0, 1.0]).repeat(self.types)
        return torch.stack([self._middle.repeat_interleave(2).float() * 2 - 1, ill], -1)

    @property
    def _middle(self) -> Tensor:
        return (torch.arange(self.types, dtype=torch.float64) + 0.5) / self.types

    def weights(self) -> Tensor:
        """W at the middles of the blocks, [K, K]."""
        x = self._middle
        y = x.unsqueeze(-1)
        if self.graphon == "constant":
            return torch.ones(self.types, self.types, dtype=torch.float64)
        if self.graphon == "uniform_attachment":
            return 1 - torch.maximum(x, y)
        if self.graphon == "ranked_attachment":
            return 1 - x * y
        return torch.where((x < 0.5) == (y < 0.5), 1.0, 0.1).double()

    def reproduction(self) -> float:
        """R_0: how many one infects who goes out among healthy others who do."""
        spread = float(torch.linalg.eigvalsh(self.weights() / self.types).max())
        return self.infection * spread / self.recovery

    def force(self, mu: Tensor) -> Tensor:
        """The probability to be infected outside, of each type: [*b, 1, K]."""
        return self.infection * (mu[..., 1::2] @ self.weights().to(mu))

    def outcomes(self, t: int, crowd: Crowd) -> Outcomes:
        state = torch.arange(self.num_states, device=crowd.mu.device)
        there = torch.stack([state, state ^ 1], -1).unsqueeze(1).expand(-1, 2, 2)  # as it is, or the other
        caught = self.force(crowd.mu)
        well = torch.full_like(caught, self.recovery)
        out = torch.stack([caught, well], -1).flatten(-2)
        home = torch.stack([torch.zeros_like(caught), well], -1).flatten(-2)
        flips = torch.stack([out, home], -1)  # [*b, 1, S, A]
        return Outcomes(there, torch.stack([1 - flips, flips], -1))

    def rewards(self, t: int, crowd: Crowd) -> Tensor:
        ill = torch.tensor([0.0, self.illness], dtype=crowd.mu.dtype, device=crowd.mu.device)
        return -ill.repeat(self.types).unsqueeze(-1)

    def effort(self) -> Tensor:
        return torch.tensor([0.0, self.distance], dtype=torch.float64).expand(self.num_states, 2)

    def measures(self, mu: Tensor) -> dict[str, Tensor]:
        """The infected share of all, and of each type where there are few."""
        ill = mu[..., 0, 1::2]
        found = {"infected": ill.sum(-1)}
        if 1 < self.types <= 8:
            share = ill / (ill + mu[..., 0, 0::2]).clamp(min=1e-12)
            found |= {f"infected/{k}": share[..., k] for k in range(self.types)}
        return found

    def render(self, state: GameState, copy: int = 0) -> Tensor:
        """The infected share of each type."""
        counts = torch.bincount(state.state[copy].cpu(), minlength=self.num_states).view(self.types, 2)
        return picture.bars(counts[:, 1] / counts.sum(-1).clamp(min=1), picture.palette(self.types))

    # ----------------------------------------------------------------------------------- what theory knows

    def stationary(self) -> tuple[float, float]:
        """Infected share and pi(out | S) in the stationary equilibrium where W = 1; all go out where that is best."""
        if self.graphon != "constant":
            raise ConfigError("The stationary equilibrium is known in closed form for graphon=constant only.")
        endemic = max(0.0, 1 - self.recovery / self.infection) if self.infection else 0.0
        gain = (self.illness - self.distance) / (1 - self.discount * (1 - self.recovery))
        if gain <= 0 or self.distance >= self.discount * self.infection * gain * endemic:
            return endemic, 1.0
        ill = self.distance / (self.discount * self.infection * gain)
        return ill, self.recovery / (self.infection * (1 - ill))

    def reference(self, temperature: float = 0.0) -> dict[str, Known]:
        """Without temperature in closed form or not at all: solvers come near such an equilibrium only slowly."""
        if self.horizon is None and temperature == 0 and self.graphon == "constant":
            ill, out = self.stationary()
            reward = -self.illness * ill - self.distance * (1 - ill) * (1 - out)
            source = "stationary equilibrium of the SIS game in closed form; infinitely many agents"
            shares = {f"infected/{k}": ill for k in range(self.types) if 1 < self.types <= 8}
            found = {"infected": ill, "reward": reward, **shares}
            return {name: Known(value, source, "equilibrium") for name, value in found.items()}
        return equilibrium(self, temperature) if temperature > 0 else {}


parallel_env, env = faces(GraphonEpidemic)
