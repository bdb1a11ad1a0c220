r"""Swimmers in mid-river, two shores, and company on the shore that most of them choose: three equilibria.

$$ r_t(s; \mu) = b_s + J\, \mu_t(s) \ \text{on a shore}, \qquad 0 \ \text{in the water} $$

Whoever is ashore stays. With b >= 0 and J > 0 everyone makes straight for a shore, so that an equilibrium is a share x
of swimmers to the left. With the gain d = b_left - b_right, |d| < J, there are three of them:

$$ x = 1, \qquad x = 0, \qquad x^\ast = \tfrac12 - \tfrac{d}{2 J} $$

At x* both shores pay alike, and it is unstable: the crowd grows on the shore that has more than its share there. The
game is not monotone (Lasry and Lions 2007), has a potential, and the equilibrium that a solver finds depends on where
it begins and how it steps: fictitious play and mirror descent go to the shore that they lean to, the proximal point to
x*. Coordination as in Cooper and John 1988 (Quarterly Journal of Economics 103, 441).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, NamedTuple

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


class Landing(NamedTuple):
    """One equilibrium."""

    left: float  # share of swimmers that land on the left
    value: float  # what each gets in all, undiscounted
    stable: bool  # whether it comes back after a small push


@register("two_shores")
@dataclass(frozen=True)
class TwoShores(MeanFieldGame):
    """Swimmers who like company on the shore: which shore is for the crowd to settle."""

    horizon: Count | None = 10
    """Number of decisions."""
    width: Annotated[int, Bounds(1, 1000)] = 2
    """Strokes from the middle to either shore."""
    company: Annotated[float, Bounds(0, 1e6, open_low=True)] = 1.0
    """J, what a crowd is worth to each on its shore."""
    left: Annotated[float, Bounds(0, 1e6)] = 0.3
    """What the left shore is worth by itself."""
    right: Annotated[float, Bounds(0, 1e6)] = 0.1
    """What the right shore is worth by itself."""

    crowd_moves = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.horizon is None or self.horizon <= self.width:
            raise ConfigError(f"horizon must be above the width of {self.width} strokes, or nobody is ever ashore.")

    @property
    def num_states(self) -> int:
        return 2 * self.width + 1

    @property
    def num_actions(self) -> int:
        return 3

    def initial(self) -> Tensor:
        return torch.nn.functional.one_hot(torch.tensor(self.width), self.num_states).double()

    def coordinates(self) -> Tensor:
        return torch.linspace(-1, 1, self.num_states).unsqueeze(-1)

    def outcomes(self, t: int, crowd: Crowd) -> Outcomes:
        place = torch.arange(self.num_states).unsqueeze(-1)
        there = place + torch.tensor([-1, 0, 1])
        ashore = (place == 0) | (place == self.num_states - 1)
        there = torch.where(ashore, place, there).unsqueeze(-1).to(crowd.mu.device)
        return Outcomes(there, crowd.mu.new_ones(1, 1, 1).expand(there.shape))

    def _shores(self, like: Tensor) -> tuple[Tensor, Tensor]:
        worth, ashore = like.new_zeros(self.num_states), like.new_zeros(self.num_states)
        worth[0], worth[-1] = self.left, self.right
        ashore[0] = ashore[-1] = self.company
        return worth, ashore

    def rewards(self, t: int, crowd: Crowd) -> Tensor:
        worth, ashore = self._shores(crowd.mu)
        return (worth + ashore * crowd.mu).unsqueeze(-1)

    def potential(self, t: int, crowd: Crowd) -> Tensor:
        worth, ashore = self._shores(crowd.mu)
        return (worth * crowd.mu + ashore * crowd.mu**2 / 2).sum((-2, -1))

    def measures(self, mu: Tensor) -> dict[str, Tensor]:
        """Shares on either shore."""
        return {"left": mu[..., 0, 0], "right": mu[..., 0, -1]}

    def render(self, state: GameState, copy: int = 0) -> Tensor:
        """How many are where, from the left shore to the right."""
        counts = torch.bincount(state.state[copy].cpu(), minlength=self.num_states)
        return picture.bars(counts / counts.max(), picture.palette(1).expand(self.num_states, 3))

    # ----------------------------------------------------------------------------------- what theory knows

    def equilibria(self) -> list[Landing]:
        """Every equilibrium of infinitely many undiscounted swimmers, from all on the left to all on the right."""
        gain, ashore = self.left - self.right, (self.horizon or 0) - self.width
        found = []
        if gain > -self.company:
            found.append(Landing(1.0, ashore * (self.left + self.company), True))
        if abs(gain) < self.company:
            share = 0.5 - gain / (2 * self.company)
            found.append(Landing(share, ashore * (self.left + self.company * share), False))
        if gain < self.company:
            found.append(Landing(0.0, ashore * (self.right + self.company), True))
        return found

    def straight(self, share: float) -> Tensor:
        """The policy [T, 1, S, A] that sends a share of the swimmers to the left, straight."""
        policy = torch.zeros(self.num_states, 3, dtype=torch.float64)
        policy[: self.width, 0] = policy[self.width + 1 :, 2] = 1
        policy[self.width, 0], policy[self.width, 2] = share, 1 - share
        return policy.expand(self.horizon or 1, 1, -1, -1).clone()

    def reference(self, temperature: float = 0.0) -> dict[str, Known]:
        """Without temperature the best of the three equilibria, which is the planner's optimum too."""
        if temperature > 0:
            return equilibrium(self, temperature)
        best = max(self.equilibria(), key=lambda landing: landing.value)
        source = "all to the better shore: the best of three equilibria, and the social optimum"
        return {"reward": Known(best.value / (self.horizon or 1), source, "optimum")}


parallel_env, env = faces(TwoShores)
