"""Random linear games: the tables' own formula, entry by entry, and tables that are the same everywhere."""

from __future__ import annotations

import math

import pytest
import torch

from mfmarl.envs.random_linear import RandomLinear
from mfmarl.errors import ConfigError
from mfmarl.games.game import Crowd
from tests.statistical import beyond, statistical


def test_rewards_and_kernel_are_the_formula_entry_by_entry() -> None:
    game = RandomLinear(states=3, scale=2.0, table_seed=4)
    joint = torch.tensor([[0.1, 0.2, 0.0], [0.05, 0.3, 0.05], [0.0, 0.1, 0.2]], dtype=torch.float64)
    crowd = Crowd(joint.sum(-1).view(1, 1, 3), counted=joint.view(1, 1, 3, 3))
    rewards, kernel = game.rewards(0, crowd)[0, 0], game.outcomes(0, crowd).dense()[0, 0]
    r1, r2, p1, p2 = game.tables
    for s in range(3):
        for a in range(3):
            assert float(rewards[s, a]) == pytest.approx(
                sum(float(r1[s, k] * joint[k, a]) for k in range(3)) + float(r2[s, a])
            )
            weight = [
                math.exp(sum(float(p1[n, s, k] * joint[k, a]) for k in range(3)) + float(p2[n, s, a])) for n in range(3)
            ]
            assert kernel[s, a].tolist() == pytest.approx([w / sum(weight) for w in weight])


@statistical(alpha=beyond(5, 2), bugs=("uniforms-narrow", "purposes-share-noise"))
def test_tables_are_uniform_between_the_bounds_and_depend_on_their_seed_alone() -> None:
    entries = torch.cat([x.flatten() for x in RandomLinear(states=40, scale=3.0).tables])
    n = len(entries)
    assert float(entries.abs().max()) <= 3
    assert abs(float(entries.mean())) < 5 * (3 / n) ** 0.5
    assert abs(float((entries**2).mean()) - 3) < 5 * (81 * (1 / 5 - 1 / 9) / n) ** 0.5
    one, again, other = RandomLinear(), RandomLinear(num_agents=7, horizon=9), RandomLinear(table_seed=1)
    assert all(torch.equal(x, y) for x, y in zip(one.tables, again.tables, strict=True))
    assert not any(torch.equal(x, y) for x, y in zip(one.tables, other.tables, strict=True))
    assert not torch.equal(one.tables.slope, one.tables.offset)


def test_the_tables_digits_stay_what_they_are() -> None:
    # Whoever publishes a result on a random game names its seed: these are seed 0's first entries.
    assert [round(float(x.flatten()[0]), 6) for x in RandomLinear().tables] == [DIGITS[name] for name in DIGITS]


DIGITS = {"slope": 4.059647, "offset": 9.956642, "move_slope": 6.94543, "move_offset": 6.234103}


def test_one_state_is_refused() -> None:
    with pytest.raises(ConfigError, match="states must be int"):
        RandomLinear(states=1)
