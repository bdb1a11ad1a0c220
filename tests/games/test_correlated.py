r"""Mediators: their gaps against enumeration and numbers found on paper, and the ways to equilibria."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from mfmarl.errors import ConfigError
from mfmarl.games.correlated import Mediator, Restricted, crowds, empirical, gaps, mediator, payoffs, psro
from mfmarl.games.exploitability import exploitability, gap
from mfmarl.games.flow import flow, uniform
from mfmarl.games.game import Crowd, MeanFieldGame
from mfmarl.games.solvers.mirror_descent import MirrorDescent
from tests.games.small_games import Epidemic, LeftRight, Matrix, Meeting, Pursuit, Towels, random_policy

# Rock, paper, scissors where a defeat costs more than a victory gives: mirror descent leaves its equilibrium.
UNSTABLE = Matrix(matrix=((0.0, -3.0, 1.0), (1.0, 0.0, -3.0), (-3.0, 1.0, 0.0)))


@dataclass(frozen=True)
class Theatre(Meeting):
    """A meeting that is worst for all where everybody is at one place, or both are as full."""

    def rewards(self, t: int, crowd: Crowd) -> Tensor:
        off = (crowd.mu[..., :1] - 0.5).abs() - 0.25
        return (crowd.mu - 16 * off**2).unsqueeze(-1)


def always(game: MeanFieldGame, action: int) -> Tensor:
    policy = torch.zeros_like(uniform(game))
    policy[..., action] = 1
    return policy


def some_mediator(game: MeanFieldGame, signals: int = 3, policies: int = 2) -> Mediator:
    noise = torch.Generator().manual_seed(5)
    chance = torch.rand(signals, generator=noise, dtype=torch.float64)
    shares = torch.rand(signals, policies, game.num_groups, generator=noise, dtype=torch.float64)
    return Mediator(chance / chance.sum(), shares / shares.sum(1, keepdim=True), random_policy(game, (policies,)))


@pytest.mark.parametrize("game", [LeftRight(), Towels(places=4), Pursuit(discount=0.9, final=3.0), UNSTABLE], ids=repr)
def test_a_mediator_with_one_thing_to_say_leaves_the_exploitability_to_gain(game: MeanFieldGame) -> None:
    policy = random_policy(game)
    found = gaps(game, mediator(policy.unsqueeze(1)))
    direct = gap(game, policy)
    assert found.coarse == pytest.approx(float(direct.exploitability), rel=1e-12)
    assert found.correlated == pytest.approx(float(direct.exploitability), rel=1e-12)
    assert found.value == pytest.approx(float(direct.value.sum()), rel=1e-12)


def test_a_nash_equilibrium_leaves_nothing_to_gain() -> None:
    policy = torch.tensor([2 / 3, 1 / 3], dtype=torch.float64).expand(2, 1, 1, 3, 2)
    found = gaps(LeftRight(), mediator(policy))
    assert found.coarse == pytest.approx(0, abs=1e-15)
    assert found.correlated == pytest.approx(0, abs=1e-15)


def test_gaps_are_those_of_the_best_of_all_deviations() -> None:
    game = LeftRight()
    told = some_mediator(game)
    every = []
    for choice in itertools.product([0, 1], repeat=6):
        every.append(torch.nn.functional.one_hot(torch.tensor(choice), 2).double().reshape(2, 1, 3, 2))
    path, _ = crowds(game, told)
    # What each pure deviation gets along each signal's crowd, by its own flow: <L', r>.
    joint = flow(game, torch.stack(every, 1)).joint  # [T, D, G, S, A]
    worth = torch.einsum("tdgsa,tkgsa->dk", joint, path.rewards)
    obeyed = torch.einsum("tmgsa,tkgsa->mk", flow(game, told.policies).joint, path.rewards)
    weight = (told.chance[:, None] * told.shares[..., 0]).mT  # [M, K]
    value = float((weight * obeyed).sum())
    found = gaps(game, told)
    assert found.value == pytest.approx(value, rel=1e-12)
    assert found.coarse == pytest.approx(float((worth @ told.chance).max()) - value, rel=1e-12)
    assert found.correlated == pytest.approx(float((worth @ weight.mT).max(0).values.sum()) - value, rel=1e-12)


def test_who_knows_the_signal_gains_where_who_commits_does_not() -> None:
    # All play the same, each of three alike: a tie for everybody. To know which, and beat it, is worth 1.
    game = Matrix()
    found = gaps(game, mediator(torch.eye(3, dtype=torch.float64).reshape(1, 3, 1, 1, 3)))
    assert found.coarse == pytest.approx(0, abs=1e-15)
    assert found.correlated == pytest.approx(1, rel=1e-14)
    assert found.gains.flatten().tolist() == pytest.approx([1 / 3] * 3)


def test_a_coin_for_the_place_to_meet_is_an_equilibrium_that_costs_who_commits() -> None:
    game = Meeting()
    found = gaps(game, mediator(torch.stack([always(game, 0), always(game, 1)], 1)))
    # Half are there at first, then all; who chose before the coin meets nobody half of the time.
    assert found.value == pytest.approx(2.5)
    assert found.coarse == pytest.approx(-1)
    assert found.correlated == pytest.approx(0, abs=1e-15)


def test_a_correlated_equilibrium_needs_no_nash_equilibrium_among_its_crowds() -> None:
    game = Meeting()
    policies = torch.stack([always(game, 0), always(game, 1)], 1)
    shares = torch.tensor([[0.75, 0.25], [0.25, 0.75]], dtype=torch.float64).unsqueeze(-1)
    told = Mediator(torch.tensor([0.5, 0.5], dtype=torch.float64), shares, policies)
    found = gaps(game, told)
    assert found.value == pytest.approx(0.5 + 2 * 0.625)
    assert found.coarse == pytest.approx(-0.25)
    assert found.correlated == pytest.approx(0, abs=1e-15)
    for whole in crowds(game, told)[0].policy.unbind(1):
        assert float(exploitability(game, whole)) == pytest.approx(0.25)


@pytest.mark.parametrize("game", [Towels(places=4), Pursuit(discount=0.9, final=3.0), Epidemic(horizon=4)], ids=repr)
def test_a_signals_crowd_is_the_flow_of_what_it_does_as_a_whole(game: MeanFieldGame) -> None:
    told = some_mediator(game, policies=3)
    path, ways = crowds(game, told)
    torch.testing.assert_close(flow(game, path.policy).mu, path.mu, rtol=0, atol=1e-14)
    torch.testing.assert_close(torch.einsum("tmkgs,kmg->tkgs", ways, told.shares), path.mu, rtol=0, atol=1e-14)
    # And what its members get adds up to what the whole gets.
    whole = gap(game, path.policy).value
    torch.testing.assert_close((told.shares * payoffs(game, told)).sum(1), whole, rtol=0, atol=1e-12)


@pytest.mark.parametrize("game", [Pursuit(discount=0.9, final=3.0), Towels(places=4), UNSTABLE], ids=repr)
def test_where_few_policies_may_be_played_they_pay_as_in_the_whole_game(game: MeanFieldGame) -> None:
    told = some_mediator(game, policies=3)
    among_three = Restricted.of(game, told.policies).payoffs(told.shares)
    torch.testing.assert_close(among_three, payoffs(game, told), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("steps", [100, 400])
def test_the_history_of_mirror_descent_is_a_coarse_equilibrium_as_nearly_as_hedge_promises(steps: int) -> None:
    # Rewards lie in an interval of length 4: regret <= log(3) / eta + eta K 4^2 / 8.
    rate = math.sqrt(8 * math.log(3) / steps) / 4
    found = empirical(UNSTABLE, MirrorDescent(rate=rate), steps, policy=uniform(UNSTABLE) + 0)
    assert found.gaps.coarse <= 4 * math.sqrt(math.log(3) / (2 * steps))
    first = torch.tensor([0.4, 0.3, 0.3], dtype=torch.float64).reshape(1, 1, 1, 3)
    moved = empirical(UNSTABLE, MirrorDescent(rate=rate), steps, policy=first)
    # From elsewhere log(3) becomes log(1 / 0.3).
    assert moved.gaps.coarse <= math.log(1 / 0.3) / (rate * steps) + rate * 2
    # It goes round: no iterate late in the history is an equilibrium, nor is obeying best for who is told.
    assert float(exploitability(UNSTABLE, moved.mediator.policies[:, -1])) > 0.5
    assert moved.gaps.correlated > 5 * moved.gaps.coarse


@pytest.mark.parametrize("kind", ["coarse", "correlated"])
@pytest.mark.parametrize("game", [Matrix(), UNSTABLE, LeftRight(), Towels(places=4)], ids=repr)
def test_best_answers_to_best_answers_end_in_an_equilibrium(game: MeanFieldGame, kind: str) -> None:
    found = psro(game, kind, rounds=40, tolerance=1e-5, first=random_policy(game, (1,)))  # type: ignore[arg-type]
    assert getattr(found.gaps, kind) <= 1e-5
    again = gaps(game, found.mediator)
    assert getattr(again, kind) <= 1e-5


def test_two_groups_are_told_each_their_own() -> None:
    game = Pursuit(horizon=3, discount=0.9, final=3.0)
    found = psro(game, "coarse", rounds=40, tolerance=1e-3)
    assert found.gaps.coarse <= 1e-3
    assert found.rows[0]["coarse"] > 0.1
    assert float(found.mediator.policies[:, :, :, 1, 0].max()) == 0


def test_a_mediator_can_be_better_for_all_than_every_nash_equilibrium() -> None:
    # At each step after the first Nash is all here, all there (worth 1 - 1) or half and half (1/2 - 1).
    game = Theatre()
    found = psro(
        game, "correlated", rounds=20, best_for_all=True, first=torch.stack([always(game, a) for a in (0, 1)], 1)
    )
    everyone_here = gap(game, always(game, 0))
    assert float(everyone_here.exploitability) == 0
    assert found.gaps.correlated < 1e-6
    assert found.gaps.value >= float(everyone_here.value) + 2 * 0.6


def test_what_cannot_be_told_exactly_is_refused() -> None:
    with pytest.raises(ConfigError, match="crowd moves the dynamics"):
        gaps(Epidemic(), mediator(random_policy(Epidemic(), (2,))))
    with pytest.raises(ConfigError, match="horizon"):
        crowds(Matrix(horizon=None, discount=0.9), mediator(random_policy(Matrix(horizon=1), (2,))))


def test_a_mediator_that_is_none_is_refused() -> None:
    game = Meeting()
    told = mediator(random_policy(game, (2,)))
    with pytest.raises(ConfigError, match="sum to 1"):
        gaps(game, told._replace(chance=torch.tensor([0.5, 0.6], dtype=torch.float64)))
    with pytest.raises(ConfigError, match=r"are \[2, 2, 1\], not \[2, 3, 1\]"):
        gaps(game, told._replace(shares=torch.full((2, 3, 1), 1 / 3, dtype=torch.float64)))
