"""Games without a horizon: the crowd that stays, and discounted values against very long games."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from torch import Tensor

from mfmarl.errors import NumericFault
from mfmarl.games import stationary, values
from mfmarl.games.exploitability import exploitability, gap, regularised
from mfmarl.games.flow import along, flow, uniform
from mfmarl.games.game import Crowd, MeanFieldGame
from mfmarl.games.kernels import Dense, Kernel
from tests.games.mini import Teams, Tiny, played, some_policy
from tests.statistical import beyond, statistical

GAMES: list[Tiny] = [
    Tiny(horizon=None, discount=0.9, pull=0.4),
    Teams(horizon=None, discount=0.8, pull=0.3, toil=0.3),
    Tiny(horizon=None, discount=0.95, banned=True, actions=3),
]
every_game = pytest.mark.parametrize("game", GAMES, ids=["crowd", "teams", "banned"])
LONG = 500  # .95^500 = 7e-12


@pytest.fixture(params=[1024, 0], ids=["solved", "swept"])
def _both_ways(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Linear systems, and the sweeps that stand in for them where states are many."""
    monkeypatch.setattr(stationary, "_SOLVE", request.param)


def test_a_policy_keeps_the_left_eigenvector_in_place() -> None:
    game = Tiny(horizon=None, discount=0.9)
    policy = some_policy(game, 1)
    matrix = (policy[0, 0].unsqueeze(-1) * game.alone[0]).sum(1).numpy()
    found, vectors = np.linalg.eig(matrix.T)
    mine = np.real(vectors[:, np.argmax(found.real)])
    assert flow(game, policy).mu[0, 0].numpy() == pytest.approx(mine / mine.sum(), rel=1e-12)


@every_game
def test_the_crowd_that_stays_stays(game: Tiny) -> None:
    policy = some_policy(game, 2, 4)
    path = flow(game, policy, check=True)
    after = path.kernels[0].carry(path.joint[0])
    torch.testing.assert_close(after, path.mu[0], rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(path.mu.sum(-1), torch.ones(1, 4, game.num_groups).double(), rtol=1e-13, atol=0)


@every_game
@pytest.mark.usefixtures("_both_ways")
def test_discounted_values_are_those_of_a_very_long_game_with_the_same_crowd(game: Tiny) -> None:
    policy = some_policy(game, 3)
    path = flow(game, policy)
    long = replace(game, horizon=LONG)
    held = along(long, path.mu.expand(LONG, -1, -1), policy.expand(LONG, -1, -1, -1), kernels=list(path.kernels) * LONG)
    held = held._replace(terminal=None)
    for one, other in [
        (values.of_policy(game, path), values.of_policy(long, held)),
        (values.best(game, path), values.best(long, held)),
        (values.soft(game, path, 0.5), values.soft(long, held, 0.5)),
    ]:
        torch.testing.assert_close(one.v[0], other.v[0], rtol=0, atol=1e-8)
        torch.testing.assert_close(one.q[0], other.q[0], rtol=0, atol=1e-8)


@every_game
@pytest.mark.usefixtures("_both_ways")
def test_the_best_value_satisfies_bellmans_equation(game: Tiny) -> None:
    path = flow(game, some_policy(game, 4, 3))
    q, v = values.best(game, path)
    legal = game.legal_mask()
    top = (q if legal is None else q.masked_fill(~legal, -torch.inf)).amax(-1)
    torch.testing.assert_close(v, top, rtol=0, atol=1e-10)
    torch.testing.assert_close(q[0], path.rewards[0] + game.discount * path.kernels[0].expect(v[0]), rtol=0, atol=1e-10)
    greedy = values.of_policy(game, path, values.greedy(game, q)).v
    torch.testing.assert_close(greedy, v, rtol=0, atol=1e-9)


@every_game
def test_the_gap_is_at_least_0_and_its_parts_add_up(game: Tiny) -> None:
    policy = some_policy(game, 5, 6)
    found = gap(game, policy)
    assert bool((found.exploitability > 0).all())
    torch.testing.assert_close(found.by_group.sum(-1), found.exploitability)
    torch.testing.assert_close(found.best - found.value, found.by_group)
    assert bool((regularised(game, policy, 0.7) > 0).all())


@statistical(alpha=beyond(5, 20, samples=16), bugs=("uniforms-lean", "steps-share-noise"))
def test_many_agents_stay_and_earn_where_the_stationary_crowd_is() -> None:
    game = Tiny(horizon=None, discount=0.9, pull=0.4, num_agents=20_000)
    policy = some_policy(game, 6)
    finite = replace(game, horizon=20)
    shares, rewards = played(finite, policy.expand(20, -1, -1, -1), copies=16)
    path = flow(game, policy)
    late, paid = shares[15:-1].mean(0), rewards[15:-1].mean(0)
    assert bool(((late.mean(0) - path.mu[0]).abs() <= 5 * late.std(0) / 16**0.5 + 2e-5).all())
    expected = (path.joint[0] * path.rewards[0]).sum((-2, -1))
    assert bool(((paid.mean(0) - expected).abs() <= 5 * paid.std(0) / 16**0.5 + 1e-4).all())


def test_two_states_that_change_places_have_a_stationary_crowd_all_the_same() -> None:
    @dataclass(frozen=True)
    class Swap(Tiny):
        def outcomes(self, t: int, crowd: Crowd) -> Kernel:
            return Dense(torch.tensor([[0.0, 1.0], [1.0, 0.0]], dtype=torch.float64).unsqueeze(1).expand(2, 2, 2))

    game = Swap(horizon=None, discount=0.9, states=2)
    assert flow(game, uniform(game)).mu[0, 0].tolist() == pytest.approx([0.5, 0.5], abs=1e-12)


def test_a_crowd_that_flees_itself_never_rests_and_that_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    @dataclass(frozen=True)
    class Flight(Tiny):
        """All but a few leave the fuller state at once, and overshoot even by half steps."""

        def outcomes(self, t: int, crowd: Crowd) -> Kernel:
            leave = torch.sigmoid(40 * (crowd.mu[..., :1, :1] - 0.45)).unsqueeze(-1).unsqueeze(-1)
            row = torch.cat([1 - leave, leave], -1)
            return Dense(row.expand(*row.shape[:-3], 2, 2, 2))

    monkeypatch.setattr(stationary, "_STEPS", 1000)
    game = Flight(horizon=None, discount=0.9, states=2)
    with pytest.raises(NumericFault, match="never comes to rest .* give the game a horizon"):
        exploitability(game, uniform(game))


def test_single_precision_finds_the_same_crowd_and_gap() -> None:
    game = GAMES[0]
    policy = some_policy(game, 7)
    assert float(exploitability(game, policy.float())) == pytest.approx(float(exploitability(game, policy)), rel=1e-4)


def test_a_crowd_that_mixes_slowly_comes_to_rest_where_its_chain_does() -> None:
    """A walk that hardly ever moves, on two places and one that nobody leaves: the rest is that of the start's classes."""

    @dataclass(frozen=True)
    class Slow(MeanFieldGame):
        horizon: int | None = None
        discount: float = 0.9
        crowd_moves = False

        @property
        def num_states(self) -> int:
            return 3

        @property
        def num_actions(self) -> int:
            return 1

        def initial(self) -> Tensor:
            return torch.tensor([0.5, 0.2, 0.3], dtype=torch.float64)

        def outcomes(self, t: int, crowd: Crowd) -> Dense:
            rare = 1e-7
            rows = [[1 - rare, rare, 0.0], [3 * rare, 1 - 3 * rare, 0.0], [0.0, 0.0, 1.0]]
            return Dense(torch.tensor(rows, dtype=crowd.mu.dtype).unsqueeze(1))

        def rewards(self, t: int, crowd: Crowd) -> Tensor:
            return crowd.mu.new_zeros(3, 1)

    game = Slow()
    found = flow(game, uniform(game)).mu[0, 0]
    torch.testing.assert_close(found, torch.tensor([0.525, 0.175, 0.3], dtype=torch.float64), rtol=0, atol=1e-6)
