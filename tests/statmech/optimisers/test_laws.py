"""Each annealed optimiser in a harmonic well has exactly the variance that its discrete step implies."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mfmarl.random import Key
from mfmarl.statmech.energies.continuous import DoubleWell
from mfmarl.statmech.optimisers.exchange import ReplicaExchangeSGLD
from mfmarl.statmech.optimisers.hamiltonian import SGHMC, Underdamped
from mfmarl.statmech.optimisers.langevin import SGLD, PreconditionedSGLD
from mfmarl.statmech.optimisers.local_entropy import EntropySGD
from mfmarl.statmech.optimisers.noise import ThermalOptimizer
from mfmarl.statmech.optimisers.noisy import (
    NoisySGD,
    effective_temperature,
    minibatch_temperature,
    noise_for,
)
from mfmarl.statmech.optimisers.simulated import SimulatedAnnealing
from tests.statistical import beyond, statistical

CHAINS = 40_000
Make = Callable[[nn.Parameter], ThermalOptimizer]


def _settled(make: Make, stiffness: float, steps: int, start: float = 0.0, gradient_noise: float = 0.0) -> Tensor:
    """Independent chains in stiffness x^2/2 after so many steps."""
    x = nn.Parameter(torch.full((CHAINS,), start))
    optimizer = make(x)
    other = torch.Generator().manual_seed(5)
    for _ in range(steps):
        x.grad = stiffness * x.detach() + gradient_noise * torch.randn(x.shape, generator=other)
        optimizer.step()
    return x.detach()


def _has_variance(x: Tensor, variance: float) -> None:
    found = float((x.double() ** 2).mean())
    error = variance * math.sqrt(2 / x.numel())
    assert abs(found - variance) < 5 * error, (found, variance, error)
    assert abs(float(x.double().mean())) < 5 * math.sqrt(variance / x.numel())


@pytest.mark.parametrize(("lr", "k", "temperature"), [(0.1, 1.0, 1.0), (0.8, 2.0, 0.3), (0.05, 4.0, 5.0)])
def test_langevin_descent_has_its_biased_variance(lr: float, k: float, temperature: float):
    x = _settled(lambda p: SGLD([p], lr, temperature, key=Key.of(1)), k, 100)
    _has_variance(x, temperature / (k * (1 - lr * k / 2)))


def test_weight_decay_is_a_gaussian_prior():
    x = _settled(lambda p: SGLD([p], 0.1, key=Key.of(2), weight_decay=0.5), 0.5, 100)
    _has_variance(x, 1 / (1 - 0.05))


def test_preconditioned_langevin_with_a_settled_metric_has_the_variance_of_its_own_step():
    lr, k = 0.5, 2.0
    x = nn.Parameter(torch.linspace(0.5, 3, CHAINS))  # whose first gradient is the metric, as nothing is forgotten
    metric = 1 / (k * x.detach() + 1e-5)
    optimizer = PreconditionedSGLD([x], lr, key=Key.of(3), decay=1.0)
    for _ in range(200):
        x.grad = k * x.detach()
        optimizer.step()
    _has_variance(x.detach() * (k * (1 - lr * metric * k / 2)).sqrt(), 1.0)


@pytest.mark.parametrize("noise", [0.0, 0.5])
def test_sghmc_has_its_variance_whether_or_not_the_gradient_is_noisy(noise: float):
    lr, k, friction, temperature = 0.2, 1.0, 0.3, 0.7
    make = lambda p: SGHMC(  # noqa: E731
        [p], lr, temperature, key=Key.of(4), friction=friction, gradient_variance=noise**2
    )
    x = _settled(make, k, 150, gradient_noise=noise)
    _has_variance(x, temperature / (k * (1 - lr * k / (2 * (2 - friction)))))


def test_baoab_has_the_exact_variance_at_a_large_step():
    x = _settled(lambda p: Underdamped([p], 1.5, 2.0, key=Key.of(5), friction=0.5), 1.0, 100)
    _has_variance(x, 2.0)


def test_baoab_without_friction_keeps_the_energy_of_its_shadow():
    h = 0.3
    x = nn.Parameter(torch.tensor([1.0], dtype=torch.float64))
    optimizer = Underdamped([x], h, 0.0, key=Key.of(6), friction=0.0)
    shadow = []
    for _ in range(200):
        x.grad = x.detach().clone()
        optimizer.step()
        v = optimizer.state[x]["velocity"]  # at the middle of the kick to come
        centred = v - h / 2 * x.detach()
        shadow.append(float(centred**2 + (1 - h * h / 4) * x.detach() ** 2))
    assert max(shadow) - min(shadow) < 1e-12


@pytest.mark.parametrize("momentum", [0.0, 0.8])
def test_a_fixed_noise_is_a_temperature(momentum: float):
    lr, noise, k = 0.1, 0.2, 1.5
    optimizers = []

    def make(p: nn.Parameter) -> ThermalOptimizer:
        optimizers.append(NoisySGD([p], lr, key=Key.of(7), noise=noise, momentum=momentum))
        return optimizers[0]

    x = _settled(make, k, 200)
    temperature = optimizers[0].param_groups[0]["temperature"]
    assert temperature == pytest.approx(noise**2 / (2 * lr) / (1 - momentum))
    _has_variance(x, temperature / (k * (1 - lr * k / (2 * (1 + momentum)))))
    again = _settled(lambda p: NoisySGD([p], lr, key=Key.of(7), temperature=temperature, momentum=momentum), k, 200)
    torch.testing.assert_close(again, x)


def test_a_noisy_gradient_without_other_noise_heats_as_its_formula_says():
    lr, k, c, batch = 0.2, 1.0, 4.0, 16
    x = _settled(lambda p: NoisySGD([p], lr, key=Key.of(8)), k, 100, gradient_noise=math.sqrt(c / batch))
    _has_variance(x, minibatch_temperature(lr, c, batch) / (k * (1 - lr * k / 2)))
    assert effective_temperature(0.01, 0.1) == pytest.approx(0.5)
    assert noise_for(0.01, 0.5) == pytest.approx(0.1)


def test_metropolis_moves_of_weights_leave_the_gibbs_distribution():
    x = nn.Parameter(torch.zeros(CHAINS, 2))
    k, temperature = torch.tensor([1.0, 4.0]), 0.5
    optimizer = SimulatedAnnealing([x], 1.0, temperature, key=Key.of(9), share=0.7)
    for _ in range(150):
        optimizer.step(lambda: (k * x * x / 2).sum(-1))
    for i in range(2):
        _has_variance(x.detach()[:, i], temperature / float(k[i]))
    assert 0.1 < float(optimizer.acceptance) < 0.9


def _exchanged(noise: float, known: float) -> Tensor:
    """Two replicas in x^2/2 whose swaps see energies with that noise and correct for `known`."""
    lr, temperatures = 0.2, (0.5, 2.0)
    x = nn.Parameter(torch.zeros(2, CHAINS))
    optimizer = ReplicaExchangeSGLD([x], lr, temperatures, key=Key.of(10), loss_variance=known**2)
    other = torch.Generator().manual_seed(6)

    def closure() -> Tensor:
        x.grad = x.detach().clone()
        # The energy for which a finite step is exact, so that the swaps are judged and not the step.
        return (1 - lr / 2) * x.detach() ** 2 / 2 + noise * torch.randn(x.shape, generator=other)

    for _ in range(120):
        optimizer.step(closure)
    assert 0.1 < float(optimizer.accepted / optimizer.attempted) < 0.9
    return x.detach() / torch.tensor(temperatures).sqrt().unsqueeze(-1) * math.sqrt(1 - lr / 2)


@pytest.mark.parametrize("noise", [0.0, 0.8])
def test_exchange_leaves_every_replica_its_temperature_with_noisy_energies_too(noise: float):
    for replica in _exchanged(noise, noise):
        _has_variance(replica, 1.0)


def test_exchange_with_noisy_energies_is_wrong_without_the_correction():
    x = _exchanged(0.8, 0.0)
    assert float((x[0].double() ** 2).mean()) > 1 + 10 * math.sqrt(2 / CHAINS)


@statistical(alpha=beyond(5, 200), bugs=("wide-thermal-noise", "shifted-thermal-noise"))
def test_three_replicas_swap_in_turn_and_keep_their_laws():
    lr, temperatures = 0.2, (1.0, 2.0, 4.0)
    x, y = nn.Parameter(torch.zeros(3, CHAINS)), nn.Parameter(torch.zeros(3, CHAINS, 1))
    rates = (0.2, 0.2, 0.2)
    optimizer = ReplicaExchangeSGLD([x, y], rates, temperatures, key=Key.of(11), swap_every=2)

    def closure() -> Tensor:
        x.grad, y.grad = x.detach().clone(), y.detach().clone()
        return (1 - lr / 2) * (x.detach() ** 2 + y.detach().squeeze(-1) ** 2) / 2

    for _ in range(80):
        optimizer.step(closure)
    assert optimizer.attempted.tolist() == [20 * CHAINS, 20 * CHAINS]
    for r, temperature in enumerate(temperatures):
        _has_variance(x.detach()[r], temperature / (1 - lr / 2))
        _has_variance(y.detach()[r, :, 0], temperature / (1 - lr / 2))
        assert abs(float((x.detach()[r] * y.detach()[r, :, 0]).mean())) < 5 * temperature / (1 - lr / 2) / math.sqrt(
            CHAINS
        )


def test_replicas_may_stride_at_rates_of_their_own():
    x = nn.Parameter(torch.zeros(2, CHAINS))
    # Nearly equal temperatures far from the swaps' reach: the rates alone are judged.
    optimizer = ReplicaExchangeSGLD([x], (0.1, 0.8), (1.0, 1.0), key=Key.of(12), swap_every=1_000_000)

    def closure() -> Tensor:
        x.grad = x.detach().clone()
        return x.detach() ** 2 / 2

    for _ in range(100):
        optimizer.step(closure)
    _has_variance(x.detach()[0], 1 / 0.95)
    _has_variance(x.detach()[1], 1 / 0.6)


def test_the_local_free_energy_of_a_parabola_has_the_slope_it_should():
    k, scope, lr = 2.0, 3.0, 0.1
    x = nn.Parameter(torch.full((CHAINS,), 1.5))
    optimizer = EntropySGD([x], lr, 0.2, key=Key.of(13), scope=scope, inner_steps=150, burn_in=50, average=0.9)

    def closure() -> Tensor:
        x.grad = k * x.detach()
        return (k * x.detach() ** 2 / 2).sum()

    first = optimizer.step(closure)
    assert float(first) == pytest.approx(CHAINS * k * 1.5**2 / 2)
    moved = x.detach().double()
    expected = 1.5 * (1 - lr * scope * k / (scope + k))
    assert abs(float(moved.mean()) - expected) < 5 * float(moved.std()) / math.sqrt(CHAINS)
    assert float(moved.std()) < 0.1


@statistical(alpha=beyond(5, 200), bugs=("wide-thermal-noise", "shifted-thermal-noise"))
def test_the_popular_double_well_demonstration_ends_in_the_global_well_as_rarely_as_its_exact_chain():
    """x^4 - 4 x^2 + x, lr .01, noise .1, 2,000 steps from x = 2: 13.417773 % (the chain's exact kernel)."""
    runs, well = 20_000, DoubleWell()
    x = nn.Parameter(torch.full((runs, 1), 2.0))
    optimizer = NoisySGD([x], 0.01, key=Key.of(14), noise=0.1)
    for _ in range(2000):
        x.grad = well.gradient(x.detach())
        optimizer.step()
    share = float((x < well.stationary_points[1]).double().mean())
    assert abs(share - 0.13417773) < 5 * math.sqrt(0.13417773 * 0.86582227 / runs)


def test_descent_without_temperature_is_descent():
    def path(make: Any) -> Tensor:
        x = nn.Parameter(torch.tensor([2.0, -1.0]))
        optimizer = make([x])
        for _ in range(5):
            x.grad = 3 * x.detach()
            optimizer.step()
        return x.detach()

    plain = path(lambda p: torch.optim.SGD(p, 0.1))
    torch.testing.assert_close(path(lambda p: SGLD(p, 0.1, 0.0, key=Key.of(1))), plain)
    torch.testing.assert_close(path(lambda p: NoisySGD(p, 0.1, key=Key.of(1))), plain)
    torch.testing.assert_close(path(lambda p: SGHMC(p, 0.1, 0.0, friction=1.0, key=Key.of(1))), plain)
    heavy = path(lambda p: torch.optim.SGD(p, 0.1, momentum=0.9))
    torch.testing.assert_close(path(lambda p: SGHMC(p, 0.1, 0.0, friction=0.1, key=Key.of(1))), heavy)


def test_torchs_own_averages_and_schedules_of_the_rate_serve_them():
    """The average of a Langevin chain by torch.optim.swa_utils is the posterior's mean; its schedulers set `lr`."""
    model = nn.Linear(1, CHAINS // 10, bias=False)
    average = torch.optim.swa_utils.AveragedModel(model)
    optimizer = SGLD(model.parameters(), 0.5, 0.3, key=Key.of(15))
    rates = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 400, eta_min=0.1)
    w = model.weight
    for step in range(400):
        w.grad = w.detach() - 2
        optimizer.step()
        rates.step()
        if step >= 50:
            average.update_parameters(model)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.1)
    found = next(average.parameters()).detach().double()
    assert abs(float(found.mean()) - 2) < 5 * float(found.std()) / math.sqrt(found.numel())
    assert float(found.std()) < 0.3 * float(w.detach().std())
