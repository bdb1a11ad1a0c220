"""Learned best responses bound the gap from below; policies known by samples have error bars that hold."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from mfmarl import random
from mfmarl.envs.beach_bar import BeachBar
from mfmarl.envs.left_right import LeftRight
from mfmarl.envs.predator_prey import PredatorPrey
from mfmarl.envs.susceptible_infected import SusceptibleInfected
from mfmarl.errors import ConfigError
from mfmarl.games import finite, sampled
from mfmarl.games.exploitability import exploitability, gap
from mfmarl.games.flow import uniform
from mfmarl.games.game import MeanFieldGame
from mfmarl.population.environment import agent_ids
from mfmarl.random import Key
from tests.games.test_finite import Alone, Priced, Restless, Watchful
from tests.statistical import beyond, statistical


def some_policy(game: MeanFieldGame, scale: float = 1.0) -> Tensor:
    logits = scale * torch.randn(uniform(game).shape, generator=random.generator(Key.of(7)), dtype=torch.float64)
    legal = game.legal_mask()
    return (logits if legal is None else logits.masked_fill(~legal, -torch.inf)).softmax(-1)


@pytest.mark.parametrize(
    ("game", "least"),
    [
        (SusceptibleInfected(num_agents=30, horizon=12), 0.9),
        (BeachBar(num_agents=20), 0.8),
        (BeachBar(num_agents=4), 0.8),  # an empty place is empty no more when one comes
        (LeftRight(num_agents=10), 0.9),
        (Restless(num_agents=8), 0.8),
        (Alone(num_agents=8), 0.8),
    ],
    ids=lambda x: type(x).__name__,
)
@statistical(alpha=beyond(5, 25, samples=32), bugs=("uniforms-lean", "steps-share-noise"))
def test_a_learned_answer_gains_nearly_what_the_best_gains_and_never_more(game: MeanFieldGame, least: float) -> None:
    policy = some_policy(game)
    exact = finite.gap(game, policy)
    found = sampled.gap(game, policy, copies=4000)
    error = 5 * found.standard_error
    assert found.exploitability <= exact.exploitability + error
    assert found.exploitability >= least * exact.exploitability - error
    assert found.standard_error < 0.1 * exact.exploitability
    assert found.value == pytest.approx(exact.value, abs=6 * exact.exploitability / 4000**0.5 + error)


@pytest.mark.parametrize("kind", [Watchful, Priced])
@statistical(alpha=beyond(5, 4, samples=32), bugs=("steps-share-noise", "pairs-share-noise"))
def test_an_extended_game_counts_what_others_did(kind: type[Restless]) -> None:
    game = kind(num_agents=4, places=2)
    policy = some_policy(game)
    exact = finite.gap(game, policy)
    found = sampled.gap(game, policy, copies=4000)
    assert found.exploitability <= exact.exploitability + 5 * found.standard_error
    assert found.exploitability >= 0.8 * exact.exploitability - 5 * found.standard_error


def test_several_groups_each_have_their_own_deviator() -> None:
    game = PredatorPrey(num_agents=60)
    found = sampled.gap(game, uniform(game), copies=64)
    assert len(found.by_group) == 3 and min(found.by_group) > 5 * found.standard_error / 3
    assert sum(found.by_group) == pytest.approx(found.exploitability)


@statistical(alpha=beyond(5, 20, samples=32), bugs=("sampled-gap-off", "uniforms-lean"))
def test_under_common_noise_everybody_plays_the_policy_of_its_past() -> None:
    game = BeachBar(num_agents=200, closing=0.3)
    policy = some_policy(game)
    assert len(policy) > (game.horizon or 0)
    copies = 1500
    found = sampled.gap(game, policy, copies=copies)
    limit = gap(game, policy)
    # The value is the limit's but for O(1/N) and the noise of the copies, and so is what is to be gained.
    assert found.value == pytest.approx(float(limit.value.sum()), abs=0.1 + 5 * 2 / copies**0.5)
    assert found.exploitability == pytest.approx(float(limit.exploitability), rel=0.2, abs=5 * found.standard_error)


@statistical(alpha=beyond(5, 20, samples=32), bugs=("uniforms-lean", "pairs-share-noise"))
def test_nobody_gains_from_an_equilibrium_of_n() -> None:
    agents = 12
    game = LeftRight(num_agents=agents)
    left = (2 * agents - 1) / (3 * (agents - 1))
    policy = uniform(game)
    policy[:, :, 0] = torch.tensor([left, 1 - left], dtype=torch.float64)
    found = sampled.gap(game, policy, copies=4000)
    assert abs(found.exploitability) < 5 * found.standard_error + 1e-12


def test_what_is_judged_was_not_learned_from_and_both_sides_meet_the_same_noise() -> None:
    game = BeachBar(num_agents=6)
    inner, keys = sampled.table_play(game, some_policy(game), 8), []

    def play(key: Key, slot: int | None, deviation: sampled.Deviation | None) -> sampled.Recorded:
        keys.append((key, deviation is not None))
        return inner(key, slot, deviation)

    sampled.best_response(game, play, Key.of(0))
    (learned, _), (kept, _), (left, deviates) = keys
    assert learned != kept and kept == left and deviates


def test_the_same_key_gives_the_same_bound() -> None:
    game = BeachBar(num_agents=10)
    policy = some_policy(game)
    assert sampled.gap(game, policy, copies=50) == sampled.gap(game, policy, copies=50)
    other = sampled.gap(game, policy, copies=50, key=Key.of(1))
    assert other != sampled.gap(game, policy, copies=50)
    assert sampled.gap(game, policy, agents=10, copies=50) == sampled.gap(game, policy, copies=50)


def _played(game: MeanFieldGame, policy: Tensor, copies: int) -> tuple[Tensor, Tensor]:
    """States and actions [T, E, N] of everybody."""
    ids, key = agent_ids(copies, game.num_agents, torch.device("cpu")), Key.of(11)
    state = game.reset(ids, key)
    where, what = [], []
    for t in range(game.horizon or 0):
        cumulative = policy[t, 0].cumsum(-1)[state.state]
        action = (random.uniform(key.fold("act", t), ids).double().unsqueeze(-1) > cumulative[..., :-1]).sum(-1)
        where.append(state.state)
        what.append(action)
        state, _ = game.step(state, action, ids, key.fold("step", t))
    return torch.stack(where), torch.stack(what)


@statistical(alpha=beyond(5, 2, samples=32), bugs=("frequencies-error-tiny", "uniforms-lean"))
def test_frequencies_know_a_policy_as_well_as_they_say() -> None:
    game = SusceptibleInfected(num_agents=400, horizon=5)
    policy = some_policy(game)
    exact = float(exploitability(game, policy))
    found = sampled.from_samples(game, *_played(game, policy, 16))
    assert found.unseen == 0
    assert found.exploitability == pytest.approx(exact, abs=5 * found.standard_error)
    assert 1e-4 < found.standard_error < 0.1 * exact
    assert float((found.policy - policy).abs().max()) < 0.1


def test_where_nobody_was_seen_the_policy_is_uniform_and_it_is_said() -> None:
    game = LeftRight(num_agents=30)
    policy = uniform(game)
    found = sampled.from_samples(game, *_played(game, policy, 4))
    assert found.unseen == pytest.approx(2 / 3)
    assert float((found.policy[:, :, 1:] - 0.5).abs().max()) == 0
    single = sampled.from_samples(game, *_played(game, policy, 1))
    assert single.standard_error == math.inf


def test_what_cannot_be_sampled_is_refused() -> None:
    endless = SusceptibleInfected(horizon=None, discount=0.9)
    with pytest.raises(ConfigError, match="horizon"):
        sampled.gap(endless, uniform(endless))
    game = LeftRight(num_agents=3)
    with pytest.raises(ConfigError, match="One policy"):
        sampled.gap(game, uniform(game, (2,)))
    wrong = torch.zeros(2, 1, 3, dtype=torch.int64)
    with pytest.raises(ConfigError, match="T=1"):
        sampled.from_samples(game, wrong, wrong)
    with pytest.raises(ConfigError, match="3 agents"):
        sampled.from_samples(game, wrong[:1, :, :2], wrong[:1, :, :2])
