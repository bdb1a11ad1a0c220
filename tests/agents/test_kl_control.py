"""KL control as an agent: its energies are the optimum's, in episodes, without end, and in a crowd of its own."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import gymnasium
import pytest
import torch
from torch import Tensor

from mfmarl.agents.kl_control import KLControl
from mfmarl.envs.beach_bar import BeachBar
from mfmarl.envs.crowd_modelling import CrowdModelling
from mfmarl.errors import ConfigError
from mfmarl.games import values
from mfmarl.games.exploitability import regularised
from mfmarl.games.flow import flow, uniform
from mfmarl.games.game import Crowd
from mfmarl.games.kernels import Kernel, Outcomes, grid_moves
from mfmarl.inference.model import GenerativeModel
from mfmarl.inference.objective import Objective
from mfmarl.inference.planning import dynamic_programming
from mfmarl.inference.world import World
from mfmarl.learning.limit import limit_policy
from mfmarl.population.environment import PopulationEnv
from mfmarl.population.simulation import Simulation
from mfmarl.random import Key
from tests.learning.mini import train


@dataclass(frozen=True)
class CertainBeach(CrowdModelling):
    """Crowd modelling whose moves are certain."""

    def outcomes(self, t: int, crowd: Crowd) -> Kernel:
        beside = grid_moves((self.places,), torch.arange(-1, 2).unsqueeze(-1), torus=True)
        return Outcomes(beside.unsqueeze(-1), torch.ones(*beside.shape, 1, dtype=crowd.mu.dtype))


def corridor(certain: bool = True, habits: bool = False, states: int = 6) -> GenerativeModel:
    """Left, stay, right; the far end is liked; two modalities show the place together."""
    moves = torch.zeros(states, states, 3, dtype=torch.float64)
    for s in range(states):
        for u, step in enumerate((-1, 0, 1)):
            aim = min(max(s + step, 0), states - 1)
            moves[aim, s, u] += 1.0 if certain else 0.8
            if not certain:
                moves[max(s - 1, 0), s, u] += 0.2
    half = states // 2
    place = torch.arange(states)
    fine = torch.nn.functional.one_hot(place % half, half).double().T
    coarse = torch.nn.functional.one_hot(place // half, 2).double().T
    return GenerativeModel(
        A=(fine.contiguous(), coarse.contiguous()),
        B=(moves,),
        C=(torch.linspace(0, 1, half, dtype=torch.float64), torch.tensor([0.0, 2.0], dtype=torch.float64)),
        D=(torch.eye(states, dtype=torch.float64)[0],),
        E=torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64) if habits else None,
    )


def agent(env: PopulationEnv, **options: Any) -> KLControl:
    sim = Simulation(env, 1)
    return KLControl(KLControl.Config(**options), sim.spec, slice(0, sim.spec.num_agents), 1, Key.of(0))


def energies(player: KLControl, states: int, t: int = 0) -> Tensor:
    obs = torch.stack([torch.arange(states).float(), torch.full((states,), float(t))], -1).unsqueeze(0)
    return player.energy(obs, torch.zeros(1, states, 0))[0].double()


def alike(one: Tensor, other: Tensor, tolerance: float = 1e-5) -> bool:
    """Energies are the same up to a constant for every state."""
    gap = one - other
    return bool((gap - gap.mean(-1, keepdim=True)).abs().max() <= tolerance)


@pytest.mark.parametrize("habits", [False, True])
def test_in_an_episode_it_is_soft_value_iteration(habits: bool) -> None:
    model, temperature, horizon = corridor(habits=habits), 0.7, 8
    player = agent(World(model, 2, horizon), temperature=str(temperature))
    soft = dynamic_programming.tables(model, horizon, 1 / temperature, Objective("none", normalise=False))
    for t in (0, 3, horizon - 1):
        expected = -soft.value[t] - (temperature * model.E.log() if model.E is not None else 0.0)
        assert alike(energies(player, 6, t), expected)
    assert not alike(energies(player, 6, 0), energies(player, 6, horizon - 1))


def test_habits_of_its_own_take_the_place_of_the_models() -> None:
    mine = agent(World(corridor(habits=True), 1, 5), temperature="0.7", habit=(1.0, 1.0, 1.0))
    none = agent(World(corridor(), 1, 5), temperature="0.7")
    assert alike(energies(mine, 6), energies(none, 6))
    with pytest.raises(ConfigError, match="weighs 3 actions, not 2"):
        agent(World(corridor(), 1, 5), habit=(1.0, 1.0))


def test_without_end_it_is_discounted_soft_value_iteration() -> None:
    model = corridor()
    player = agent(World(model, 1, None), temperature="0.5", gamma=0.9)
    habit = GenerativeModel(A=model.A, B=model.B, C=model.C, D=model.D, E=torch.full((3,), 1 / 3, dtype=torch.float64))
    soft = dynamic_programming.stationary(habit, 2.0, Objective("none", normalise=False), discount=0.9)
    assert alike(energies(player, 6), -soft.value[0])


def test_the_average_cost_is_where_long_episodes_go() -> None:
    model = corridor()
    endless = agent(World(model, 1, None), temperature="0.5", ahead="average")
    long = agent(World(model, 1, 300), temperature="0.5")
    assert alike(energies(endless, 6), energies(long, 6))


def test_uncertain_moves_are_embedded_and_nearly_best() -> None:
    """Its Gibbs policy against the true optimum of T log-partition functions over actions."""
    model, temperature, horizon = corridor(certain=False), 0.3, 8
    player = agent(World(model, 1, horizon), temperature=str(temperature))
    soft = dynamic_programming.tables(model, horizon, 1 / temperature, Objective("none", normalise=False)).value
    reward = dynamic_programming.step_values(model, Objective("none", normalise=False))
    moves = dynamic_programming.transitions(model)
    worth = {}
    for name in ("embedded", "best", "passive"):
        v = torch.zeros(6, dtype=torch.float64)
        for t in range(horizon - 1, -1, -1):
            score = {"embedded": -energies(player, 6, t), "best": soft[t], "passive": torch.zeros(6, 3).double()}[name]
            p = torch.softmax(score / temperature, -1)
            free = reward + moves @ v - temperature * p.log()
            v = (p * free).sum(-1)
        worth[name] = float(v[0])
    assert worth["passive"] < worth["embedded"] <= worth["best"] + 1e-9
    assert worth["best"] - worth["embedded"] < 0.01 * (worth["best"] - worth["passive"])


def test_it_plays_and_earns_what_its_policy_is_worth() -> None:
    """Mean reward of 4,000 agents against the exact flow of the policy: 5 standard errors."""
    model, temperature, horizon = corridor(), 0.5, 6
    training = train(
        World(model, 4000, horizon), "kl_control", {"temperature": str(temperature)}, steps=horizon, copies=1
    )
    rows = list(training.rows())
    player = agent(World(model, 1, horizon), temperature=str(temperature))
    reward = dynamic_programming.step_values(model, Objective("none", normalise=False))
    moves = dynamic_programming.transitions(model)
    mu, total = model.D[0], 0.0
    for t in range(horizon):
        p = torch.softmax(-energies(player, 6, t) / temperature, -1)
        total += float((mu.unsqueeze(-1) * p * reward).sum())
        mu = torch.einsum("s,su,sun->n", mu, p, moves)
    steps = [r["step"] for r in rows]
    paid = sum(
        r["train/reward"] * n
        for r, n in zip(rows, [b - a for a, b in zip([0, *steps], steps, strict=False)], strict=True)
    )
    # A reward lies in [0, 3]: the standard deviation of an episode's mean is at most 1.5.
    assert paid / steps[-1] == pytest.approx(total / horizon, abs=5 * 1.5 / math.sqrt(4000))


# ------------------------------------------------------------------------------------------------------- crowds


def test_in_a_game_of_certain_moves_it_comes_to_the_soft_equilibrium() -> None:
    """A best response to the crowd of its own policy, with a bonus of T times the entropy: an answer to itself."""
    game = CertainBeach(num_agents=20, horizon=6)
    temperature = 0.8
    player = agent(game, temperature=str(temperature), beforehand=400)
    assert float(player.numbers[0]) < 1e-5 and float(player.numbers[2]) == 0
    table = player.table.double()
    policy = values.boltzmann(game, -table, temperature)
    soft = values.soft(game, flow(game, policy), temperature).q
    answer = values.boltzmann(game, soft, temperature)
    assert torch.allclose(policy, answer, rtol=0, atol=2e-5)


def test_what_it_plays_in_the_limit_is_what_it_has_solved() -> None:
    game = CertainBeach(num_agents=20, horizon=6)
    training = train(game, "kl_control", {"temperature": "0.8", "beforehand": 200}, steps=6)
    player = training.players[0].agent
    assert isinstance(player, KLControl)
    policy = values.boltzmann(game, -player.table.double(), 0.8)
    assert torch.allclose(limit_policy(game, training.players), policy, rtol=0, atol=1e-6)


def test_in_a_game_of_uncertain_moves_it_gains_little_by_being_exact() -> None:
    """What an agent who pays for entropy could gain on the crowd, beside what it gains on one that plays by habit."""
    game = BeachBar(num_agents=20, horizon=5)
    player = agent(game, temperature="1.0", beforehand=300)
    assert float(player.numbers[0]) < 1e-4
    policy = values.boltzmann(game, -player.table.double(), 1.0)
    gap, habit = float(regularised(game, policy, 1.0)), float(regularised(game, uniform(game), 1.0))
    assert 0 < gap < 0.02
    assert gap < 0.05 * habit


# ------------------------------------------------------------------------------------------------------ refusals


def test_what_it_cannot_play_it_refuses_in_a_sentence() -> None:
    hidden = GenerativeModel(
        A=(torch.full((2, 6), 0.5, dtype=torch.float64),),
        B=corridor().B,
        C=(torch.zeros(2, dtype=torch.float64),),
        D=corridor().D,
    )
    with pytest.raises(ConfigError, match="must see which state"):
        agent(World(hidden, 1, 5))
    with pytest.raises(ConfigError, match="temperature above 0"):
        agent(World(corridor(), 1, 5), temperature="0")
    with pytest.raises(ConfigError, match="There is no horizon"):
        agent(World(corridor(), 1, None), ahead="horizon")
    with pytest.raises(ConfigError, match="discount lies below 1"):
        agent(World(corridor(), 1, None), gamma=1.0)
    with pytest.raises(ConfigError, match="is given the rules"):
        from mfmarl.envs.congestion import Congestion

        agent(Congestion(num_agents=4))
    assert isinstance(World(corridor(), 1, 5).spec().observation_space, gymnasium.spaces.Discrete)
