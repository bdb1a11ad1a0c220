"""Games small enough to be solved on paper or by looking everywhere."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mfmarl.envs.beach_bar import BeachBar
from mfmarl.games.game import Crowd, MeanFieldGame
from mfmarl.games.kernels import Dense, Kernel, Outcomes


def stay(crowd: Crowd, states: int, actions: int) -> Outcomes:
    here = torch.arange(states).view(-1, 1, 1).expand(states, actions, 1)
    return Outcomes(here, torch.ones(states, actions, 1, dtype=crowd.mu.dtype))


def go(crowd: Crowd, states: int) -> Outcomes:
    """The action is the next state."""
    there = torch.arange(states).view(1, -1, 1).expand(states, states, 1)
    return Outcomes(there, torch.ones(states, states, 1, dtype=crowd.mu.dtype))


@dataclass(frozen=True)
class Pigou(MeanFieldGame):
    """Two roads: one takes an hour, the other x^power hours when a share x is on it (Pigou 1920)."""

    horizon: int | None = 1
    power: int = 1
    num_states = 1
    num_actions = 2
    crowd_moves = False
    extended = True

    def initial(self) -> Tensor:
        return torch.ones(1, dtype=torch.float64)

    def outcomes(self, t: int, crowd: Crowd) -> Kernel:
        return stay(crowd, 1, 2)

    def rewards(self, t: int, crowd: Crowd) -> Tensor:
        narrow = crowd.actions[..., 1:] ** self.power
        return -torch.cat([torch.ones_like(narrow), narrow], -1).unsqueeze(-2)

    def potential(self, t: int, crowd: Crowd) -> Tensor:
        wide, narrow = crowd.actions.unbind(-1)
        return -(wide + narrow ** (self.power + 1) / (self.power + 1)).sum(-1)


@dataclass(frozen=True)
class Matrix(MeanFieldGame):
    """One choice, r(a; x) = sum_b M_ab x_b of the shares x of the actions."""

    horizon: int | None = 1
    matrix: tuple[tuple[float, ...], ...] = ((0.0, -1.0, 1.0), (1.0, 0.0, -1.0), (-1.0, 1.0, 0.0))
    num_states = 1
    crowd_moves = False
    extended = True

    @property
    def num_actions(self) -> int:
        return len(self.matrix)

    def initial(self) -> Tensor:
        return torch.ones(1, dtype=torch.float64)

    def outcomes(self, t: int, crowd: Crowd) -> Kernel:
        return stay(crowd, 1, self.num_actions)

    def rewards(self, t: int, crowd: Crowd) -> Tensor:
        table = torch.tensor(self.matrix, dtype=crowd.mu.dtype)
        return (crowd.actions @ table.mT).unsqueeze(-2)


@dataclass(frozen=True)
class LeftRight(MeanFieldGame):
    """Left pays minus its share, right minus twice its share: (2/3, 1/3). The last choice leads nowhere."""

    horizon: int | None = 2
    num_states = 3
    num_actions = 2
    crowd_moves = False

    def initial(self) -> Tensor:
        return torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64)

    def outcomes(self, t: int, crowd: Crowd) -> Kernel:
        there = torch.tensor([1, 2]).view(1, 2, 1).expand(3, 2, 1)
        return Outcomes(there, torch.ones(3, 2, 1, dtype=crowd.mu.dtype))

    def rewards(self, t: int, crowd: Crowd) -> Tensor:
        return (-crowd.mu * torch.tensor([0.0, 1.0, 2.0], dtype=crowd.mu.dtype)).unsqueeze(-1)


@dataclass(frozen=True)
class Meeting(MeanFieldGame):
    """Two places, better the fuller: both places are equilibria, and so is half and half, which nobody keeps."""

    horizon: int | None = 3
    start_share: float = 0.5
    num_states = 2
    num_actions = 2
    crowd_moves = False

    def initial(self) -> Tensor:
        return torch.tensor([self.start_share, 1 - self.start_share], dtype=torch.float64)

    def outcomes(self, t: int, crowd: Crowd) -> Kernel:
        return go(crowd, 2)

    def rewards(self, t: int, crowd: Crowd) -> Tensor:
        return crowd.mu.unsqueeze(-1)


@dataclass(frozen=True)
class Epidemic(MeanFieldGame):
    """Susceptible and infected; who distances himself does not catch it, and pays: dynamics that the crowd moves."""

    horizon: int | None = 3
    infection: float = 0.81
    recovery: float = 0.3
    infected: float = 0.4
    final: float = 0.0
    num_states = 2
    num_actions = 2

    def initial(self) -> Tensor:
        return torch.tensor([1 - self.infected, self.infected], dtype=torch.float64)

    def outcomes(self, t: int, crowd: Crowd) -> Kernel:
        catch = self.infection * crowd.mu[..., 1]
        none = torch.zeros_like(catch)
        sick = torch.stack(
            [torch.stack([catch, none], -1), torch.full_like(torch.stack([catch, none], -1), 1 - self.recovery)], -2
        )
        return Dense(torch.stack([1 - sick, sick], -1))

    def rewards(self, t: int, crowd: Crowd) -> Tensor:
        return -torch.tensor([[0.0, 0.5], [1.0, 1.5]], dtype=crowd.mu.dtype)

    def terminal(self, crowd: Crowd) -> Tensor:
        return -self.final * crowd.mu[..., 1:] * torch.tensor([0.0, 1.0], dtype=crowd.mu.dtype)


@dataclass(frozen=True)
class Towels(BeachBar):
    """The beach where a place costs 4 times its share: what one does to the others is not the same everywhere."""

    def rewards(self, t: int, crowd: Crowd) -> Tensor:
        away = (torch.arange(self.places) - self.bar) % self.places
        near = -torch.minimum(away, self.places - away).to(crowd.mu)
        return (near - 4 * crowd.mu).unsqueeze(-1)

    def potential(self, t: int, crowd: Crowd) -> Tensor:
        away = (torch.arange(self.places) - self.bar) % self.places
        near = -torch.minimum(away, self.places - away).to(crowd.mu)
        return (near * crowd.mu - 2 * crowd.mu**2).sum((-2, -1))


@dataclass(frozen=True)
class Pursuit(MeanFieldGame):
    """Two groups on a ring, one drawn to the other, which flees; a place bears a cost where it is full."""

    horizon: int | None = 4
    num_agents: int = 20
    crowding: float = 1.0
    final: float = 0.0
    groups = ("hunter", "prey")
    num_states = 4
    num_actions = 3
    crowd_moves = False

    def initial(self) -> Tensor:
        return torch.tensor([[0.7, 0.1, 0.1, 0.1], [0.1, 0.1, 0.7, 0.1]], dtype=torch.float64)

    def outcomes(self, t: int, crowd: Crowd) -> Kernel:
        there = (torch.arange(4).view(4, 1, 1) + torch.tensor([-1, 0, 1]).view(1, 3, 1)) % 4
        slip = torch.cat([there, torch.arange(4).view(4, 1, 1).expand(4, 3, 1)], -1)
        return Outcomes(slip, torch.tensor([0.9, 0.1], dtype=crowd.mu.dtype).expand(4, 3, 2))

    def rewards(self, t: int, crowd: Crowd) -> Tensor:
        hunter, prey = crowd.mu.unbind(-2)
        paid = (torch.stack([prey, -hunter], -2) - self.crowding * crowd.mu).unsqueeze(-1)
        # What is forbidden may cost whatever it likes.
        return torch.where(self.allowed(), paid, -torch.inf)

    def terminal(self, crowd: Crowd) -> Tensor:
        return -self.final * crowd.mu * crowd.mu.flip(-2)

    def allowed(self) -> Tensor:
        legal = torch.ones(4, 3, dtype=torch.bool)
        legal[1, 0] = False
        return legal


def random_policy(game: MeanFieldGame, batch: tuple[int, ...] = (), seed: int = 0) -> Tensor:
    """Any policy, [T, *batch, G, S, A]."""
    noise = torch.Generator().manual_seed(seed)
    shape = (game.horizon or 1, *batch, game.num_groups, game.num_states, game.num_actions)
    logits = 2 * torch.randn(shape, generator=noise, dtype=torch.float64)
    legal = game.legal_mask()
    return (logits if legal is None else logits.masked_fill(~legal, -torch.inf)).softmax(-1)
