r"""Two kinds of households choose a neighbourhood, and mind who lives there: Schelling's segregation with a temperature.

$$ r^g(b; \mu) = w\, \sigma\!\Big( \frac{q^g(b) - \theta}{\delta} \Big), \qquad
   q^g(b) = \frac{\mu^g(b)}{\mu^1(b) + \mu^2(b)} $$

Everyone may move to any of B blocks, and likes those with a share q of its own kind above the tolerance theta (Schelling
1971, Journal of Mathematical Sociology 1, 143; smoothed by delta). Households at temperature T choose by exp(gamma w
sigma / T). The mixed city is a fixed point at any T; a push mu^1 + x, mu^2 - x grows by the factor T_c / T a step,

$$ T_c = \frac{\gamma w}{2}\, \frac{d}{dq} \sigma\!\Big( \frac{q - \theta}{\delta} \Big) \Big|_{q = 1/2} $$

so below T_c the city segregates, though nobody may want more than a little company of its own kind. With two blocks, the
share of either kind that lives with its own is (1 + m)/2 with m = tanh(gamma [r(1/2 + m/2) - r(1/2 - m/2)] / 2T), the
mean-field equation of a magnet. The well-mixed relative of Grauwin, Bertin, Lemoy and Jensen 2009 (PNAS 106, 20622).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from mfmarl.games.game import Crowd, GameState, MeanFieldGame
from mfmarl.games.kernels import Outcomes
from mfmarl.options import Bounds, Count, Share
from mfmarl.population import picture
from mfmarl.population.known import Known
from mfmarl.population.pettingzoo_out import faces
from mfmarl.registry import register

_EMPTY = 1e-12  # households of either kind in a block that nobody lives in


@register("schelling")
@dataclass(frozen=True)
class Schelling(MeanFieldGame):
    """Households of two kinds, who tolerate being a minority to some extent."""

    horizon: Count | None = 20
    """Number of decisions; none: without end, discounted, in its stationary state."""
    discount: Share = 0.95
    """Discount per step."""
    blocks: Annotated[int, Bounds(2, 4096)] = 4
    """B, neighbourhoods."""
    tolerance: Annotated[float, Bounds(0, 1)] = 0.35
    """theta, the share of its own kind at which a household is half content."""
    softness: Annotated[float, Bounds(0, 100, open_low=True)] = 0.1
    """delta, over which contentment rises."""
    content: Annotated[float, Bounds(0, 1e6)] = 1.0
    """w, what full contentment is worth."""
    lean: Annotated[float, Bounds(-1, 1)] = 0.02
    """By how much the first kind prefers the first half of the blocks, and the second kind the others, at the start."""

    groups = ("first", "second")
    crowd_moves = False

    @property
    def num_states(self) -> int:
        return self.blocks

    @property
    def num_actions(self) -> int:
        return self.blocks

    def initial(self) -> Tensor:
        side = torch.where(torch.arange(self.blocks) < self.blocks // 2, 1.0, -1.0).double()
        side[: self.blocks // 2] *= (self.blocks - self.blocks // 2) / (self.blocks // 2)
        leaning = self.lean * side / side.abs().max()
        return torch.stack([1 + leaning, 1 - leaning]) / self.blocks

    def outcomes(self, t: int, crowd: Crowd) -> Outcomes:
        there = torch.arange(self.blocks, device=crowd.mu.device).view(1, -1, 1).expand(self.blocks, -1, 1)
        return Outcomes(there, crowd.mu.new_ones(1, 1, 1).expand(self.blocks, self.blocks, 1))

    def contentment(self, share: Tensor) -> Tensor:
        """What a household gets in a block with such a share of its own kind."""
        return self.content * torch.sigmoid((share - self.tolerance) / self.softness)

    def rewards(self, t: int, crowd: Crowd) -> Tensor:
        # Group sizes are equal in the limit; of N agents each kind counts as half of all.
        kind = crowd.mu + _EMPTY
        return self.contentment(kind / kind.sum(-2, keepdim=True)).unsqueeze(-1)

    def measures(self, mu: Tensor) -> dict[str, Tensor]:
        """`dissimilarity`: Duncan and Duncan's index, the share of either kind that would have to move to mix the city;
        `own`: the share of their own kind that households meet at home."""
        kind = mu + _EMPTY
        own = kind / kind.sum(-2, keepdim=True)
        apart = (mu[..., 0, :] - mu[..., 1, :]).abs().sum(-1) / 2
        return {"dissimilarity": apart, "own": (mu * own).sum((-2, -1)) / 2}

    def render(self, state: GameState, copy: int = 0) -> Tensor:
        """The share of the first kind among the households of each block."""
        mu = self.crowd(GameState(*(x[copy : copy + 1] for x in state))).mu[0].cpu() + _EMPTY
        return picture.bars(mu[0] / mu.sum(0), picture.palette(1).expand(self.blocks, 3))

    # ----------------------------------------------------------------------------------- what theory knows

    def critical_temperature(self) -> float:
        """T_c, below which the mixed city is unstable."""
        here = 1 / (1 + math.exp(-(0.5 - self.tolerance) / self.softness))
        return self.discount * self.content * here * (1 - here) / self.softness / 2

    def magnetisation(self, temperature: float) -> float:
        """m of two blocks, the largest: 0 above T_c where the onset is continuous."""
        m = 1.0
        for _ in range(100_000):
            both = self.contentment(torch.tensor([(1 + m) / 2, (1 - m) / 2], dtype=torch.float64))
            after = math.tanh(self.discount * float(both[0] - both[1]) / (2 * temperature))
            if abs(after - m) < 1e-14:
                break
            m = after
        return m

    def reference(self, temperature: float = 0.0) -> dict[str, Known]:
        """Without temperature what nobody can beat, full segregation. At one, in the stationary state: the mixed city
        where it is stable; the two halves of a city of two blocks where it is not."""
        if temperature == 0:
            most = float(self.contentment(torch.tensor(1.0, dtype=torch.float64)))
            return {"reward": Known(most, "everyone among its own kind alone: no household can have more", "bound")}
        if self.horizon is not None:
            return {}
        if temperature > self.critical_temperature():
            m, source = 0.0, "mixed city, linearly stable"
        elif self.blocks == 2:
            m, source = self.magnetisation(temperature), "segregated city of two blocks, m = tanh(...)"
        else:
            return {}
        share = torch.tensor([(1 + m) / 2, (1 - m) / 2], dtype=torch.float64)
        reward = float((share * self.contentment(share)).sum())
        found = {"reward": reward, "own": float(share.square().sum())}
        if m > 0:  # of N households the mixed city's is not 0 but about (B/N)^(1/2)
            found["dissimilarity"] = m
        source += f" at temperature {temperature:g}; infinitely many households"
        return {name: Known(value, source, "equilibrium") for name, value in found.items()}


parallel_env, env = faces(Schelling)
