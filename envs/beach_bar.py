r"""A beach, a bar, and bathers who want to be near it but not in a crowd.

$$ r_t(s, a; \mu) = -|s - b| - \frac{|a|}{S} - \log(\mu_t(s) + \epsilon) $$

One walks left, stays or walks right, and the wind may push one more place (Perrin et al. 2020, arXiv 2007.03458,
section 5; distances go round the beach, steps end at its edges, as in mfglib 0.3). The crowd enters by -log mu alone:
a potential game with one equilibrium, to which mirror descent and fictitious play go. With common noise the bar may
close half-way, and with it the wish to be near it (ibid., section 5.2): everybody sees it, and nobody knows before.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Annotated

import torch
from torch import Tensor

from mfmarl.errors import ConfigError
from mfmarl.games.game import Crowd, GameState, MeanFieldGame, table
from mfmarl.games.kernels import Outcomes, grid_moves
from mfmarl.games.reference import equilibrium
from mfmarl.options import Bounds, Count
from mfmarl.population import picture
from mfmarl.population.known import Known
from mfmarl.population.pettingzoo_out import faces
from mfmarl.registry import register


@register("beach_bar")
@dataclass(frozen=True)
class BeachBar(MeanFieldGame):
    """Bathers who settle around a bar and avoid each other."""

    horizon: Count | None = 3
    """Number of decisions."""
    places: Annotated[int, Bounds(3, 1 << 20)] = 4
    """Places along the beach."""
    bar: Annotated[int, Bounds(0, 1 << 20)] = 2
    """Where the bar is."""
    calm: Annotated[float, Bounds(0, 1)] = 0.5
    """Probability that the wind does not push; else one place left or right, alike."""
    floor: Annotated[float, Bounds(0, 1, open_low=True)] = 1e-20
    """Added to shares before the logarithm."""

    closing: Annotated[float, Bounds(0, 1)] = 0.0
    """Probability that the bar closes half-way, for good: common noise."""

    crowd_moves = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.bar < self.places:
            raise ConfigError(f"bar must be one of the places 0 to {self.places - 1}, not {self.bar}.")
        if self.closing and (self.horizon is None or self.horizon < 2):
            raise ConfigError("A bar that may close half-way needs a horizon of at least 2.")

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
        chance = table([windy, self.calm, windy], crowd.mu)
        return Outcomes(there.to(crowd.mu.device), chance.expand(self.places, 3, 3))

    @cached_property
    def _near(self) -> Tensor:
        """Minus the distance from the bar, [S]."""
        away = (torch.arange(self.places) - self.bar) % self.places
        return -torch.minimum(away, self.places - away).to(torch.float64)

    def rewards(self, t: int, crowd: Crowd) -> Tensor:
        near = self._near.to(crowd.mu)
        if crowd.common is not None:
            near = near * (crowd.common == 0)
        return (near - (crowd.mu + self.floor).log()).unsqueeze(-1)

    def effort(self) -> Tensor:
        return torch.tensor([1.0, 0.0, 1.0], dtype=torch.float64).expand(self.places, 3) / self.places

    def potential(self, t: int, crowd: Crowd) -> Tensor:
        mu = crowd.mu
        # d/dmu [(mu + e) log(mu + e) - mu] = log(mu + e).
        return (self._near.to(mu) * mu - (mu + self.floor) * (mu + self.floor).log() + mu).sum((-2, -1))

    # Common noise: 0 open, 1 closed.

    @property
    def common_states(self) -> int:
        return 2 if self.closing else 1

    def common_moves(self, t: int, crowd: Crowd) -> Tensor:
        chance = self.closing if self._closes_after(t) else 0.0
        table = torch.tensor([[1 - chance, chance], [0.0, 1.0]], dtype=crowd.mu.dtype, device=crowd.mu.device)
        assert crowd.common is not None
        return table[crowd.common[..., 0, 0]]

    def common_support(self, t: int) -> Tensor:
        return torch.tensor([[True, self._closes_after(t)], [False, True]])

    def _closes_after(self, t: int) -> bool:
        return t + 1 == (self.horizon or 0) // 2

    def render(self, state: GameState, copy: int = 0) -> Tensor:
        """Everybody's share of the beach, one bar each; the bar's own place in another colour."""
        share = self.crowd(state).mu[copy, 0]
        colours = picture.palette(2)[(torch.arange(self.places) == self.bar).long()]
        return picture.bars(share / share.max().clamp(min=1e-9), colours)

    def reference(self, temperature: float = 0.0) -> dict[str, Known]:
        return equilibrium(self, temperature)


parallel_env, env = faces(BeachBar)
