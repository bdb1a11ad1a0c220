"""Known spreads and known exponents come back, with errors that are neither too small nor much too large."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from mfmarl.envs.beach_bar import BeachBar
from mfmarl.envs.left_right import LeftRight
from mfmarl.errors import ConfigError
from mfmarl.evaluation.scaling.fluctuations import (
    DEAREST,
    FEWEST,
    MOST,
    Spread,
    at_large_sizes,
    exact,
    in_the_limit,
    length,
    of_everybody,
    of_independent,
    play_on,
    pool,
    power_law,
    signed_power_law,
    spread,
)
from mfmarl.games.flow import flow, uniform
from mfmarl.learning.build import Built, build
from mfmarl.learning.run_config import Choice, RunConfig, RunOptions
from tests.statistical import beyond, statistical


def noise(seed: int, *shape: int) -> torch.Tensor:
    return torch.from_numpy(np.random.Generator(np.random.Philox(seed)).standard_normal(shape))


def built(name: str, agent: str = "random", copies: int = 64, **options: object) -> Built:
    run = RunOptions(copies=1, evaluation_copies=copies, steps=1, exploitability="off")
    return build(RunConfig(Choice(name, dict(options)), {"all": Choice(agent)}, run))


# ---------------------------------------------------------------------------------------------- spreads


@pytest.mark.parametrize("copies", [2, 5, 64])
@statistical(alpha=beyond(5, 10, samples=32), bugs=("chain-error-tiny", "chain-mean-off"))
def test_the_spread_of_independent_numbers_is_found_with_its_error(copies: int) -> None:
    found = spread(3.0 + 0.7 * noise(1, 400, copies))
    assert abs(found.value - 0.7) < 5 * found.error
    assert abs(found.mean - 3.0) < 5 * found.mean_error
    # Of normal numbers: sd / sqrt(2 (E - 1) T).
    assert found.error == pytest.approx(0.7 / math.sqrt(2 * 400 * (copies - 1)), rel=0.35)


def test_what_all_copies_do_alike_is_no_fluctuation() -> None:
    x = 0.1 * noise(2, 200, 16)
    season = 50 * torch.sin(torch.arange(200) / 7.0).unsqueeze(1)
    assert spread(x + season).value == pytest.approx(spread(x).value, rel=1e-9)


@pytest.mark.parametrize(("copies", "steps"), [(2, 1024), (4, 256), (40, 256)])
@statistical(alpha=beyond(5, 200), bugs=("chain-error-tiny", "chain-mean-off"))
def test_the_error_of_a_spread_knows_that_moments_are_correlated(copies: int, steps: int) -> None:
    repeats, rho = 300, 0.9
    fresh = noise(3, steps, copies * repeats) * math.sqrt(1 - rho**2)
    x = torch.empty_like(fresh)
    x[0] = fresh[0] / math.sqrt(1 - rho**2)
    for t in range(1, steps):
        x[t] = rho * x[t - 1] + fresh[t]
    found = [spread(part) for part in x.split(copies, 1)]
    off = np.array([(s.value - 1) / s.error for s in found])
    # Half as wide errors, as of independent moments, would give 2 or more.
    assert 0.8 < off.std() < 1.3
    assert abs(off.mean()) < 0.4


def test_too_little_to_tell_a_spread_is_refused() -> None:
    with pytest.raises(ConfigError, match="2 copies"):
        spread(torch.zeros(100, 1))
    with pytest.raises(ConfigError, match="8 moments"):
        spread(torch.zeros(7, 4))


def test_a_population_that_stands_still_has_no_spread() -> None:
    assert spread(torch.full((32, 4), 2.5)).value == 0


def test_runs_that_differ_by_more_than_their_errors_say_so() -> None:
    def one(value: float) -> Spread:
        return Spread(0.0, 0.01, value, 0.001, 100.0)

    alike, unlike = pool([one(1.0), one(1.0), one(1.0)]), pool([one(0.5), one(1.0), one(1.5)])
    assert alike.value == pytest.approx(1.0) and alike.error == pytest.approx(0.001 / math.sqrt(3))
    assert unlike.value == pytest.approx(math.sqrt(3.5 / 3)) and unlike.error > 0.2


# --------------------------------------------------------------------------------------------- exponents


SIZES = [10.0, 100.0, 1000.0, 10_000.0, 100_000.0]


def test_an_exact_power_law_comes_back() -> None:
    y = [3 * n**-0.5 for n in SIZES]
    found = power_law(SIZES, y, [0.01 * v for v in y])
    assert found is not None
    assert found.exponent == pytest.approx(-0.5) and found.coefficient == pytest.approx(3)
    assert found.low < -0.5 < found.high and found.points == 5 and found.misfit < 1e-6
    signed = signed_power_law(SIZES, [-v for v in y], [0.01 * v for v in y])
    assert signed is not None
    assert signed.exponent == pytest.approx(-0.5, abs=0.01) and signed.coefficient == pytest.approx(-3, rel=0.05)


@pytest.mark.parametrize(("law", "exponent", "error"), [(power_law, -0.5, 0.05), (signed_power_law, -1.0, 0.2)])
def test_intervals_of_exponents_hold_the_truth_nineteen_times_of_twenty(law, exponent: float, error: float) -> None:
    sizes = np.array([10.0, 30.0, 100.0, 300.0, 1000.0])
    true = 2 * sizes**exponent
    errors = error * true if law is power_law else np.full(5, 0.02 * error)
    drawn = true + errors * noise(5, 400, 5).numpy()
    found = [law(sizes.tolist(), y.tolist(), errors.tolist()) for y in drawn]
    held = np.mean([f is not None and f.low <= exponent <= f.high for f in found])
    # Widening by the misfit makes them a little conservative, never short: 5 sigma of 400 is 5.4 %.
    assert 0.896 < held < 0.999


def test_distances_within_their_errors_count_and_do_not_bend_the_law() -> None:
    sizes = np.array([10.0, 100.0, 1000.0, 10_000.0])
    true, errors = 5 / sizes, np.full(4, 0.004)  # the last ones cannot be told from 0
    drawn = true + errors * noise(6, 200, 4).numpy()
    found = [signed_power_law(sizes.tolist(), y.tolist(), errors.tolist()) for y in drawn]
    exponents = np.array([f.exponent for f in found if f is not None])
    assert len(exponents) > 190
    assert abs(np.median(exponents) + 1) < 5 * 1.2533 * exponents.std() / math.sqrt(len(exponents)) + 0.005


def test_of_nothing_but_noise_a_law_is_seldom_seen() -> None:
    drawn = noise(7, 400, 5).numpy()
    seen = np.mean([signed_power_law(SIZES, y.tolist(), [1.0] * 5) is not None for y in drawn])
    assert seen < 0.05 + 5 * math.sqrt(0.05 * 0.95 / 400)


def test_one_size_has_no_exponent() -> None:
    assert power_law([10.0, 10.0], [1.0, 2.0], [0.1, 0.1]) is None
    assert signed_power_law([10.0], [1.0], [0.1]) is None


def test_what_small_populations_do_is_no_part_of_the_exponent() -> None:
    y = [n**-0.5 * (1 + 2 / n) for n in SIZES]
    errors = [0.01 * v for v in y]
    whole, late = power_law(SIZES, y, errors), at_large_sizes(power_law, SIZES, y, errors)
    assert whole is not None and late is not None
    assert whole.first == 10 and whole.misfit > 1.5
    assert late.first == 100 and late.low <= -0.5 <= late.high
    # In whatever order they come.
    assert at_large_sizes(power_law, SIZES[::-1], y[::-1], errors[::-1]) == late


# ---------------------------------------------------------------------------------------- what is played


def test_sizes_share_the_steps_that_are_played_and_the_dearest_are_left_out() -> None:
    assert length(100, 40, 3) == (MOST, 3)
    for n, copies in ((4096, 2), (100_000, 2), (1_000_000, 2)):
        steps, runs = length(n, copies, 3)
        assert FEWEST <= steps <= MOST and runs >= 1
        assert n * copies * steps * runs <= DEAREST
    assert length(1_000_000_000, 2, 3) == (0, 0)
    assert length(100, 40, 3, horizon=20)[0] % 20 == 0
    assert length(400_000, 2, 1, horizon=20)[0] == 20


@pytest.mark.parametrize("num_agents", [9, 400])
@statistical(alpha=beyond(5, 20, samples=32), bugs=("chain-error-tiny", "steps-share-noise"))
def test_independent_spins_fluctuate_as_one_over_the_root_of_their_number(num_agents: int) -> None:
    made = built("ising", num_agents=num_agents, order="synchronous")
    episode = made.training.evaluation
    assert episode is not None
    play_on(episode, 2)
    found = {k: spread(x) for k, x in of_everybody(play_on(episode, 60), num_agents).items()}
    signed = found["magnetisation/signed"]
    assert abs(signed.value - 1 / math.sqrt(num_agents)) < 5 * signed.error
    assert signed.error < 0.03 * signed.value
    # 2N bonds, each +-1 by itself, pay both ends half: sd = sqrt(2 / N) (Potts and Ising alike).
    assert abs(found["reward"].value - math.sqrt(2 / num_agents)) < 5 * found["reward"].error


def test_the_reward_of_a_handful_is_not_taken_for_the_populations() -> None:
    series = {"acting": torch.ones(10, 2), "reward": torch.ones(10, 2), "x": torch.ones(10, 2)}
    assert set(of_everybody(series, 100)) == {"x"}
    assert set(of_everybody(series, 10)) == {"reward", "x"}
    assert set(of_everybody({**series, "y": torch.full((10, 2), math.nan)}, 10)) == {"reward", "x"}


# -------------------------------------------------------------------------------------- what theory knows


def test_shares_of_independent_agents_are_multinomial() -> None:
    game = BeachBar(num_agents=50, places=3, bar=1, horizon=6)
    policy = uniform(game)
    found = of_independent(game, policy)
    path = flow(game, policy)
    after = torch.stack([k.carry(j) for k, j in zip(path.kernels, path.joint, strict=True)])[:, 0]
    for s in range(3):
        assert found[f"share/{s}"] == pytest.approx(math.sqrt(float((after[:, s] * (1 - after[:, s])).mean()) / 50))
    # Four times as many, half the spread: of the reward too.
    more = of_independent(BeachBar(num_agents=200, places=3, bar=1, horizon=6), policy)
    assert all(more[k] == pytest.approx(found[k] / 2) for k in found)


@statistical(alpha=beyond(5, 20, samples=32), bugs=("uniforms-lean", "steps-share-noise"))
def test_the_spread_that_is_played_is_the_one_that_theory_has() -> None:
    made = built("beach_bar", num_agents=2000, places=4, bar=1, horizon=8, copies=48)
    episode = made.training.evaluation
    assert episode is not None
    theory = exact(made, 1.0)
    assert set(theory) >= {"reward", "share/0", "spread"}
    found = {k: spread(x) for k, x in of_everybody(play_on(episode, 80), 2000).items()}
    for name in ("reward", "share/0", "share/1"):
        assert abs(found[name].value - theory[name][0]) < 5 * found[name].error, name
        assert found[name].error < 0.1 * found[name].value


def test_theory_is_silent_where_agents_heed_each_other() -> None:
    game = BeachBar(sight="crowd")
    assert of_independent(game, uniform(game)) == {}
    assert of_independent(LeftRight(), uniform(LeftRight())) == {}  # paid at the end
    assert exact(built("beach_bar", "mfq", copies=2), 1.0) == {}


@statistical(alpha=beyond(5, 200), bugs=("chain-mean-off", "spread-off"))
def test_means_of_many_agents_are_near_the_limits_by_one_over_their_number() -> None:
    made = built("beach_bar", num_agents=4000, places=4, bar=1, horizon=8, copies=40)
    episode = made.training.evaluation
    assert episode is not None
    limit = in_the_limit(made)
    found = {k: spread(x) for k, x in of_everybody(play_on(episode, 80), 4000).items()}
    for name in ("reward", "spread", "share/2"):
        assert abs(found[name].mean - limit[name]) < 5 * found[name].mean_error + 4 / 4000, name
    assert in_the_limit(built("ising", num_agents=9)) == {}


def test_a_game_that_knows_its_spread_is_asked_for_learners_and_not_for_who_never_learns() -> None:
    lonely = exact(built("ising", "iql", copies=2, num_agents=100), 3.0)
    assert lonely["magnetisation/signed"][0] == pytest.approx(0.1)
    assert "independent spins" in lonely["magnetisation/signed"][1]
    felt = exact(built("ising", "mfq", copies=2, num_agents=100), 3.0)
    assert set(felt) == {"energy"} and "specific heat" in felt["energy"][1]
    assert exact(built("ising", "random", copies=2, num_agents=100), 3.0) == {}
