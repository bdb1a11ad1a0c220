"""The solver of x = f(x), its verdict on stability, and the response it predicts."""

from __future__ import annotations

import math

import pytest
import torch

from mfmarl.errors import ConfigError, NumericFault
from mfmarl.statmech.exact import ising as ising_exact
from mfmarl.statmech.mean_field import potts, self_consistent

F64 = torch.float64


def _curie_weiss(x: torch.Tensor, k: float, field: float = 0.0) -> torch.Tensor:
    return torch.tanh(k * x + field)


@pytest.mark.parametrize("memory", [0, 5])
def test_rows_of_a_batch_are_solved_each_by_itself(memory):
    temperatures = torch.tensor([0.3, 0.9, 0.99, 1.5, 4.0], dtype=F64)

    def update(x: torch.Tensor) -> torch.Tensor:
        return torch.tanh(x / temperatures.unsqueeze(-1))

    found = self_consistent.solve(update, torch.ones(5, 1, dtype=F64), memory=memory, steps=20_000)
    assert bool(found.converged.all())
    exact = [ising_exact.curie_weiss(float(t)) for t in temperatures]
    assert found.point.squeeze(-1).tolist() == pytest.approx(exact, abs=1e-9)


def test_a_memory_makes_slow_fixed_points_fast():
    def count(memory: int) -> int:
        calls = 0

        def update(x: torch.Tensor) -> torch.Tensor:
            nonlocal calls
            calls += 1
            return torch.tanh(1.02 * x + 0.0)

        found = self_consistent.solve(update, torch.ones(1, dtype=F64), memory=memory, steps=20_000)
        assert float(found.point) == pytest.approx(ising_exact.curie_weiss(1 / 1.02), abs=1e-9)
        return calls

    assert count(5) * 5 < count(0)


def test_replies_that_alternate_are_damped_until_they_settle():
    found = self_consistent.solve(lambda x: torch.tanh(-5 * x), torch.ones(1, dtype=F64), share=1.0)
    assert bool(found.converged) and float(found.point) == pytest.approx(0, abs=1e-11)
    assert float(self_consistent.contraction_rate(lambda x: torch.tanh(-5 * x), found.point)) == pytest.approx(5)
    assert float(self_consistent.growth(lambda x: torch.tanh(-5 * x), found.point)) == pytest.approx(-5)


def test_a_map_without_a_fixed_point_is_not_called_converged():
    found = self_consistent.solve(lambda x: x + 1, torch.zeros(1, dtype=F64), steps=100)
    assert not bool(found.converged) and float(found.residual) == 1
    with pytest.raises(NumericFault, match="parameter 0.5"):
        self_consistent.follow(lambda x, _: x + 1, [0.5], torch.zeros(1, dtype=F64), steps=100)


def test_the_jacobian_of_a_batch_is_each_rows_own():
    matrix = torch.tensor([[0.1, 0.7], [-0.3, 0.2]], dtype=F64)
    found = self_consistent.jacobian(lambda x: x @ matrix.T + x**2, torch.tensor([[1.0, 2.0], [0.5, -1.0]], dtype=F64))
    assert torch.allclose(found[0], matrix + torch.diag(torch.tensor([2.0, 4.0], dtype=F64)))
    assert torch.allclose(found[1], matrix + torch.diag(torch.tensor([1.0, -2.0], dtype=F64)))


@pytest.mark.parametrize(("temperature", "push"), [(0.6, 0.0), (1.4, 0.0), (0.9, 0.2)])
def test_a_crowd_of_two_choices_is_curie_weiss_with_its_susceptibility(temperature, push):
    signs = torch.tensor([-1.0, 1.0], dtype=F64)

    def energy(p: torch.Tensor) -> torch.Tensor:
        m = p[..., 1:] - p[..., :1]
        return -signs * (m + push)

    found = self_consistent.softmax_equilibrium(energy, temperature, torch.tensor([0.1, 0.9], dtype=F64))
    m = ising_exact.curie_weiss(temperature, push)
    assert float(found.shares[1] - found.shares[0]) == pytest.approx(m, abs=1e-10)
    # J on the tangent: beta (1 - m^2); chi = dm/dh = beta (1 - m^2)/(1 - beta (1 - m^2)).
    slope = (1 - m * m) / temperature
    assert float(found.growth) == pytest.approx(slope, abs=1e-9) and slope < 1
    # A field h lowers the energy of up and raises that of down.
    response = float(signs @ found.susceptibility @ -signs)
    assert response == pytest.approx(slope / (1 - slope), rel=1e-8)
    assert float(found.free_energy_slope.diff()) == pytest.approx(0, abs=1e-10)


def test_the_response_of_three_choices_is_what_a_small_push_does():
    worth = torch.tensor([[1.0, 0.2, -0.4], [0.1, 0.8, 0.3], [0.5, -0.2, 0.6]], dtype=F64)
    start = torch.full((3,), 1 / 3, dtype=F64)

    def at(push: torch.Tensor) -> torch.Tensor:
        return self_consistent.softmax_equilibrium(lambda p: -p @ worth.T + push, 0.5, start).shares

    found = self_consistent.softmax_equilibrium(lambda p: -p @ worth.T, 0.5, start)
    for action in range(3):
        push = torch.zeros(3, dtype=F64)
        push[action] = 1e-5
        slope = (at(push) - at(-push)) / 2e-5
        assert torch.allclose(slope, found.susceptibility[:, action], atol=1e-6)
    assert torch.allclose(found.susceptibility.sum(0), torch.zeros(3, dtype=F64), atol=1e-12)


def test_a_crowd_that_ignores_itself_is_the_gibbs_distribution():
    energy = torch.tensor([[0.0, 1.0, -0.5], [2.0, 0.3, 0.3]], dtype=F64)
    found = self_consistent.softmax_equilibrium(lambda p: energy, 0.7, torch.full((2, 3), 1 / 3, dtype=F64))
    p = torch.softmax(-energy / 0.7, -1)
    assert torch.allclose(found.shares, p, atol=1e-11) and found.growth.tolist() == [0, 0]
    assert torch.allclose(found.susceptibility[0, 0, 0], -p[0, 0] * (1 - p[0, 0]) / 0.7, atol=1e-10)


def test_the_disordered_crowd_turns_unstable_where_theory_says():
    assert self_consistent.critical_parameter(_curie_weiss, torch.zeros(1, dtype=F64), 0.1, 5.0) == pytest.approx(1)
    for q in (3, 5):
        uniform = torch.full((q,), 1 / q, dtype=F64)
        found = self_consistent.critical_parameter(lambda p, k: torch.softmax(k * p, -1), uniform, 0.5, 20.0)
        assert found == pytest.approx(q, abs=1e-9)
    with pytest.raises(ConfigError, match="does not change"):
        self_consistent.critical_parameter(_curie_weiss, torch.zeros(1, dtype=F64), 0.1, 0.5)


def test_three_choices_have_the_couplings_of_a_first_order_transition():
    found = potts.transition(3)
    assert found.equal == pytest.approx(4 * math.log(2), abs=1e-14)
    assert found.uniform_ends == 3
    # On the ordered branch at its end the growth is 1.
    p = torch.tensor([0.9, 0.05, 0.05], dtype=F64)
    above = self_consistent.solve(lambda x: torch.softmax((found.ordered_ends + 1e-4) * x, -1), p, steps=100_000)
    assert float(above.point.max()) > 0.55
    growth = self_consistent.growth(lambda x: torch.softmax((found.ordered_ends + 1e-4) * x, -1), above.point)
    assert 0.95 < float(growth) < 1
    below = self_consistent.solve(lambda x: torch.softmax((found.ordered_ends - 1e-4) * x, -1), p, steps=100_000)
    assert float(below.point.max()) == pytest.approx(1 / 3, abs=1e-6)
    # At K_c: equal free energies, and a jump from 1/q to 1 - 1/q.
    ordered = self_consistent.solve(lambda x: torch.softmax(found.equal * x, -1), p, tolerance=1e-13).point
    assert float(ordered.max()) == pytest.approx(2 / 3, abs=1e-9)
    uniform = torch.full((3,), 1 / 3, dtype=F64)
    assert float(potts.free_energy(ordered, found.equal)) == pytest.approx(
        float(potts.free_energy(uniform, found.equal)), abs=1e-12
    )
    assert potts.transition(2) == (2, 2, 2)


@pytest.mark.parametrize("q", [3, 4])
def test_annealing_up_and_down_jumps_at_the_two_spinodals(q):
    low, _, high = potts.transition(q)
    steps = 0.004
    couplings = torch.arange(low - 0.101, high + 0.1, steps, dtype=F64)
    rising, falling = potts.loop(q, couplings)
    assert float(couplings[rising.diff().argmax()]) == pytest.approx(high, abs=2 * steps)
    assert float(couplings[falling.diff().argmax() + 1]) == pytest.approx(low, abs=2 * steps)
    between = (couplings > low + steps) & (couplings < high - steps)
    assert bool((falling[between] - rising[between] > 0.2).all())
    outside = (couplings < low - steps) | (couplings > high + steps)
    assert torch.allclose(falling[outside], rising[outside], atol=1e-5)


def test_two_choices_have_no_hysteresis():
    rising, falling = potts.loop(2, torch.arange(1.52, 2.5, 0.05, dtype=F64))
    assert torch.allclose(rising, falling, atol=1e-5)


def test_bad_temperatures_and_shares_are_refused():
    with pytest.raises(ConfigError, match="temperature"):
        self_consistent.softmax_equilibrium(lambda p: p, -1.0, torch.ones(2) / 2)
    with pytest.raises(ConfigError, match="share"):
        self_consistent.solve(lambda p: p, torch.ones(2), share=0.0)
