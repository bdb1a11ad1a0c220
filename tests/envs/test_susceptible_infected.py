"""SIS: the closed form of its stationary equilibrium, and the epidemic counted by hand."""

from __future__ import annotations

import pytest
import torch

from mfmarl.envs.susceptible_infected import HOME, OUT, SusceptibleInfected
from mfmarl.errors import ConfigError
from mfmarl.games.exploitability import gap
from mfmarl.games.flow import flow
from mfmarl.games.solve import solve
from mfmarl.games.solvers.sequential_response import SequentialResponse
from mfmarl.population.environment import agent_ids
from mfmarl.random import Key
from tests.statistical import beyond, statistical


def _policy(out: float, times: int = 1) -> torch.Tensor:
    """The susceptible go out with that probability, the infected always."""
    return torch.tensor([[out, 1 - out], [1.0, 0.0]], dtype=torch.float64).expand(times, 1, 2, 2)


def _lasting(**options: float) -> SusceptibleInfected:
    return SusceptibleInfected(horizon=None, discount=options.pop("discount", 0.99), **options)  # type: ignore[arg-type]


def test_the_stationary_equilibrium_has_its_known_digits_and_leaves_nothing_to_gain() -> None:
    game = _lasting()
    ill, out = game.stationary()
    assert (round(ill, 5), round(out, 5)) == (0.38284, 0.60012)
    found = gap(game, _policy(out))
    assert float(found.exploitability) == pytest.approx(0, abs=1e-10)
    assert float(found.flow.mu[0, 0, 1]) == pytest.approx(ill, abs=1e-12)
    known = game.reference()
    # What an agent of the stationary crowd expects, times 1 - gamma, is the mean reward.
    assert known["reward"].value == pytest.approx(float(found.value) * (1 - game.discount), abs=1e-12)
    assert known["infected"].value == ill


@pytest.mark.parametrize(
    "options",
    [
        {"distance": 0.9},  # too dear to stay at home
        {"distance": 0.2, "illness": 2.0, "discount": 0.9},
        {"infection": 0.5, "recovery": 0.35},
        {"distance": 1.2},  # dearer than to be ill
        {"infection": 0.9, "recovery": 0.2, "distance": 0.2},
    ],
)
def test_it_is_an_equilibrium_with_other_numbers_too(options: dict[str, float]) -> None:
    game = _lasting(**options)
    ill, out = game.stationary()
    found = gap(game, _policy(out))
    assert 0 <= ill <= 1
    assert 0 <= out <= 1
    assert float(found.exploitability) == pytest.approx(0, abs=1e-9)
    assert float(found.flow.mu[0, 0, 1]) == pytest.approx(ill, abs=1e-9)


def test_another_share_of_infected_is_no_equilibrium() -> None:
    assert float(gap(_lasting(), _policy(0.65)).exploitability) > 0.1


def test_the_crowd_follows_the_equation_of_the_epidemic() -> None:
    path = flow(SusceptibleInfected(horizon=4), _policy(0.25, 4)).mu[:, 0, 1].tolist()
    ill = 0.6
    for share in path:
        assert share == pytest.approx(ill, abs=1e-14)
        ill = 0.7 * ill + 0.25 * 0.81 * ill * (1 - ill)


@statistical(alpha=beyond(5, 5), bugs=("uniforms-narrow", "uniforms-lean"))
def test_n_agents_fall_ill_and_recover_at_the_rates_of_the_rules() -> None:
    n = 200_000
    game = SusceptibleInfected(num_agents=n)
    ids = agent_ids(1, n)
    state = game.reset(ids, Key.of(1))._replace(state=(torch.arange(n) % 5 < 2).long().unsqueeze(0))
    action = ((torch.arange(n) // 5) % 2).unsqueeze(0)
    after, reward = game.step(state, action, ids, Key.of(0))
    before, later, home = state.state[0] == 1, after.state[0] == 1, action[0] == HOME
    for who, chance in (
        (~before & ~home, 0.81 * 0.4),
        (~before & home, 0.0),
        (before & home, 0.7),
        (before & ~home, 0.7),
    ):
        error = 5 * (chance * (1 - chance) / int(who.sum())) ** 0.5
        assert abs(float(later[who].double().mean()) - chance) <= error
    assert torch.equal(reward[0], -1.0 * before.float() - 0.5 * home.float())
    assert OUT == 0


def test_a_probability_that_is_none_is_refused() -> None:
    with pytest.raises(ConfigError, match="infection must be float"):
        SusceptibleInfected(infection=1.2)


def test_with_a_horizon_the_reference_is_what_the_exact_pure_equilibrium_pays() -> None:
    game = SusceptibleInfected()
    found = solve(game, SequentialResponse(), 100, 1e-12, every=1)
    assert float(found.exploitability) < 1e-12
    known = game.reference()
    assert known["reward"].value == pytest.approx(float(gap(game, found.policy).value) / 50, abs=1e-12)
    assert "exact" in known["reward"].source
