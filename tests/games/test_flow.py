"""The crowd in time: against loops by hand, against many agents, and what is refused."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from torch import Tensor

from mfmarl.errors import ConfigError, EnvironmentFault, NumericFault
from mfmarl.games.exploitability import exploitability
from mfmarl.games.flow import along, check_policy, flow, uniform, watched
from mfmarl.games.game import Crowd, MeanFieldGame
from mfmarl.games.kernels import Dense, Kernel
from tests.games.mini import Fair, Market, Seasonal, Teams, Tiny, played, some_policy
from tests.statistical import beyond, statistical

GAMES: list[Tiny] = [
    Tiny(horizon=4, pull=0.4, last=1.0),
    Seasonal(horizon=4, pull=0.3),
    Teams(horizon=3, pull=0.3, last=0.5, toil=0.2),
    Market(horizon=3, pull=0.5, banned=True, toil=0.3),
]


def _by_hand(game: Tiny, policy: np.ndarray, mu: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """mu [T + 1, G, S] and rewards [T, G, S, A], by loops over everything."""
    groups, s, a = policy.shape[1:]
    path, rewards = [mu], []
    for t, chosen in enumerate(policy):
        season = t if game.time_dependent else 0
        now, after = path[-1], np.zeros_like(mu)
        paid = np.zeros((groups, s, a))
        for g in range(groups):
            shares = [sum(now[g, x] * chosen[g, x, u] for x in range(s)) for u in range(a)]
            for x in range(s):
                met = sum(float(game.mutual[g * s + x, h * s + y]) * now[h, y] for h in range(groups) for y in range(s))
                for u in range(a):
                    paid[g, x, u] = (1 + season / 2) * (float(game.paid_alone[g, x, u]) - met)
                    if game.extended:
                        paid[g, x, u] -= shares[u]
                    effort = game.effort()
                    if effort is not None:
                        paid[g, x, u] -= float(effort[g, x, u])
                    for y in range(s):
                        own = float(game.alone[g, x, u, (y - season) % s])
                        after[g, y] += now[g, x] * chosen[g, x, u] * ((1 - game.pull) * own + game.pull * now[g, y])
        path.append(after)
        rewards.append(paid)
    return np.stack(path), np.stack(rewards)


@pytest.mark.parametrize("game", GAMES, ids=lambda game: type(game).__name__)
def test_the_flow_is_what_loops_over_states_and_actions_make(game: Tiny) -> None:
    policy = some_policy(game, 1)
    mu, rewards = _by_hand(game, policy.numpy(), game.start().numpy())
    path = flow(game, policy, check=True)
    assert path.mu.numpy() == pytest.approx(mu[:-1], rel=1e-13)
    assert path.rewards.numpy() == pytest.approx(rewards, rel=1e-12, abs=1e-13)
    assert path.terminal is not None
    last = game.terminal(Crowd(torch.from_numpy(mu[-1])))
    assert last is not None
    assert path.terminal.numpy() == pytest.approx(last.numpy(), rel=1e-12, abs=1e-14)
    assert path.joint.numpy() == pytest.approx(mu[:-1, ..., None] * policy.numpy(), rel=1e-13)


@pytest.mark.parametrize("game", GAMES, ids=lambda game: type(game).__name__)
def test_a_batch_of_policies_is_each_of_them_alone(game: Tiny) -> None:
    policy = some_policy(game, 2, 2, 3)
    whole = flow(game, policy)
    for i, j in [(0, 0), (1, 2)]:
        alone = flow(game, policy[:, i, j])
        torch.testing.assert_close(whole.mu[:, i, j], alone.mu, rtol=1e-13, atol=1e-15)
        torch.testing.assert_close(whole.rewards[:, i, j], alone.rewards, rtol=1e-13, atol=1e-13)


def test_a_kernel_that_is_remembered_does_not_know_who_asked_first() -> None:
    """Rules whose kernel has the crowd's axes: many copies, then one crowd, then a batch of them."""
    game, fresh = Fair(), Fair()
    played(game, some_policy(game, 1), copies=3)
    flow(game, some_policy(game, 1, 4, 2))
    torch.testing.assert_close(flow(game, some_policy(game, 2)).mu, flow(fresh, some_policy(game, 2)).mu)


def test_single_precision_is_the_same_flow_to_seven_digits() -> None:
    game = GAMES[2]
    policy = some_policy(game, 3)
    torch.testing.assert_close(flow(game, policy.float()).mu.double(), flow(game, policy).mu, rtol=1e-5, atol=1e-7)


def test_a_policy_that_is_asked_at_every_time_makes_the_flow_of_its_answers() -> None:
    game = Seasonal(horizon=4, pull=0.5, last=1.0)
    table = some_policy(game, 4)

    def crowd_averse(t: int, mu: Tensor) -> Tensor:
        return (table[t] * (1 + mu.unsqueeze(-1) * torch.tensor([0.0, 1.0]))).softmax(-1)

    path = watched(game, crowd_averse)
    asked = torch.stack([crowd_averse(t, mu) for t, mu in enumerate(path.mu)])
    again = flow(game, asked)
    for one, other in zip(path[:2] + path[3:5], again[:2] + again[3:5], strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-14)
    assert float(exploitability(game, crowd_averse)) == pytest.approx(float(exploitability(game, asked)), abs=1e-12)


def test_the_flow_may_begin_elsewhere() -> None:
    game = Tiny(horizon=4, pull=0.4)
    policy = some_policy(game, 5)
    whole = flow(game, policy)
    rest = flow(replace(game, horizon=2), policy[2:], mu=whole.mu[2])
    torch.testing.assert_close(rest.mu, whole.mu[2:], rtol=1e-14, atol=0)


def test_along_a_flow_stands_what_the_flow_has() -> None:
    for game in GAMES:
        path = flow(game, some_policy(game, 6))
        again = along(game, path.mu, path.policy)
        torch.testing.assert_close(again.rewards, path.rewards, rtol=1e-13, atol=1e-13)
        assert path.terminal is not None and again.terminal is not None
        torch.testing.assert_close(again.terminal, path.terminal, rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize("game", GAMES, ids=lambda game: type(game).__name__)
@statistical(alpha=beyond(5, 80, samples=24), bugs=("uniforms-lean", "steps-share-noise"))
def test_twenty_thousand_agents_flow_and_earn_as_infinitely_many(game: Tiny) -> None:
    many = replace(game, num_agents=20_000)
    policy = some_policy(many, 7)
    path = flow(many, policy)
    shares, rewards = played(many, policy, copies=24)
    error = shares.std(1) / 24**0.5
    # The mean over copies is biased by O(1/N), which is a hundredth of its error here.
    assert bool(((shares[:-1].mean(1) - path.mu).abs() <= 5 * error[:-1] + 2e-5).all())
    each = (path.joint * path.rewards).sum((-2, -1))
    if path.terminal is not None:
        last = path.kernels[-1].carry(path.joint[-1])
        each[-1] += (last * path.terminal).sum(-1)
    error = rewards.std(1) / 24**0.5
    assert bool(((rewards.mean(1) - each).abs() <= 5 * error + 1e-4).all())


# ------------------------------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize("shape", [(3, 1, 3, 2, 2), (2, 1, 3, 2), (3, 1, 3, 3), (3, 2, 3, 2), (3, 3, 2)])
def test_a_policy_of_the_wrong_shape_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match=r"is \[T=3, ..., G=1, S=3, A=2\], not \["):
        check_policy(Tiny(), torch.full(shape, 0.5))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -0.5, 0.9])
def test_a_policy_that_is_no_probability_is_refused_by_place(bad: float) -> None:
    policy = uniform(Tiny(), (2,))
    policy[1, 1, 0, 2, 0] = bad
    with pytest.raises(NumericFault, match="at time 1, state 2 is no probability distribution"):
        exploitability(Tiny(), policy)


def test_whole_numbers_are_no_policy() -> None:
    policy = torch.zeros(3, 1, 3, 2, dtype=torch.int64)
    policy[..., 0] = 1
    with pytest.raises(ConfigError, match=r"not torch\.int64"):
        exploitability(Tiny(), policy)


def test_a_policy_that_takes_what_is_not_legal_is_refused() -> None:
    game = Tiny(banned=True)
    with pytest.raises(ConfigError, match="takes action 1 in state 0 at time 0"):
        exploitability(game, uniform(Tiny()))
    assert float(uniform(game)[0, 0, 0, 1]) == 0
    assert float(exploitability(game, uniform(game))) >= 0


@dataclass(frozen=True)
class Leaking(Tiny):
    """Loses a tenth of those that come near the end, if anybody does."""

    time_dependent = True

    def outcomes(self, t: int, crowd: Crowd) -> Kernel:
        kernel = super().outcomes(0, crowd)
        assert isinstance(kernel, Dense)
        return Dense(kernel.probability * (0.9 if t == 2 else 1.0))


def test_a_kernel_that_loses_people_is_told_with_its_time() -> None:
    with pytest.raises(EnvironmentFault, match=r"Leaking at time 2: the kernel sums to 0\.9 at state 0, action 0"):
        exploitability(Leaking(), uniform(Leaking()))


@dataclass(frozen=True)
class Bare(Tiny):
    """Gives a tensor where a kernel is due."""

    def outcomes(self, t: int, crowd: Crowd) -> Kernel:
        return self.alone  # type: ignore[return-value]


def test_a_tensor_is_no_kernel() -> None:
    with pytest.raises(EnvironmentFault, match=r"Bare\.outcomes must return Outcomes, Dense or Moves, not Tensor"):
        exploitability(Bare(), uniform(Bare()))


@dataclass(frozen=True)
class Crowded(Tiny):
    """Pays -log mu, which is infinite in an empty state."""

    floor: float = 0.0

    def initial(self) -> Tensor:
        return torch.tensor([0.5, 0.5, 0.0], dtype=torch.float64)

    def rewards(self, t: int, crowd: Crowd) -> Tensor:
        return -(crowd.mu + self.floor).log().unsqueeze(-1)


def test_the_logarithm_of_an_empty_state_is_refused_with_the_remedy() -> None:
    with pytest.raises(NumericFault, match=r"the reward at time 0 of state 2, action 0 is inf; .* small number to mu"):
        exploitability(Crowded(), uniform(Crowded()))
    assert torch.isfinite(exploitability(Crowded(floor=1e-20), uniform(Crowded())))


@pytest.mark.parametrize("nothing", [-torch.inf, torch.nan])
def test_what_nobody_may_do_may_pay_anything(nothing: float) -> None:
    @dataclass(frozen=True)
    class Holed(Tiny):
        def rewards(self, t: int, crowd: Crowd) -> Tensor:
            return (
                super()
                .rewards(t, crowd)
                .masked_fill(torch.tensor([[False, True], [False, False], [False, False]]), nothing)
            )

    whole, holed = Tiny(banned=True), Holed(banned=True)
    policy = some_policy(whole, 1)
    assert float(exploitability(holed, policy)) == pytest.approx(float(exploitability(whole, policy)), rel=1e-13)


@pytest.mark.parametrize("initial", [[0.5, 0.6, 0.0], [1.5, -0.5, 0.0], [1.0, 0.0], [float("nan"), 0.5, 0.5]])
def test_a_start_that_is_no_distribution_is_refused(initial: list[float]) -> None:
    @dataclass(frozen=True)
    class Off(Tiny):
        def initial(self) -> Tensor:
            return torch.tensor(initial, dtype=torch.float64)

    with pytest.raises(ConfigError, match=r"Off\.initial\(\)"):
        flow(Off(), uniform(Off()))


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"horizon": 0}, "horizon must be at least 1, not 0"),
        ({"discount": 0.0}, "discount must lie in"),
        ({"discount": 1.1}, "discount must be float in"),
        ({"horizon": None}, "needs a discount below 1"),
        ({"num_agents": 0}, "num_agents must be int in"),
    ],
)
def test_a_game_without_sense_is_refused(options: dict[str, float], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        Tiny(**options)


def test_a_state_without_a_legal_action_is_refused() -> None:
    @dataclass(frozen=True)
    class Stuck(Tiny):
        def allowed(self) -> Tensor:
            return torch.tensor([[True, True], [False, False], [True, False]])

    with pytest.raises(ConfigError, match="nothing is legal in state 1"):
        uniform(Stuck())


def test_a_policy_that_watches_needs_a_horizon() -> None:
    game: MeanFieldGame = Tiny(horizon=None, discount=0.9)
    with pytest.raises(ConfigError, match="horizon"):
        watched(game, lambda t, mu: uniform(game)[0])
