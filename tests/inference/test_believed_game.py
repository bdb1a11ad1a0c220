"""Games over beliefs: the game itself where all is seen, right on average where not, and what a look is worth."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from mfmarl import random
from mfmarl.envs.beach_bar import BeachBar
from mfmarl.envs.crowd_modelling_2d import CrowdModelling2d
from mfmarl.envs.lockdown import Lockdown
from mfmarl.envs.susceptible_infected import SusceptibleInfected
from mfmarl.errors import ConfigError
from mfmarl.games import flow, values
from mfmarl.games.game import Crowd, MeanFieldGame
from mfmarl.games.kernels import Dense, Kernel
from mfmarl.inference import equilibrium
from mfmarl.inference.believed_game import believed
from mfmarl.random import Key


@dataclass(frozen=True)
class Doors(MeanFieldGame):
    """A prize behind one of two doors, each as likely; it stays there. Act 0: wait and listen; 1 or 2: open, paid 1 if right.

    States: left, right, done.
    """

    horizon: int | None = 2
    cost: float = 0.0
    crowding: float = 0.0
    num_states = 3
    num_actions = 3
    crowd_moves = False

    def initial(self) -> Tensor:
        return torch.tensor([0.5, 0.5, 0.0], dtype=torch.float64)

    def outcomes(self, t: int, crowd: Crowd) -> Kernel:
        stay, done = torch.eye(3), torch.tensor([0.0, 0.0, 1.0]).expand(3, 3)
        return Dense(torch.stack([stay, done, done], 1).to(crowd.mu))

    def rewards(self, t: int, crowd: Crowd) -> Tensor:
        paid = torch.tensor([[-self.cost, 1.0, 0.0], [-self.cost, 0.0, 1.0], [0.0, 0.0, 0.0]]).to(crowd.mu)
        return paid - self.crowding * crowd.mu.unsqueeze(-1)

    def potential(self, t: int, crowd: Crowd) -> Tensor:
        paid = self.rewards(t, crowd) + self.crowding * crowd.mu.unsqueeze(-1)
        return (crowd.joint * paid).sum((-3, -2, -1)) - self.crowding / 2 * crowd.mu.square().sum((-2, -1))


def hearing(right: float) -> Tensor:
    """A voice behind the right door with that probability; who is done hears nothing."""
    return torch.tensor([[right, 1 - right, 0.0], [1 - right, right, 0.0], [0.0, 0.0, 1.0]], dtype=torch.float64)


def test_who_sees_everything_plays_the_game_itself():
    game = BeachBar(horizon=4, places=4)
    mine = believed(game, torch.eye(4), resolution=1)
    order = mine.beliefs.argmax(-1)
    whole, plain = equilibrium.solve(mine, 1.3), equilibrium.solve(game, 1.3)
    assert torch.allclose(whole.policy, plain.policy[:, :, order], atol=1e-8)
    assert whole.free_energy is not None and plain.free_energy is not None
    assert float(whole.free_energy) == pytest.approx(float(plain.free_energy), abs=1e-9)
    assert float(whole.exploitability) == pytest.approx(float(plain.exploitability), abs=1e-8)


@pytest.mark.parametrize("resolution", [1, 3, 7])
def test_the_mean_belief_is_the_crowd_at_any_resolution(resolution):
    """Of a policy that heeds no belief: the flow over beliefs has the flow over states as its mean, to rounding."""
    for game in (BeachBar(horizon=5, places=4), SusceptibleInfected(horizon=5)):
        n = game.num_states
        noise = random.uniform(Key.of(1), torch.arange(n), 3).double() + 0.1
        mine = believed(game, (noise / noise.sum(-1, keepdim=True)).mT, resolution)
        over_beliefs = flow.flow(mine, flow.uniform(mine), check=True)
        over_states = flow.flow(game, flow.uniform(game))
        assert torch.allclose(over_beliefs.mu @ mine.beliefs, over_states.mu, atol=1e-12)


def test_corners_have_the_belief_as_their_mean():
    """Random beliefs over four states; those of the grid are their own corner."""
    mine = believed(BeachBar(places=4), torch.eye(4), 5)
    b = random.uniform(Key.of(2), torch.arange(300), 4).double()
    b /= b.sum(-1, keepdim=True)
    number, weight = mine.corners(b)
    assert torch.allclose((weight.unsqueeze(-1) * mine.beliefs[number]).sum(-2), b, atol=1e-12)
    assert bool((weight >= 0).all()) and torch.allclose(weight.sum(-1), torch.ones(300).double())
    assert bool(((mine.beliefs[number] - b.unsqueeze(-2)).abs() <= 1 / 5 + 1e-12).all()), "of its own cell"
    number, weight = mine.corners(mine.beliefs)
    assert torch.allclose(weight.max(-1).values, torch.ones(len(mine.beliefs)).double())
    assert torch.equal(number.gather(-1, weight.argmax(-1, keepdim=True)).squeeze(-1), torch.arange(len(mine.beliefs)))


def test_one_look_at_a_cue_is_worth_its_information():
    """ln 2 - H2(.95) = 0.494632 nat (the note's): waiting once at even odds."""
    mine = believed(Doors(), hearing(0.95), 2)
    even = int((mine.beliefs - torch.tensor([0.5, 0.5, 0.0])).abs().sum(-1).argmin())
    sought = mine.sought(0, Crowd(mine.start()))[..., even, 0]
    h2 = -(0.95 * math.log(0.95) + 0.05 * math.log(0.05))
    assert float(sought) == pytest.approx(math.log(2) - h2, abs=1e-12)
    assert float(sought) == pytest.approx(0.494632, abs=1e-6)


def test_listening_pays_what_theory_says():
    """Three quarters at once; after one more look, at agreement 9/10 of 5/8 and even odds of 3/8: the same 3/4 of all.

    After two more .84375. Posteriors are 3/4, 9/10 and 27/28, of the grid of 140.
    """
    for horizon, worth in ((1, 0.75), (2, 0.75), (3, 0.84375)):
        mine = believed(Doors(horizon=horizon), hearing(0.75), 140)
        path = flow.flow(mine, flow.uniform(mine))
        best = values.best(mine, path)
        assert float(values.at_start(path, best.v).sum()) == pytest.approx(worth, abs=1e-12)


def test_coarse_grids_promise_too_much_and_finer_ones_less():
    """Lovejoy 1991: bounds from above, which fall as the resolution doubles."""
    found = []
    for resolution in (1, 2, 4, 8, 16, 32):
        mine = believed(Doors(horizon=4, cost=0.02), hearing(0.7), resolution)
        path = flow.flow(mine, flow.uniform(mine))
        found.append(float(values.at_start(path, values.best(mine, path).v).sum()))
    assert found == sorted(found, reverse=True)
    assert found[0] > found[-1] + 0.05
    assert found[-2] - found[-1] < 0.01


def test_who_is_curious_listens_more():
    """At the same precision, with information worth itself: less doubt, and its free energy falls along the iteration."""
    doubts = []
    for information in (0.0, 1.0):
        mine = believed(Doors(horizon=3, crowding=0.5, cost=0.1), hearing(0.75), 12, information)
        found = equilibrium.solve(mine, 3.0, weight=0.1, iterations=150, tolerance=1e-6)
        energies = [row["free_energy"] for row in found.rows]
        assert found.settled
        assert all(b <= a + 1e-12 for a, b in itertools.pairwise(energies))
        listening = (found.flow.mu[0] * found.policy[0, ..., 0]).sum()
        doubts.append(float(listening))
    assert doubts[1] > doubts[0] + 0.05


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (lambda: believed(BeachBar(), torch.eye(3)), "4 states"),
        (lambda: believed(BeachBar(), 2 * torch.eye(4)), "distribution over outcomes"),
        (lambda: believed(BeachBar(places=20), torch.eye(20), 20), "lower the resolution"),
        (lambda: believed(Lockdown(), torch.eye(Lockdown().num_states)), "common noise"),
        (lambda: believed(CrowdModelling2d(), torch.eye(CrowdModelling2d().num_states), 1), "forbids actions"),
    ],
)
def test_what_cannot_be_is_refused_in_one_sentence(wrong, says):
    with pytest.raises(ConfigError, match=says):
        wrong()
