"""Fluctuation and response: against enumeration, against fields that are really switched on, in and out of equilibrium."""

from __future__ import annotations

import math

import pytest
import torch

from mfmarl.errors import ConfigError
from mfmarl.random import Key
from mfmarl.statmech import response
from mfmarl.statmech.energies import graphs, spins
from mfmarl.statmech.energies.losses import LossEnergy, half_squares
from mfmarl.statmech.exact import dragged_trap
from mfmarl.statmech.sampling import chains, hamiltonian, noise, single_spin
from tests.statistical import beyond, statistical


def all_states(n: int) -> torch.Tensor:
    return torch.cartesian_prod(*[torch.tensor([-1.0, 1.0], dtype=torch.float64)] * n)


def exact(system: spins.Ising, beta: float) -> tuple[float, float, float]:
    """<M>, beta Var M, beta^2 Var E by enumeration."""
    s = all_states(system.num_spins)
    energy, m = system(s), s.sum(-1)
    p = torch.softmax(-beta * energy, 0)
    mean, u = p @ m, p @ energy
    return float(mean), float(beta * (p @ m**2 - mean**2)), float(beta**2 * (p @ energy**2 - u**2))


@pytest.mark.parametrize(
    ("pairs", "n", "field", "beta"),
    [(graphs.torus(8), 8, 0.0, 0.6), (graphs.torus(8), 8, 0.3, 0.9), (graphs.torus(4, 4), 16, 0.2, 0.4)],
)
@statistical(alpha=beyond(5, 20, samples=32), bugs=("hot-heat-bath", "covariance-off"))
def test_fluctuations_differences_and_enumeration_agree(pairs, n, field, beta):
    step, small = 0.06, 1e-4

    def sampled(h: float) -> tuple[torch.Tensor, torch.Tensor]:
        system = spins.ising(pairs, n, 1.0, h)
        start = system.random_states((400,), Key.of(0))
        _, seen = chains.run(
            single_spin.heat_bath(system),
            start,
            beta,
            Key.of(1),
            150,
            lambda s: torch.stack([s.sum(-1), system(s)], -1),
            warm_up=40,
        )
        return seen[..., 0], seen[..., 1]

    m, energy = sampled(field)
    _, chi, heat = exact(spins.ising(pairs, n, 1.0, field), beta)

    def enumerated(d: float) -> float:
        above, below = (exact(spins.ising(pairs, n, 1.0, h), beta)[0] for h in (field + d, field - d))
        return (above - below) / (2 * d)

    assert enumerated(small) == pytest.approx(chi, rel=1e-6)  # the theorem itself, to the order of d^2
    found = response.susceptibility(m / n, beta, n)
    assert abs(float(found.value) - chi / n) < 5 * float(found.error) < 0.3 * chi / n
    capacity = response.heat_capacity(energy, beta)
    assert abs(float(capacity.value) - heat) < 5 * float(capacity.error) < 0.3 * heat
    direct = response.finite_difference(sampled(field + step)[0], sampled(field - step)[0], step)
    assert abs(float(direct.value) - enumerated(step)) < 5 * float(direct.error) < 0.6 * chi
    total = response.response(m, m, beta)
    # The two agree but for the curvature of <M> over the step; a factor of two would be seen.
    curved = direct._replace(value=direct.value - enumerated(step) + chi)
    assert abs(float(response.agree(total, curved))) < 5
    assert abs(float(response.agree(total._replace(value=2 * total.value), curved))) > 5


@statistical(alpha=beyond(5, 20, samples=300), bugs=("covariance-off", "covariance-error-tiny"))
def test_the_error_of_a_susceptibility_is_right_over_replications():
    """Independent draws of the ring's exact law: chi of 300 data sets scatters as each says of itself."""
    system, beta = spins.ising(graphs.torus(8), 8, 1.0, 0.1), 0.5
    states = all_states(8)
    p = torch.softmax(-beta * system(states), 0)
    m = states.sum(-1)[torch.multinomial(p, 300 * 640, replacement=True, generator=torch.Generator().manual_seed(0))]
    chi = exact(system, beta)[1]
    z = []
    for part in m.reshape(300, 640, 1):
        found = response.response(part, part, beta)
        z.append((found.value - chi) / found.error)
    scores = torch.stack(z)
    square = scores.square()
    assert abs(float(square.mean()) - 1 - 2 / 31) < 5 * float(square.std()) / math.sqrt(300)  # 32 blocks: t of 31
    assert abs(float(scores.mean())) < 5 / math.sqrt(300) + 0.1


@statistical(alpha=beyond(5, 20, samples=32), bugs=("covariance-off", "covariance-error-tiny"))
def test_a_matrix_of_responses_is_symmetric_and_holds_the_single_ones():
    x = noise.normal(Key.of(0), torch.arange(64 * 20), 3, torch.float64).reshape(20, 64, 3)
    x[..., 1] += 0.8 * x[..., 0]
    table = response.response_matrix(x, 2.0)
    assert torch.allclose(table.value, table.value.mT) and table.error.shape == (3, 3)
    one = response.response(x[..., 0], x[..., 1], 2.0)
    assert float(table.value[0, 1]) == pytest.approx(float(one.value), rel=1e-9)
    assert float(table.error[0, 1]) == pytest.approx(float(one.error), rel=1e-9)
    assert abs(float(one.value) - 1.6) < 5 * float(one.error)


def trap(field: float, steps: int, count: int, k: float, temperature: float, interval: float, scale: float = 1.0):
    """x [steps + 1, count] of Ornstein-Uhlenbeck chains at equilibrium (times `scale`), a force switched on at once."""
    ids = torch.arange(count)
    x = scale * math.sqrt(temperature / k) * noise.normal(Key.of(9), ids, 1, torch.float64)
    _, seen = chains.run(dragged_trap.relaxation(k, field / k, interval), x, 1 / temperature, Key.of(4), steps)
    return torch.cat([x.unsqueeze(0), seen]).squeeze(-1)


@statistical(alpha=beyond(5, 20, samples=32), bugs=("wide-sampler-noise", "steps-share-noise"))
def test_the_fluctuation_dissipation_theorem_of_an_ornstein_uhlenbeck_process():
    k, temperature, interval, lags = 1.5, 0.7, 0.2, 12
    free, pushed = (trap(f, 100, 600, k, temperature, interval) for f in (0.0, 0.3))
    t = interval * torch.arange(lags)
    exact_chi = (1 - torch.exp(-k * t)) / k
    by_fluctuation = response.integrated_from_correlation(free, free, lags, 1 / temperature)
    assert bool(((by_fluctuation.value - exact_chi).abs() <= 5 * by_fluctuation.error + 1e-12).all())
    assert float(by_fluctuation.error.max()) < 0.05
    # The same noise with and without a force: in a linear system the difference is exact.
    by_force = response.integrated_response(pushed, free, 0.3)
    assert torch.allclose(by_force.value[:lags], exact_chi.double(), atol=1e-6)
    c = response.correlation(free, free, lags)
    assert bool(((c.value - temperature / k * torch.exp(-k * t)).abs() < 5 * c.error).all())
    # R = -beta dC/dt, on the exact correlation: e^-kt to the order of the interval squared.
    fine = 0.01 * torch.arange(200).double()
    impulse = response.impulse_from_correlation(temperature / k * torch.exp(-k * fine), 1 / temperature, 0.01)
    assert torch.allclose(impulse[1:-1], torch.exp(-k * fine)[1:-1], rtol=1e-3)


def test_equal_temperatures_violate_nothing_and_a_hot_start_is_seen():
    k, temperature = 1.5, 0.7
    chi = response.integrated_response(
        trap(0.3, 20, 2000, k, temperature, 0.2), trap(0, 20, 2000, k, temperature, 0.2), 0.3
    )
    calm, hot = (
        response.correlation(trap(0.0, 400, 300, k, t, 0.2), trap(0.0, 400, 300, k, t, 0.2), 21) for t in (0.7, 2.1)
    )
    assert float(response.violation(chi.value, calm.value, 1 / temperature)) == pytest.approx(1, abs=0.05)
    # Fluctuations of a bath three times as hot as the response believes: X = 1/3.
    assert float(response.violation(chi.value, hot.value, 1 / temperature)) == pytest.approx(1 / 3, abs=0.03)


def test_a_tilted_loss_moves_a_networks_output_by_its_fluctuation_over_the_weights():
    """A network of 7 weights at T = .5: d<f>/dh of L - h f, by sampling with h and -h, and by beta Var f."""
    network = torch.nn.Sequential(torch.nn.Linear(1, 2), torch.nn.Tanh(), torch.nn.Linear(2, 1)).double()
    inputs = torch.linspace(-1, 1, 6).double().unsqueeze(-1)
    loss = LossEnergy(network, half_squares, inputs, torch.sin(2 * inputs), 1.0)
    probe, beta, step = torch.tensor([[0.4]]).double(), 2.0, 0.15

    def output(w: torch.Tensor) -> torch.Tensor:
        return loss.outputs(w, probe).squeeze(-1).squeeze(-1)

    def sampled(h: float) -> torch.Tensor:
        def tilted(w: torch.Tensor) -> torch.Tensor:
            return loss(w) - h * output(w)

        start = noise.normal(Key.of(1), torch.arange(400), loss.size, torch.float64)
        sweep = hamiltonian.hmc(tilted, 0.25, 5)
        return chains.run(sweep, start, beta, Key.of(2), 25, output, warm_up=20)[1]

    fluctuation = response.response(sampled(0.0), sampled(0.0), beta)
    direct = response.finite_difference(sampled(step), sampled(-step), step)
    assert abs(float(response.agree(fluctuation, direct))) < 5
    assert float(direct.error) < 0.1 * float(direct.value) and float(fluctuation.error) < 0.1 * float(fluctuation.value)


def test_what_has_no_response_is_refused():
    with pytest.raises(ConfigError, match="equally many"):
        response.covariance(torch.zeros(5, 4), torch.zeros(5, 3))
    with pytest.raises(ConfigError, match="at least 0"):
        response.susceptibility(torch.zeros(50, 4), -1.0, 4)
    with pytest.raises(ConfigError, match="too few"):
        response.covariance(torch.zeros(2, 1), torch.zeros(2, 1))
    with pytest.raises(ConfigError, match="field other than 0"):
        response.integrated_response(torch.zeros(5, 2), torch.zeros(5, 2), 0.0)
    with pytest.raises(ConfigError, match="at least 4 chains"):
        response.correlation(torch.zeros(5, 2), torch.zeros(5, 2), 3)
    with pytest.raises(ConfigError, match="does not fall"):
        response.violation(torch.arange(3.0), torch.ones(3), 1.0)


@statistical(alpha=beyond(5, 200), bugs=("covariance-error-tiny", "jackknife-error-tiny"))
def test_errors_hold_where_the_memory_is_long() -> None:
    """AR(1) with a memory of 39 steps, eight chains of 1,000: the z-scores of its variance have variance one."""
    trials, steps, rho = 150, 1000, 0.95
    g = torch.Generator().manual_seed(3)
    x = torch.randn(trials, 8, generator=g, dtype=torch.float64)
    series = []
    for _ in range(steps):
        x = rho * x + (1 - rho**2) ** 0.5 * torch.randn(trials, 8, generator=g, dtype=torch.float64)
        series.append(x)
    z = []
    for trial in torch.stack(series).unbind(1):
        found = response.susceptibility(trial, 1.0, 1)
        z.append(float((found.value - 1) / found.error))
    rms = float(torch.tensor(z).square().mean().sqrt())
    # Errors from eight blocks spread by a quarter themselves, so that z has tails: about 1.2; with short blocks 2 and more.
    assert 0.8 < rms < 1.6
