"""The minority game by replicas: the critical point, limits, minima of H of random games, and agents who learn."""

from __future__ import annotations

import math

import numpy as np
import pytest

from mfmarl.errors import ConfigError
from mfmarl.statmech.replicas.minority import critical_alpha, minority, predictability


def games(agents: int, alpha: float, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Omega [R, P] and xi [R, N, P]: the mean and half the difference of an agent's two strategies, summed over agents
    and not."""
    rng = np.random.default_rng(seed)
    strategies = rng.choice([-1.0, 1.0], size=(2, count, agents, round(alpha * agents)))
    return strategies.mean(0).sum(1), (strategies[0] - strategies[1]) / 2


def least_predictable(omega: np.ndarray, xi: np.ndarray, sweeps: int = 120) -> tuple[np.ndarray, np.ndarray]:
    """The mixtures m [R, N] in [-1, 1] that minimise H, by coordinate descent (H is convex), and H [R]."""
    count, agents, _ = xi.shape
    m, total = np.zeros((count, agents)), omega.copy()
    for _ in range(sweeps):
        for i in range(agents):
            others = total - xi[:, i] * m[:, i : i + 1]
            after = np.clip(-(xi[:, i] * others).sum(-1) / (xi[:, i] ** 2).sum(-1), -1, 1)
            total = others + xi[:, i] * after[:, None]
            m[:, i] = after
    return m, (total**2).mean(-1)


def test_the_past_tells_nothing_up_to_the_published_critical_alpha():
    assert critical_alpha() == pytest.approx(0.3374, abs=5e-5)
    at = minority(critical_alpha())
    assert at.predictability == pytest.approx(0, abs=1e-12)
    # At the critical point as many agents waver as there are histories.
    assert 1 - at.frozen == pytest.approx(critical_alpha())
    assert predictability(0.1) == 0
    assert predictability(0.34) > 0


def test_with_very_many_histories_agents_toss_coins():
    far = minority(1e4)
    assert far.volatility == pytest.approx(1, abs=2e-4)
    assert far.predictability == pytest.approx(0.5, abs=2e-4)
    assert far.overlap == pytest.approx(1e-4, rel=1e-3)
    assert far.frozen == pytest.approx(0, abs=1e-12)


def test_agents_do_better_than_coins_and_best_at_the_critical_point():
    curve = [minority(critical_alpha() * x).volatility for x in (1, 1.2, 2, 5, 20, 100)]
    assert curve == sorted(curve)
    assert curve[-1] < 1


@pytest.mark.parametrize("alpha", [0.6, 1.0, 3.0])
def test_the_least_predictable_play_of_random_games_is_the_replica_states(alpha):
    agents, count = 160, 12
    m, h = least_predictable(*games(agents, alpha, count, 1))
    known = minority(alpha)
    for seen, value in ((h / agents, known.predictability), ((m**2).mean(-1), known.overlap)):
        # A game of N agents is off by O(1/N).
        assert abs(seen.mean() - value) < 5 * seen.std(ddof=1) / math.sqrt(count) + 1 / agents
    frozen = (abs(m) == 1).mean(-1)
    assert abs(frozen.mean() - known.frozen) < 5 * frozen.std(ddof=1) / math.sqrt(count) + 2 / agents


def test_with_fewer_histories_than_the_critical_the_past_can_be_made_to_tell_nothing():
    _, h = least_predictable(*games(200, 0.15, 6, 2), sweeps=400)
    assert (h / 200).max() < 1e-6


@pytest.mark.verify
@pytest.mark.parametrize("alpha", [0.6, 1.0, 2.0])
def test_agents_who_learn_which_strategy_wins_come_to_the_volatility_of_the_replica_state(alpha):
    # Batch learning over all histories, choices drawn by a logit of the scores (Coolen and Heimel 2001, J. Phys. A 34,
    # 10783): above alpha_c what they come to does not depend on the learning.
    agents, count, rate = 201, 40, 0.05
    omega, xi = games(agents, alpha, count, 3)
    rng = np.random.default_rng(4)
    score = np.zeros(xi.shape[:2])
    seen = []
    for step in range(3000):
        chance = (1 + np.tanh(score)) / 2
        histories = omega.shape[1]
        if step % 10 == 0 and step >= 2000:
            # Independent draws for each history: what sigma^2 averages over.
            s = np.where(rng.random((*chance.shape, histories)) < chance[..., None], 1.0, -1.0)
            seen.append(((omega + (xi * s).sum(1)) ** 2).mean(-1) / agents)
        s = np.where(rng.random(chance.shape) < chance, 1.0, -1.0)
        total = omega + np.einsum("rnp,rn->rp", xi, s)
        score -= rate * np.einsum("rnp,rp->rn", xi, total) / histories
    volatility = np.mean(seen, 0)
    assert abs(volatility.mean() - minority(alpha).volatility) < 5 * volatility.std() / math.sqrt(count) + 2 / agents


@pytest.mark.parametrize("alpha", [0.1, -1.0, math.inf, math.nan])
def test_the_state_is_refused_where_it_is_not_known(alpha):
    with pytest.raises(ConfigError, match="alpha must be"):
        minority(alpha)


@pytest.mark.parametrize("alpha", [0.0, -1.0, math.nan])
def test_predictability_needs_a_positive_alpha(alpha):
    with pytest.raises(ConfigError, match="positive"):
        predictability(alpha)
