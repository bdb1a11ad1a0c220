r"""Rock, paper, scissors against the crowd, with unequal stakes.

$$ r_R = 2\mu_S - \mu_P, \qquad r_P = 4\mu_R - 2\mu_S, \qquad r_S = 6\mu_P - 3\mu_R $$

Cui and Koeppl 2021 (arXiv 2102.01585, appendix), after Shapley 1964: fixed-point iteration goes round. All three pay
42/77 = 6/11 at (26, 20, 31)/77. An agent's own share enters no reward of its own choice, so N agents play the same
game with every reward times (N - 1)/N: the same equilibrium, and at temperature T that of the limit at T N / (N - 1).
Each of `horizon` decisions is paid once, on the state that it leads to.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mfmarl.games.game import Crowd, GameState, MeanFieldGame
from mfmarl.games.kernels import Outcomes
from mfmarl.games.reference import quantal_response
from mfmarl.options import Count
from mfmarl.population import picture
from mfmarl.population.known import Known
from mfmarl.population.pettingzoo_out import faces
from mfmarl.registry import register

NASH = (26 / 77, 20 / 77, 31 / 77)
_NAMES = ("rock", "paper", "scissors")
# Reward of a state (row) for the share of another (column): start, rock, paper, scissors.
_PAYOFFS = ((0, 0, 0, 0), (0, 0, -1, 2), (0, 4, 0, -2), (0, -3, 6, 0))


@register("rock_paper_scissors")
@dataclass(frozen=True)
class RockPaperScissors(MeanFieldGame):
    """Everyone plays against the shares of the three throws."""

    horizon: Count | None = 1
    """Number of decisions."""

    crowd_moves = False

    @property
    def num_states(self) -> int:
        return 4

    @property
    def num_actions(self) -> int:
        return 3

    def initial(self) -> Tensor:
        return torch.tensor([1.0, 0.0, 0.0, 0.0], dtype=torch.float64)

    def outcomes(self, t: int, crowd: Crowd) -> Outcomes:
        there = torch.tensor([[[1], [2], [3]]], device=crowd.mu.device).expand(4, 3, 1)
        return Outcomes(there, crowd.mu.new_ones(4, 3, 1))

    def rewards(self, t: int, crowd: Crowd) -> Tensor:
        return self.terminal(crowd).unsqueeze(-1)

    def terminal(self, crowd: Crowd) -> Tensor:
        return crowd.mu @ crowd.mu.new_tensor(_PAYOFFS).T

    def measures(self, mu: Tensor) -> dict[str, Tensor]:
        return {name: mu[..., 0, 1 + i] for i, name in enumerate(_NAMES)}

    def render(self, state: GameState, copy: int = 0) -> Tensor:
        return picture.bars(self.crowd(state).mu[copy, 0], picture.palette(4))

    def reference(self, temperature: float = 0.0) -> dict[str, Known]:
        n = self.num_agents
        shares, source = NASH, "Nash equilibrium at every N; Cui and Koeppl 2021"
        if n == 1:
            return {"reward": Known(0.0, "nobody to play against", "law")}
        if temperature > 0:
            found = quantal_response(RockPaperScissors(horizon=1), temperature * n / (n - 1))
            if found.residual > 1e-5:
                return {}
            shares, source = tuple(found.policy[0, 0, 0].tolist()), f"logit equilibrium at temperature {temperature:g}"
        start = torch.tensor((0.0, *shares), dtype=torch.float64)
        paid = float(start @ torch.tensor(_PAYOFFS, dtype=torch.float64) @ start)
        known = {"reward": Known(paid * (n - 1) / n, source, "equilibrium")}
        return known | {name: Known(share, source, "equilibrium") for name, share in zip(_NAMES, shares, strict=True)}


parallel_env, env = faces(RockPaperScissors)
