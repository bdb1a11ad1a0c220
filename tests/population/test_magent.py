"""MAgent2 through its arrays: bit by bit what its dictionaries give, and what they do not."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch

from mfmarl.errors import ConfigError
from mfmarl.population import magent, third_party
from mfmarl.population.adapter import Adapter
from mfmarl.population.field import parse_field
from mfmarl.population.open import open_env
from mfmarl.population.simulation import Env
from mfmarl.population.timestep import Timestep
from mfmarl.random import Key, uniform

pytest.importorskip("magent2")

SMALL: list[tuple[str, dict[str, Any]]] = [
    ("battle_v4", {"map_size": 16}),
    ("battle_v4", {"map_size": 16, "minimap_mode": True}),
    ("battle_v4", {"map_size": 16, "extra_features": True}),
    ("battle_v4", {"map_size": 16, "extra_features": True, "minimap_mode": True}),
    ("battlefield_v5", {"map_size": 80}),
    ("gather_v5", {}),
    ("combined_arms_v6", {"map_size": 16}),
    ("tiger_deer_v4", {"map_size": 20, "tiger_step_recover": -1.0}),
    ("tiger_deer_v4", {"map_size": 20, "extra_features": True}),
    ("adversarial_pursuit_v4", {"map_size": 20}),
    ("adversarial_pursuit_v4", {"map_size": 20, "minimap_mode": True}),
]


def dictionaries(maker: third_party.Maker, **kinds: Any) -> Adapter:
    return Adapter(dataclasses.replace(maker, arrays=False), **kinds)


def roll(env: Env, steps: int, key: int = 0) -> list[Timestep]:
    timestep = env.reset(Key.of(key))
    seen = [timestep]
    for t in range(steps):
        level = uniform(Key.of(9).fold(t), env.ids, env.spec.num_actions)
        if timestep.legal is not None:
            level = torch.where(timestep.legal, level, -torch.ones(()))
        timestep = env.step(level.argmax(-1))
        seen.append(timestep)
        timestep = env.restart(timestep)
        seen.append(timestep)
    return seen


def same(a: list[Timestep], b: list[Timestep], *, but: tuple[str, ...] = ()) -> bool:
    for x, y in zip(a, b, strict=True):
        for name in x._fields:
            u, v = getattr(x, name), getattr(y, name)
            if name not in but and not ((u is None and v is None) or torch.equal(u, v)):
                return False
    return True


@pytest.mark.parametrize(("name", "options"), SMALL)
def test_arrays_give_what_dictionaries_give(name: str, options: dict[str, Any]) -> None:
    maker = third_party.maker(f"magent2/{name}", {**options, "max_cycles": 13})
    fast, slow = Adapter(maker, copies=2), dictionaries(maker, copies=2)
    assert fast.maker.arrays and fast.layout.position == 2
    seen = roll(fast, 30)
    assert same(seen, roll(slow, 30), but=("position",))
    assert any(t.ended.any() for t in seen) and any((t.reward != 0).any() for t in seen)
    if name in ("gather_v5", "combined_arms_v6"):
        assert any(t.terminated.any() for t in seen), "somebody must die for this to be a test"


def test_where_copies_run_changes_nothing() -> None:
    maker = third_party.maker("magent2/tiger_deer_v4", {"map_size": 20, "max_cycles": 7})
    here = roll(Adapter(maker, copies=3), 15)
    for workers in ("threads", 2):
        env = Adapter(maker, copies=3, workers=workers)
        assert same(here, roll(env, 15)), workers
        env.close()


def test_a_map_follows_from_its_seed_and_not_from_what_was_played_before() -> None:
    env = open_env("magent2/tiger_deer_v4", {"map_size": 20, "max_cycles": 5}, copies=2)
    first = roll(env, 12)
    assert same(first, roll(env, 12))
    assert first[0].position is not None and not torch.equal(first[0].position[0], first[0].position[1])


def test_a_resumed_battle_is_the_one_that_never_stopped() -> None:
    maker = third_party.maker("magent2/combined_arms_v6", {"map_size": 16})
    env = Adapter(maker, copies=2)
    roll(env, 10)
    again = Adapter(maker, copies=2)
    now = again.load_state_dict(env.state_dict())
    assert env.timestep is not None and same([env.timestep], [now])
    action = torch.full_like(env.ids, 3)
    assert same([env.step(action)], [again.step(action)])


def test_the_first_step_gives_every_team_its_own_actions() -> None:
    # MAgent2 0.3.4 hands blue the actions of red there: right (7) for red and left (5) for blue must part.
    for arrays in (True, False):
        maker = dataclasses.replace(third_party.maker("magent2/battle_v4", {"map_size": 20}), arrays=arrays)
        env = Adapter(maker)
        env.reset(Key.of(0))
        raw = env._place.singles[0].env.unwrapped  # type: ignore[attr-defined]
        before = [raw.env.get_pos(handle) for handle in raw.handles]
        action = torch.where(env.spec.group == 0, magent_move(1, 0), magent_move(-1, 0)).expand(1, -1)
        env.step(action.contiguous())
        red, blue = (raw.env.get_pos(handle) - old for handle, old in zip(raw.handles, before, strict=True))
        assert (red == [1, 0]).all() and (blue == [-1, 0]).all()


def magent_move(dx: int, dy: int) -> int:
    from mfmarl.agents.rusher import MOVES

    return MOVES.index((dx, dy))


def test_positions_and_counts_are_the_engines() -> None:
    env = open_env("magent2/combined_arms_v6", {"map_size": 16, "max_cycles": 40})
    assert isinstance(env, Adapter)
    timestep = env.reset(Key.of(0))
    for t in range(40):
        legal = timestep.legal
        assert legal is not None
        timestep = env.step(torch.where(legal, uniform(Key.of(t), env.ids, env.spec.num_actions), -1.0).argmax(-1))
        if timestep.ended.any():
            break
        raw = env._place.singles[0].env.unwrapped  # type: ignore[attr-defined]
        measures = env.measure()
        for group, handle in zip(env.spec.groups, raw.handles, strict=True):
            where = env.spec.group_slices[group]
            assert timestep.position is not None
            living = timestep.position[0, where][timestep.alive[0, where]]
            assert np.array_equal(living.numpy(), raw.env.get_pos(handle))
            assert measures[f"alive/{group}"].tolist() == [len(living)]
    assert timestep.alive.sum() < env.spec.num_agents, "somebody must die for this to be a test"
    assert "kills/redmelee" not in env.measure()  # friends are struck there too


def test_kills_are_the_others_dead() -> None:
    env = open_env("magent2/battle_v4", {"map_size": 16})
    assert isinstance(env, Adapter)
    env.reset(Key.of(0))
    single = env._place.singles[0]  # type: ignore[attr-defined]
    rows = env.layout.empty(1).of(0)
    living = np.ones(12, bool)
    living[[1, 2, 7]] = False
    single._finish(rows, living)
    assert dict(zip(env.layout.measures, rows.measure.tolist(), strict=True)) == {
        "alive/red": 4, "alive/blue": 5, "kills/red": 1, "kills/blue": 2,
    }  # fmt: skip


def test_fields_within_a_radius_can_be_felt() -> None:
    env = open_env("magent2/battle_v4", {"map_size": 20})
    timestep = env.reset(Key.of(0))
    timestep = env.step(torch.full_like(env.ids, magent_move(0, 0)))
    felt = parse_field("actions over nearby(2.5)")(timestep, env.spec, env.ids, Key.of(0))
    # Soldiers stand two squares apart and all stay where they are.
    assert felt[0, :, magent_move(0, 0)].eq(1).all() and felt.sum() == env.spec.num_agents


def test_a_grouping_across_the_engines_order_is_played_through_dictionaries() -> None:
    mixed = open_env("magent2/battle_v4", {"map_size": 16}, grouping=lambda agent: str(int(agent[-1]) % 2))
    assert isinstance(mixed, Adapter) and not mixed.maker.arrays and mixed.spec.groups == ("0", "1")
    assert mixed.reset(Key.of(0)).position is None
    sides = open_env("magent2/combined_arms_v6", {"map_size": 16}, grouping=lambda agent: agent[:3])
    assert isinstance(sides, Adapter) and sides.maker.arrays and sides.spec.groups == ("red", "blu")
    sides.reset(Key.of(0))
    assert set(sides.measure()) == {"alive/red", "alive/blu"}


def test_teams_with_other_views_and_actions_are_padded() -> None:
    env = open_env("magent2/adversarial_pursuit_v4", {"map_size": 20})
    timestep = env.reset(Key.of(0))
    assert env.spec.observation_shape == (10, 10, 5) and env.spec.num_actions == 13
    prey = env.spec.group_slices["prey"]
    assert timestep.legal is not None and timestep.legal[0, prey].sum(-1).eq(9).all()
    assert timestep.obs[0, prey, 9:].eq(0).all() and timestep.obs[0, prey, :, 9:].eq(0).all()
    with pytest.raises(ConfigError, match=r"outside Discrete\(9\)"):
        env.step(torch.full_like(env.ids, 12))


def test_a_battle_is_drawn() -> None:
    env = open_env("magent2/battle_v4", {"map_size": 16}, copies=2)
    env.reset(Key.of(0))
    before = env.render(1)
    assert before is not None and before.dtype == torch.uint8 and before.shape[2] == 3 and before.float().std() > 0
    assert max(before.shape) >= 320, "MAgent2 draws a square as 8 pixels: too small to be looked at"
    env.step(torch.full_like(env.ids, magent_move(0, 1)))
    after = env.render(1)
    assert after is not None and not torch.equal(before, after)


def test_the_mending_is_of_what_is_broken() -> None:
    # When MAgent2 counts its teams rightly by itself, `mended` can go.
    from magent2.environments import battle_v4

    raw = battle_v4.parallel_env(map_size=16)
    raw.reset(seed=0)
    assert raw.team_sizes == [0, 0]
    mended = magent.mended(battle_v4.parallel_env(map_size=16))
    mended.reset(seed=0)
    assert mended.team_sizes == [6, 6]
