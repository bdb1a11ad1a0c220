"""Games of few agents counted profile by profile, and potentials held against the rewards that they are made of."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from mfmarl.games.flow import uniform
from mfmarl.games.game import Crowd, GameState, MeanFieldGame
from mfmarl.population.environment import agent_ids
from mfmarl.random import Key


def expected(game: MeanFieldGame, others: list[float]) -> Tensor:
    """What the first agent expects of each action [A], from the start, while each other one draws its own from `others`.

    By the rules that N agents play: one copy for every profile of actions.
    """
    profiles = torch.tensor(list(itertools.product(range(game.num_actions), repeat=game.num_agents)))
    ids = agent_ids(len(profiles), game.num_agents)
    state: GameState = game.reset(ids, Key.of(0))
    reward = game.step(state, profiles, ids, Key.of(1))[1][:, 0].double()
    chance = torch.tensor(others, dtype=torch.float64)[profiles[:, 1:]].prod(-1)
    return torch.stack([(reward * chance)[profiles[:, 0] == a].sum() for a in range(game.num_actions)])


def assert_rewards_are_the_slope_of_the_potential(game: MeanFieldGame, t: int = 0) -> None:
    """dPhi / dL(s, a) = r(s, a), at a crowd that is nowhere even."""
    shape = uniform(game).shape[1:]
    weight = 1 + torch.arange(shape.numel(), dtype=torch.float64).mul(7.3).sin().view(shape) / 2
    joint = (weight / weight.sum((-2, -1), keepdim=True)).requires_grad_()
    mu = joint.sum(-1)
    crowd = Crowd(mu, joint / mu.unsqueeze(-1), counted=joint)
    potential = game.potential(t, crowd)
    assert potential is not None
    (slope,) = torch.autograd.grad(potential.sum(), joint)
    torch.testing.assert_close(slope, game.rewards(t, crowd).detach().expand(shape), rtol=1e-9, atol=1e-9)
