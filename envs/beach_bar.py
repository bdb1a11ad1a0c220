r"""A beach, a bar, and bathers who want to be near it but not in a crowd.

$$ r_t(s, a; \mu) = -|s - b| - \frac{|a|}{S} - \log(\mu_t(s) + \epsilon) $$

One walks left, stays or walks right, and the wind may push one more place (Perrin et al. 2020, arXiv 2007.03458,
section 5; distances go round the beach, steps end at its edges, as in mfglib 0.3). The crowd enters by -log mu alone:
a potential game with one equilibrium, to which mirror descent and fictitious play go.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from mfmarl.errors import ConfigError
from mfmarl.games.game import Crowd, MeanFieldGame
from mfmarl.games.kernels import Outcomes, grid_moves
from mfmarl.games.reference import equilibrium
from mfmarl.options import Bounds
from mfmarl.population.known import Known
from mfmarl.population.pettingzoo_out import faces
from mfmarl.registry import register


@register("beach_bar")
@dataclass(frozen=True)
class BeachBar(MeanFieldGame):
    """Bathers who settle around a bar and avoid each other."""

    horizon: int | None = 3
    """Number of decisions."""
    places: Annotated[int, Bounds(3, 1 << 20)] = 4
    """Places along the beach."""
    bar: int = 2
    """Where the bar is."""
    calm: Annotated[float, Bounds(0, 1)] = 0.5
    """Probability that the wind does not push; else one place left or right, alike."""
    floor: Annotated[float, Bounds(0, 1, open_low=True)] = 1e-20
    """Added to shares before the logarithm."""

    crowd_moves = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.bar < self.places:
            raise ConfigError(f"bar must be one of the places 0 to {self.places - 1}, not {self.bar}.")

    @property
    def num_states(self) -> int:
        return self.places

    @property
    def num_actions(self) -> int:
        return 3

    def initial(self) -> Tensor:
        return torch.full((self.places,), 1 / self.places, dtype=torch.float64)

    def outcomes(self, t: int, crowd: Crowd) -> Outcomes:
        # The step and the push together, ended at the edge once: [S, A K].
        pushed = torch.arange(-1, 2).view(3, 1) + torch.arange(-1, 2)
        there = grid_moves((self.places,), pushed.reshape(-1, 1)).view(-1, 3, 3)
        windy = (1 - self.calm) / 2
        chance = torch.tensor([windy, self.calm, windy], dtype=crowd.mu.dtype)
        return Outcomes(there.to(crowd.mu.device), chance.to(crowd.mu.device).expand(self.places, 3, 3))

    def rewards(self, t: int, crowd: Crowd) -> Tensor:
        away = (torch.arange(self.places) - self.bar) % self.places
        near = -torch.minimum(away, self.places - away).to(crowd.mu)
        return (near - (crowd.mu + self.floor).log()).unsqueeze(-1)

    def effort(self) -> Tensor:
        return torch.tensor([1.0, 0.0, 1.0], dtype=torch.float64).expand(self.places, 3) / self.places

    def potential(self, t: int, crowd: Crowd) -> Tensor:
        away = (torch.arange(self.places) - self.bar) % self.places
        near = -torch.minimum(away, self.places - away).to(crowd.mu)
        mu = crowd.mu
        # d/dmu [(mu + e) log(mu + e) - mu] = log(mu + e).
        return (near * mu - (mu + self.floor) * (mu + self.floor).log() + mu).sum((-2, -1))

    def reference(self, temperature: float = 0.0) -> dict[str, Known]:
        return equilibrium(self, temperature)


parallel_env, env = faces(BeachBar)
