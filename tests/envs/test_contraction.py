"""The contraction game: rounds, rates, cycles and equilibria in closed form against the exact machinery of the limit."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mfmarl import random
from mfmarl.envs.contraction import Contraction
from mfmarl.errors import ConfigError
from mfmarl.games import values
from mfmarl.games.exploitability import exploitability, regularised
from mfmarl.games.flow import flow
from mfmarl.games.reference import equilibrium
from mfmarl.games.solve import solve
from mfmarl.games.solvers.soft_fixed_point import SoftFixedPoint
from mfmarl.population.simulation import Simulation
from mfmarl.random import Key
from tests.statistical import beyond, statistical


def answered(game: Contraction, policy: Tensor, temperature: float) -> Tensor:
    """One round of the fixed-point iteration, by the exact soft values along the policy's own flow."""
    path = flow(game, policy)
    return values.boltzmann(game, values.soft(game, path, temperature).q, temperature)


def led_by(game: Contraction, policy: Tensor) -> float:
    mu = flow(game, policy).mu
    return float(mu[0, 0, 0] - mu[0, 0, 1])


def begun(p: float) -> Tensor:
    return torch.tensor([p, 1 - p], dtype=torch.float64).expand(1, 1, 2, 2).clone()


@pytest.mark.parametrize("temperature", [0.1, 0.3, 2.0])
def test_each_round_is_the_closed_form(temperature):
    game, policy = Contraction(), begun(0.9)
    lead = led_by(game, policy)
    for _ in range(4):
        policy, lead = answered(game, policy, temperature), game.round(lead, temperature)
        assert led_by(game, policy) == pytest.approx(lead, abs=1e-10)


@pytest.mark.parametrize("temperature", [0.5, 0.6, 1.5])
def test_rounds_converge_geometrically_at_the_known_rate(temperature):
    game, policy = Contraction(crowding=1.5), begun(0.6)
    fixed, errors = game.lead(temperature), []
    for _ in range(14):
        policy = answered(game, policy, temperature)
        errors.append(abs(led_by(game, policy) - fixed))
    assert errors[9] / errors[8] == pytest.approx(game.rate(temperature), rel=0.02)
    assert game.rate(temperature) < 1
    # And where it goes is the regularised equilibrium.
    assert float(regularised(game, begun(0.5 + fixed / 1.6), temperature)) == pytest.approx(0, abs=1e-10)


def test_one_call_measures_the_rates_of_many_temperatures():
    game, temperature = Contraction(crowding=1.5), torch.tensor([0.5, 0.8, 2.0, 10.0], dtype=torch.float64)
    solver = SoftFixedPoint(temperature=temperature)  # type: ignore[arg-type]
    state = solver.begin(game, begun(0.6).unsqueeze(1).expand(1, 4, 1, 2, 2))
    fixed = torch.tensor([game.lead(t) for t in temperature.tolist()], dtype=torch.float64)
    errors = []
    for k in range(1, 8):
        state = solver.step(game, state, k)
        mu = flow(game, solver.policy(game, state)).mu[0, :, 0]
        errors.append((mu[:, 0] - mu[:, 1] - fixed).abs())
    known = [game.rate(t) for t in temperature.tolist()]
    assert (errors[5] / errors[4]).tolist() == pytest.approx(known, rel=0.03)


def test_damping_settles_what_goes_round_in_a_cycle():
    game, start = Contraction(), begun(0.9)
    assert game.rate(0.1) > 2
    wild = solve(game, SoftFixedPoint(temperature=0.1), 60, policy=start)
    tame = solve(game, SoftFixedPoint(temperature=0.1, weight=0.3), 60, policy=start)
    assert wild.rows[-1]["regularised"] > 0.1
    assert "did not settle" in wild.told
    assert tame.rows[-1]["regularised"] < 1e-7
    assert led_by(game, tame.policy) == pytest.approx(game.lead(0.1), abs=1e-4)


def test_below_the_critical_temperature_rounds_go_in_a_cycle_of_two_around_a_unique_equilibrium():
    game, policy, temperature = Contraction(prize=0.0), begun(0.6), 0.1
    assert game.rate(temperature) == pytest.approx(0.9 * 0.64 / 0.2)
    for _ in range(60):
        policy = answered(game, policy, temperature)
    lead = led_by(game, policy)
    assert abs(lead) > 0.5
    assert led_by(game, answered(game, policy, temperature)) == pytest.approx(-lead, abs=1e-9)
    assert game.lead(temperature) == pytest.approx(0, abs=1e-12)
    assert float(regularised(game, begun(0.5), temperature)) == pytest.approx(0, abs=1e-10)


@pytest.mark.parametrize("options", [{}, {"prize": -0.5, "slip": 0.2}, {"crowding": 0.1}, {"crowding": 0.0}])
def test_without_temperature_nobody_gains_by_leaving_the_known_equilibrium(options):
    game = Contraction(**options)
    p = 0.5 + game.lead() / (2 * (1 - 2 * game.slip))
    assert 0 <= p <= 1
    assert float(exploitability(game, begun(p))) == pytest.approx(0, abs=1e-9)
    assert float(exploitability(game, begun((p + 0.3) % 1))) > 1e-3


@pytest.mark.parametrize("temperature", [0.0, 0.05, 1.0])
def test_the_solved_equilibria_are_the_closed_ones(temperature):
    solved, known = equilibrium(Contraction(), temperature), Contraction().reference(temperature)
    for name, answer in known.items():
        assert answer.value == pytest.approx(solved[name].value, abs=2e-3 if temperature == 0 else 1e-6)


@statistical(alpha=beyond(5, 2), bugs=("uniforms-lean", "pairs-share-noise"))
def test_a_crowd_of_agents_at_the_equilibrium_keeps_its_lead_and_pay():
    game, copies = Contraction(num_agents=500), 400
    p = 0.5 + game.lead(0.5) / (2 * 0.8)
    simulation = Simulation(game, copies)
    simulation.reset(Key.of(0))
    first = (random.uniform(Key.of(1), simulation.ids) > p).long()
    simulation.step(first)
    lead = simulation.measure()["lead"].double()
    action = (random.uniform(Key.of(2), simulation.ids) > p).long()
    reward = simulation.step(action).reward.double().mean(1)
    known = game.reference(0.5)
    for seen, value in ((lead, known["lead"].value), (reward, known["reward"].value)):
        # N agents meet 1/N more of their own kind: c (1 - x^2)/2N at most.
        assert abs(float(seen.mean()) - value) < 5 * float(seen.std()) / copies**0.5 + 1 / (2 * 500)


def test_a_horizon_has_no_stationary_reference_and_a_slip_beyond_a_half_is_refused():
    assert Contraction(horizon=5).reference() == {}
    assert Contraction(slip=0.5).rate(0.1) == 0
    with pytest.raises(ConfigError, match=r"\[0, 0.5\]"):
        Contraction(slip=0.7)
