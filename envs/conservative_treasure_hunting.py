r"""Treasure hunters who are loath to leave: where the crowd is far from settled at one's place, one drifts.

$$ d_s = \lVert L_t - E_{ss} \rVert_F^2, \qquad r_t(s, a) = [a = s]\, r_s \left(1 - \tfrac{d_s}{2}\right), \qquad
   P_t(s' \mid s, a) = \frac{c_t d_s + [s' = a]}{1 + n\, c_t d_s} $$

with E_ss the crowd that all dig at s; at t = 0 one goes where one wants and nothing is paid. Guo, Hu and Zhang 2022
(MF-OMO, arXiv 2206.09608, section 6). An extended game with several equilibria: to dig where all dig is one for every
place, so `reference` gives that of mirror descent from uniform choice only.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mfmarl.errors import ConfigError
from mfmarl.games.game import Crowd, GameState, MeanFieldGame
from mfmarl.games.kernels import Dense
from mfmarl.games.reference import equilibrium
from mfmarl.options import Amount, Count
from mfmarl.population import picture
from mfmarl.population.known import Known
from mfmarl.population.pettingzoo_out import faces
from mfmarl.registry import register


@register("conservative_treasure_hunting")
@dataclass(frozen=True)
class ConservativeTreasureHunting(MeanFieldGame):
    """Diggers at a few places, paid for agreement."""

    horizon: Count | None = 6
    """Number of decisions."""
    treasure: tuple[Amount, ...] = (1.0, 1.0, 1.0)
    """r: what each place holds."""
    drift: tuple[Amount, ...] = (1.0,)
    """c: how strongly disagreement makes agents drift, from the second step on; the last one stays."""

    time_dependent = True
    extended = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.treasure) < 2:
            raise ConfigError(f"treasure must name at least 2 places, not {len(self.treasure)}.")
        if not self.drift or min(self.drift) < 0:
            raise ConfigError(f"drift must hold at least one number, and none below 0, not {self.drift}.")

    @property
    def num_states(self) -> int:
        return len(self.treasure)

    @property
    def num_actions(self) -> int:
        return len(self.treasure)

    def initial(self) -> Tensor:
        return torch.full((self.num_states,), 1 / self.num_states, dtype=torch.float64)

    def _free(self, t: int) -> bool:
        """Whether it is the first step; in a stationary state there is none."""
        return t == 0 and self.horizon is not None

    def outcomes(self, t: int, crowd: Crowd) -> Dense:
        n = self.num_states
        wanted = torch.eye(n, dtype=crowd.mu.dtype, device=crowd.mu.device)
        if self._free(t):
            return Dense(wanted.expand(n, n, n))
        loose = self.drift[min(max(t, 1), len(self.drift)) - 1] * _disagreement(crowd).unsqueeze(-1).unsqueeze(-1)
        return Dense((loose + wanted) / (1 + n * loose))

    def rewards(self, t: int, crowd: Crowd) -> Tensor:
        if self._free(t):
            return crowd.mu.new_zeros(1, 1)
        dug = crowd.mu.new_tensor(self.treasure) * (1 - _disagreement(crowd) / 2)
        return torch.diag_embed(dug)

    def render(self, state: GameState, copy: int = 0) -> Tensor:
        return picture.bars(self.crowd(state).mu[copy, 0], picture.palette(self.num_states))

    def reference(self, temperature: float = 0.0) -> dict[str, Known]:
        return equilibrium(self, temperature)


def _disagreement(crowd: Crowd) -> Tensor:
    """d_s [..., S], from 0 (all dig at s) to 2."""
    joint = crowd.joint
    return (joint**2).sum((-2, -1)).unsqueeze(-1) - 2 * joint.diagonal(dim1=-2, dim2=-1) + 1


parallel_env, env = faces(ConservativeTreasureHunting)
