r"""A square full of people who follow a bar that moves, and avoid each other.

$$ r_t(s, a; \mu) = c \left( 1 - \frac{|x - x_t| + |y - y_t|}{l + w} \right) - \log(\mu_t(s) + \epsilon) $$

The beach bar in two dimensions (Perolat et al. 2021, arXiv 2103.00623, section 5, in the form of mfglib 0.3: walls
stop, distances are those of the plane). One walks to one of four neighbours or stays, and is pushed likewise. The bar
moves diagonally every few steps; everyone knows where it will be. A monotone potential game.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Annotated

import torch
from torch import Tensor

from mfmarl import random
from mfmarl.errors import ConfigError
from mfmarl.games.game import Crowd, GameState, MeanFieldGame, table
from mfmarl.games.kernels import Outcomes, grid_moves
from mfmarl.games.reference import equilibrium
from mfmarl.options import Amount, Bounds, Count, Seed, Whole
from mfmarl.population import picture
from mfmarl.population.known import Known
from mfmarl.population.pettingzoo_out import faces
from mfmarl.random import Key
from mfmarl.registry import register

_STEPS = ((1, 0), (-1, 0), (0, 1), (0, -1), (0, 0))


@register("crowd_motion")
@dataclass(frozen=True)
class CrowdMotion(MeanFieldGame):
    """People around a moving bar; a state is (row, column), the column running fastest."""

    horizon: Count | None = 4
    """Number of decisions; none: the bar stays where it is."""
    length: Annotated[int, Bounds(1, 1 << 12)] = 20
    """Rows of the square."""
    width: Annotated[int, Bounds(1, 1 << 12)] = 20
    """Columns of the square."""
    thirst: Amount = 10.0
    """c: what it is worth to be at the bar."""
    calm: Annotated[float, Bounds(0, 1)] = 0.5
    """Probability of no push; else one step in one of four directions, alike."""
    bar_moves_every: Annotated[int, Bounds(1, 1 << 20)] = 2
    """Steps from one move of the bar to the next."""
    bars: tuple[Whole, ...] = ()
    """The bar's cell at each time (row * width + column; the last one stays); empty: a walk from the middle, drawn."""
    bar_seed: Seed = 0
    """Which walk of the bar."""
    floor: Annotated[float, Bounds(0, 1, open_low=True)] = 1e-10
    """Added to shares before the logarithm."""

    time_dependent = True
    crowd_moves = False

    def __post_init__(self) -> None:
        super().__post_init__()
        outside = [cell for cell in self.bars if not 0 <= cell < self.num_states]
        if outside:
            raise ConfigError(f"bars must be cells from 0 to {self.num_states - 1}, not {outside[0]}.")

    @property
    def num_states(self) -> int:
        return self.length * self.width

    @property
    def num_actions(self) -> int:
        return 5

    def initial(self) -> Tensor:
        return torch.full((self.num_states,), 1 / self.num_states, dtype=torch.float64)

    def bar(self, t: int) -> tuple[int, int]:
        """Row and column of the bar at time t."""
        if self.bars:
            return divmod(self.bars[min(t, len(self.bars) - 1)], self.width)
        x, y = self.length // 2, self.width // 2
        moves = t // self.bar_moves_every
        drawn = random.integers(Key.of(self.bar_seed).fold("bar"), torch.arange(moves), 4).tolist()
        for turn in drawn:
            after = x + 2 * (turn // 2) - 1, y + 2 * (turn % 2) - 1
            if 0 <= after[0] < self.length and 0 <= after[1] < self.width:
                x, y = after
        return x, y

    @cached_property
    def _steps(self) -> Outcomes:
        # The step and the push together, ended at the wall once.
        way = torch.tensor(_STEPS)
        there = grid_moves((self.length, self.width), (way.unsqueeze(1) + way).reshape(-1, 2)).view(-1, 5, 5)
        chance = table([(1 - self.calm) / 4] * 4 + [self.calm])
        return Outcomes(there, chance.expand(self.num_states, 5, 5))

    def outcomes(self, t: int, crowd: Crowd) -> Outcomes:
        if crowd.mu.device.type == "cpu":
            return self._steps
        return Outcomes(self._steps.successor.to(crowd.mu.device), self._steps.probability.to(crowd.mu))

    def _near(self, t: int, like: Tensor) -> Tensor:
        """c times the nearness of each cell to the bar, [S]."""
        x, y = self.bar(t)
        rows, columns = (torch.arange(self.length) - x).abs(), (torch.arange(self.width) - y).abs()
        away = (rows.unsqueeze(-1) + columns).flatten()
        return self.thirst * (1 - away.to(like) / (self.length + self.width))

    def rewards(self, t: int, crowd: Crowd) -> Tensor:
        return (self._near(t, crowd.mu) - (crowd.mu + self.floor).log()).unsqueeze(-1)

    def potential(self, t: int, crowd: Crowd) -> Tensor:
        mu = crowd.mu
        return (self._near(t, mu) * mu - (mu + self.floor) * (mu + self.floor).log() + mu).sum((-2, -1))

    def coordinates(self) -> Tensor:
        axes = [torch.linspace(-1, 1, n) if n > 1 else torch.zeros(1) for n in (self.length, self.width)]
        return torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 2)

    def render(self, state: GameState, copy: int = 0) -> Tensor:
        """The square, darker where more people are; the bar is orange."""
        mu = self.crowd(state).mu[copy, 0].view(self.length, self.width)
        grey = (255 - 255 * (mu / mu.max()).sqrt()).to(torch.uint8)
        coloured = torch.stack([grey, grey, torch.full_like(grey, 250)], -1)
        coloured[self.bar(int(state.time[copy]))] = picture.palette(2)[1].to(grey.device)
        return picture.enlarged(coloured)

    def reference(self, temperature: float = 0.0) -> dict[str, Known]:
        return equilibrium(self, temperature)


parallel_env, env = faces(CrowdMotion)
