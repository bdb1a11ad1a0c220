"""The scripted fighter: it strikes whom it can reach, goes for whom it sees, and beats random play."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from mfmarl.agents.rusher import BLOWS, MOVES, Rusher, RusherConfig, rush_energy
from mfmarl.errors import ConfigError
from mfmarl.population.open import open_env
from mfmarl.population.simulation import Env
from mfmarl.random import Key, integers

pytest.importorskip("magent2")

WIN_RATE = 0.95


def view(
    *foes: tuple[int, int], health: float = 1.0, friends: tuple[tuple[int, int], ...] = (), channels: int = 5
) -> Tensor:
    """What a soldier in the middle sees, places as (dx, dy)."""
    enemy = 3 if channels in (5, 37) else 4
    seen = torch.zeros(13, 13, channels)
    for dx, dy in ((0, 0), *friends):
        seen[6 + dy, 6 + dx, 1] = 1
    for dx, dy in foes:
        seen[6 + dy, 6 + dx, enemy], seen[6 + dy, 6 + dx, enemy + 1] = 1, health
    return seen


RIGHT = torch.tensor([1.0, 0.0])


@pytest.mark.parametrize("channels", [5, 9, 37, 41])
def test_it_strikes_whom_it_can_reach(channels: int) -> None:
    for number, place in enumerate(BLOWS):
        assert rush_energy(view(place, (4, 4), channels=channels), RIGHT).argmin() == len(MOVES) + number


def test_it_strikes_the_weakest() -> None:
    seen = view((1, 0), (-1, -1))
    seen[5, 5, 4] = 0.3
    assert rush_energy(seen, RIGHT).argmin() == len(MOVES) + BLOWS.index((-1, -1))


def test_it_goes_for_the_nearest_round_its_friends() -> None:
    assert rush_energy(view((5, 0), (0, -6)), RIGHT).argmin() == MOVES.index((2, 0))
    assert rush_energy(view((0, -4), (6, 6)), RIGHT).argmin() == MOVES.index((0, -2))
    blocked = rush_energy(view((5, 0), friends=((2, 0),)), RIGHT)
    assert MOVES[int(blocked.argmin())] in ((1, 0), (1, 1), (1, -1)) and blocked[MOVES.index((2, 0))] > 1000


def test_with_nobody_in_sight_it_follows_its_heading() -> None:
    assert rush_energy(view(), RIGHT).argmin() == MOVES.index((2, 0))
    assert rush_energy(view(), torch.tensor([-0.1, -3.0])).argmin() == MOVES.index((0, -2))


def test_the_actions_are_the_engines() -> None:
    # The table is held against the engine: a lone soldier's every move, and every blow at a neighbour.
    from magent2.environments import battle_v4

    raw = battle_v4.parallel_env(map_size=20)
    import numpy as np

    game, (red, blue) = raw.env, raw.handles

    def play(action: int, foe: tuple[int, int]) -> tuple[tuple[int, int], float]:
        game.reset()
        game.add_agents(red, method="custom", pos=[[9, 9, 0]])
        game.add_agents(blue, method="custom", pos=[[9 + foe[0], 9 + foe[1], 0]])
        game.set_action(red, np.array([action], np.int32))
        game.set_action(blue, np.array([MOVES.index((0, 0))], np.int32))
        game.step()
        x, y = (game.get_pos(red)[0] - 9).tolist()
        return (x, y), float(game.get_reward(red)[0])

    for action, place in enumerate(MOVES):
        assert play(action, (6, 6))[0] == place
    for number, place in enumerate(BLOWS):
        assert play(len(MOVES) + number, place)[1] > 0
        other = BLOWS[(number + 1) % len(BLOWS)]
        assert play(len(MOVES) + number, other)[1] < 0


def rusher(env: Env, team: str, **options: float | str) -> Rusher:
    return Rusher(RusherConfig(**options), env.spec, env.spec.group_slices[team], 1, Key.of(0))  # type: ignore[arg-type]


def battles(copies: int, team: str, *, positions: bool, **options: float | str) -> tuple[Tensor, Tensor]:
    """Kills of the rusher's team and of random play, [copies] each, after the first battle."""
    env = open_env("magent2/battle_v4", {"map_size": 20, "max_cycles": 300}, copies=copies)
    agent, slots = rusher(env, team, **options), env.spec.group_slices[team]
    timestep = env.reset(Key.of(1))
    kills = torch.zeros(2, copies)
    fighting = torch.ones(copies, dtype=torch.bool)
    for t in range(300):
        action = integers(Key.of(2).fold(t), env.ids, env.spec.num_actions)
        shown = timestep if positions else timestep._replace(position=None)
        action[:, slots] = agent.act(shown, torch.zeros(copies, 12, 0), env.ids[:, slots], Key.of(3).fold(t))
        timestep = env.step(action)
        measures = env.measure()
        both = torch.stack([measures[f"kills/{side}"] for side in (team, "blue" if team == "red" else "red")])
        kills = torch.where(fighting, both, kills)
        fighting &= ~timestep.ended
        if not fighting.any():
            break
        timestep = env.restart(timestep)
    return kills[0], kills[1]


@pytest.mark.parametrize("team", ["red", "blue"])
@pytest.mark.parametrize("positions", [True, False])
def test_it_beats_random_play(team: str, positions: bool) -> None:
    mine, theirs = battles(10, team, positions=positions)
    won = int((mine > theirs).sum())
    # If it won less than 95 % of battles, 10 of 10 would still come by luck; 8 of 10 or fewer would show it.
    expected, deviation = 10 * WIN_RATE, math.sqrt(10 * WIN_RATE * (1 - WIN_RATE))
    assert won >= expected - 5 * deviation and mine.mean() > 11 and theirs.mean() < 1


def test_reluctance_weakens_it() -> None:
    still, _ = battles(2, "red", positions=True, reluctance=1.0)
    assert still.eq(0).all()


def test_minds_of_their_own_act_alike() -> None:
    env = open_env("magent2/battle_v4", {"map_size": 20}, copies=2)
    timestep = env.reset(Key.of(0))
    spec, slots = env.spec, env.spec.group_slices["blue"]
    one = Rusher(RusherConfig(), spec, slots, 1, Key.of(0))
    many = Rusher(RusherConfig(), spec, slots, 12, Key.of(0))
    obs = timestep.obs[:, slots]
    a = one.by_copy(one.energy(one.by_mind(obs), torch.zeros(1, 24, 0)), 2)
    b = many.by_copy(many.energy(many.by_mind(obs), torch.zeros(12, 2, 0)), 2)
    assert torch.equal(a, b)
    assert torch.equal(a, rush_energy(obs, one.heading(timestep._replace(position=None))))


def test_it_refuses_what_is_no_battle() -> None:
    env = open_env("magent2/tiger_deer_v4", {"map_size": 20})
    with pytest.raises(ConfigError, match="rusher can only play magent2/battle_v4"):
        Rusher(RusherConfig(), env.spec, slice(0, 20), 1, Key.of(0))
