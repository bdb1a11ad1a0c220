r"""Left or right: who goes where many go loses, and on the right twice as much.

$$ r(\text{left}) = -\mu(\text{left}), \qquad r(\text{right}) = -2 \mu(\text{right}), \qquad r(\text{start}) = 0 $$

Cui and Koeppl 2021 (arXiv 2102.01585, appendix). In the limit two thirds go left. N agents who each go left with
probability p expect -(1 + (N - 1) p) / N there and -2 (1 + (N - 1)(1 - p)) / N on the right, since everyone counts
themselves; they are equal at

$$ p = \frac{2N - 1}{3 (N - 1)}, \qquad r = -\frac{2 (N + 1)}{3 N} . $$

Each of `horizon` decisions is paid once, on the place that it leads to (the last by the terminal reward).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mfmarl.games.game import Crowd, GameState, MeanFieldGame
from mfmarl.games.kernels import Outcomes
from mfmarl.options import Count
from mfmarl.population import picture
from mfmarl.population.known import Known
from mfmarl.population.pettingzoo_out import faces
from mfmarl.registry import register


@register("left_right")
@dataclass(frozen=True)
class LeftRight(MeanFieldGame):
    """A choice between two places, each the worse the fuller it is."""

    horizon: Count | None = 1
    """Number of decisions."""

    crowd_moves = False

    @property
    def num_states(self) -> int:
        return 3

    @property
    def num_actions(self) -> int:
        return 2

    def initial(self) -> Tensor:
        return torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64)

    def outcomes(self, t: int, crowd: Crowd) -> Outcomes:
        there = torch.tensor([[[1], [2]]], device=crowd.mu.device).expand(3, 2, 1)
        return Outcomes(there, crowd.mu.new_ones(3, 2, 1))

    def rewards(self, t: int, crowd: Crowd) -> Tensor:
        return self.terminal(crowd).unsqueeze(-1)

    def terminal(self, crowd: Crowd) -> Tensor:
        return crowd.mu * crowd.mu.new_tensor([0.0, -1.0, -2.0])

    def potential(self, t: int, crowd: Crowd) -> Tensor | None:
        # A terminal reward is no part of sum_t Phi_t.
        return None if self.horizon is not None else (crowd.mu**2 @ crowd.mu.new_tensor([0.0, -0.5, -1.0])).sum(-1)

    def measures(self, mu: Tensor) -> dict[str, Tensor]:
        return {"left": mu[..., 0, 1]}

    def render(self, state: GameState, copy: int = 0) -> Tensor:
        return picture.bars(self.crowd(state).mu[copy, 0], picture.palette(3))

    # ----------------------------------------------------------------------------------- what theory knows

    def left(self, temperature: float = 0.0, agents: int | None = None) -> float:
        """The probability of going left at the equilibrium of so many agents (default: infinitely many).

        At a temperature the logit one, p = 1 / (1 + exp((r_right - r_left) / T)): the root of a falling function.
        """
        n = float("inf") if agents is None else float(agents)
        low, high = 0.0, 1.0
        for _ in range(100):
            p = (low + high) / 2
            # The gain of going left; own share 1 / n.
            gain = (2 * (1 / n + (1 - 1 / n) * (1 - p))) - (1 / n + (1 - 1 / n) * p)
            if temperature > 0:
                gain -= temperature * float(torch.logit(torch.tensor(p, dtype=torch.float64)))
            low, high = (p, high) if gain > 0 else (low, p)
        return (low + high) / 2

    def reference(self, temperature: float = 0.0) -> dict[str, Known]:
        n = self.num_agents
        p = self.left(temperature, n)
        paid = -p * (1 + (n - 1) * p) / n - 2 * (1 - p) * (1 + (n - 1) * (1 - p)) / n
        source = f"equilibrium of {n} agents; Cui and Koeppl 2021, own share counted"
        if temperature > 0:
            source = f"logit {source} at temperature {temperature:g}"
        if self.horizon is None:
            # The start is left after one step, and its 0 is paid in no stationary state.
            source += ", once everyone has moved"
        return {"reward": Known(paid, source, "equilibrium"), "left": Known(p, source, "equilibrium")}


parallel_env, env = faces(LeftRight)
