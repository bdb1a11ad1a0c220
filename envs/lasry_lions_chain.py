r"""A crowd on a ring that pays for crowding by the logarithm: its entropic equilibrium in closed form, by Hopf and Cole.

$$ r(s; \mu) = f(s) - c \log \mu(s), \qquad s' = s + a, \quad a \in \{-1, 0, 1\} $$

Agents at temperature T who keep near the passive walk P0 (uniform over the three moves, cost T KL(pi || P0), which is
minus T times the entropy up to a constant) have the value V = r + T log P0 exp(gamma V/T). With psi = exp(gamma V/T),
the transform of Hopf and Cole (Todorov 2007; Gueant 2012, arXiv 1106.3269), policy and stationary crowd are

$$ \pi(s' | s) = \frac{P_0(s, s')\, \psi(s')}{(P_0 \psi)(s)}, \qquad \mu(s) \propto \psi(s)\, (P_0 \psi)(s) $$

as psi(s) P0(s, s') psi(s') is symmetric. The landscape f is made so that psi(s) = exp(kappa sin(2 pi s / S)) is the
equilibrium's at the temperature `designed`:

$$ f = c \log \mu + \tfrac{T}{\gamma} \log \psi - T \log P_0 \psi $$

This is the discounted stationary mean-field game of Lasry and Lions 2007 (Japanese Journal of Mathematics 2, 229) with
quadratic Hamiltonian and local coupling, on a chain. -c log mu is monotone, so the equilibrium is the only one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from mfmarl.games.game import Crowd, GameState, MeanFieldGame
from mfmarl.games.kernels import Outcomes, grid_moves
from mfmarl.games.reference import equilibrium
from mfmarl.options import Bounds, Count, Share
from mfmarl.population import picture
from mfmarl.population.known import Known
from mfmarl.population.pettingzoo_out import faces
from mfmarl.registry import register


@register("lasry_lions_chain")
@dataclass(frozen=True)
class LasryLionsChain(MeanFieldGame):
    """A crowd on a ring between a landscape and its own crowding."""

    horizon: Count | None = 8
    """Number of decisions; none: without end, discounted, in its stationary state."""
    discount: Share = 0.9
    """Discount per step."""
    places: Annotated[int, Bounds(3, 1 << 20)] = 8
    """S, places round the ring."""
    crowding: Annotated[float, Bounds(0, 1e6)] = 0.3
    """c, what a crowd costs."""
    designed: Annotated[float, Bounds(0, 1e6, open_low=True)] = 0.5
    """T, the temperature whose stationary equilibrium is known."""
    hill: Annotated[float, Bounds(-20, 20)] = 0.8
    """kappa, how far that equilibrium is from uniform."""
    floor: Annotated[float, Bounds(0, 1)] = 1e-12
    """Added to shares before the logarithm."""

    crowd_moves = False

    @property
    def num_states(self) -> int:
        return self.places

    @property
    def num_actions(self) -> int:
        return 3

    def initial(self) -> Tensor:
        return torch.full((self.places,), 1 / self.places, dtype=torch.float64)

    def coordinates(self) -> Tensor:
        angle = 2 * math.pi * torch.arange(self.places) / self.places
        return torch.stack([angle.cos(), angle.sin()], -1)

    def _moves(self) -> Tensor:
        return grid_moves((self.places,), torch.arange(-1, 2).view(3, 1), torus=True)

    def outcomes(self, t: int, crowd: Crowd) -> Outcomes:
        there = self._moves().unsqueeze(-1).to(crowd.mu.device)
        return Outcomes(there, crowd.mu.new_ones(1, 1, 1).expand(there.shape))

    def rewards(self, t: int, crowd: Crowd) -> Tensor:
        return (self.landscape().to(crowd.mu) - self.crowding * (crowd.mu + self.floor).log()).unsqueeze(-1)

    def potential(self, t: int, crowd: Crowd) -> Tensor:
        mu, full = crowd.mu, crowd.mu + self.floor
        return (self.landscape().to(mu) * mu - self.crowding * (full * full.log() - mu)).sum((-2, -1))

    def render(self, state: GameState, copy: int = 0) -> Tensor:
        """How many stand where round the ring."""
        counts = torch.bincount(state.state[copy].cpu(), minlength=self.places)
        return picture.bars(counts / counts.max(), picture.palette(1).expand(self.places, 3))

    # ----------------------------------------------------------------------------------- what theory knows

    def _transform(self) -> tuple[Tensor, Tensor]:
        """psi and P0 psi, [S]."""
        psi = torch.exp(
            self.hill * torch.sin(2 * math.pi * torch.arange(self.places, dtype=torch.float64) / self.places)
        )
        return psi, psi[self._moves()].mean(-1)

    def crowd_at_rest(self) -> Tensor:
        """The stationary equilibrium's distribution at the temperature `designed`, [S]."""
        psi, ahead = self._transform()
        return psi * ahead / (psi * ahead).sum()

    def policy_at_rest(self) -> Tensor:
        """Its policy, [S, A]."""
        psi = self._transform()[0][self._moves()]
        return psi / psi.sum(-1, keepdim=True)

    def landscape(self) -> Tensor:
        """f, [S]."""
        psi, ahead = self._transform()
        held = (self.crowd_at_rest() + self.floor).log() * self.crowding
        return held + self.designed * (psi.log() / self.discount - ahead.log())

    def reference(self, temperature: float = 0.0) -> dict[str, Known]:
        return equilibrium(self, temperature)


parallel_env, env = faces(LasryLionsChain)
