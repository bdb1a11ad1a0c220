"""Annealed importance sampling and driven systems: exact moments of the weights, and exact Gaussian work."""

from __future__ import annotations

import math

import pytest
import torch

from mfmarl import random
from mfmarl.errors import ConfigError
from mfmarl.random import Key
from mfmarl.statmech.energies import graphs, spins
from mfmarl.statmech.energies.continuous import Gaussian
from mfmarl.statmech.exact import dragged_trap
from mfmarl.statmech.free_energy import perturbation, work
from mfmarl.statmech.sampling import hamiltonian, langevin, noise, single_spin
from tests.statistical import beyond, statistical


def all_states(n: int) -> torch.Tensor:
    return torch.cartesian_prod(*[torch.tensor([-1.0, 1.0], dtype=torch.float64)] * n)


def heat_bath_kernel(system: spins.Ising, states: torch.Tensor, beta: float) -> torch.Tensor:
    """P[from, to] of a sweep over the colours, from the definition of a conditional distribution."""
    weight = torch.exp(-beta * system(states))
    kernel = torch.eye(len(states), dtype=torch.float64)
    for colour in range(int(system.colours.max()) + 1):
        free = system.colours == colour
        same = (states[:, None, ~free] == states[None, :, ~free]).all(-1).double()
        kernel = kernel @ (same * weight / (same * weight).sum(1, keepdim=True))
    return kernel


@statistical(alpha=beyond(5, 5), bugs=("hot-heat-bath", "log-weight-off"))
def test_the_moments_of_annealed_weights_are_those_of_the_exact_chain():
    """Ring of eight: the law of the weights by carrying <1>, <w>, <w^2>, <e^-w>, <e^-2w> of each of 256 states."""
    system = spins.ising(graphs.torus(8), 8)
    states = all_states(8)
    energy, betas = system(states), torch.linspace(0, 1.2, 7, dtype=torch.float64)
    law = torch.full((256,), 1 / 256, dtype=torch.float64)
    one, first, second, weight, square = law, 0 * law, 0 * law, law, law
    for a, b in zip(betas[:-1].tolist(), betas[1:].tolist(), strict=True):
        step = (b - a) * energy
        second = second + 2 * step * first + step**2 * one
        first = first + step * one
        weight, square = weight * (-step).exp(), square * (-2 * step).exp()
        kernel = heat_bath_kernel(system, states, b)
        one, first, second, weight, square = (v @ kernel for v in (one, first, second, weight, square))
    ratio = float((-1.2 * energy).exp().mean())
    assert float(weight.sum()) == pytest.approx(ratio, rel=1e-12)  # Jarzynski, exactly

    n = 40_000
    start = system.random_states((n,), Key.of(0))
    found = work.anneal(system, single_spin.heat_bath(system), start, betas, Key.of(1))
    w = found.work
    mean, variance = float(first.sum()), float(second.sum() - first.sum() ** 2)
    assert abs(float(w.mean()) - mean) < 5 * math.sqrt(variance / n)
    spread = (w - w.mean()).square()
    assert abs(float(spread.mean()) - variance) < 5 * float(spread.std()) / math.sqrt(n)
    estimate = work.jarzynski(w)
    assert abs(float(estimate.value) - math.log(ratio)) < 5 * float(estimate.error)
    exact_error = math.sqrt((float(square.sum()) / ratio**2 - 1) / n)
    assert float(estimate.error) == pytest.approx(exact_error, rel=0.1)
    assert float(estimate.ess) / n == pytest.approx(ratio**2 / float(square.sum()), rel=0.1)
    dissipation = work.dissipated(w, math.log(ratio))
    assert float(dissipation) > 0 and abs(float(dissipation) - mean - math.log(ratio)) < 5 * math.sqrt(variance / n)
    # Where the chains end, the weights mend what the chains lack.
    p = torch.softmax(-1.2 * energy, 0)
    plain, weighted = system(found.x).mean(), found.average(system(found.x))
    assert abs(float(weighted - p @ energy)) < 0.05 < abs(float(plain - p @ energy))


@statistical(alpha=beyond(5, 2, samples=200), bugs=("hot-heat-bath", "log-weight-off"))
def test_error_bars_of_annealed_importance_sampling_are_right():
    system = spins.sherrington_kirkpatrick(10, Key.of(3))
    log_ratio = math.log(float((-system(all_states(10))).exp().mean()))
    replications, n = 200, 300
    ids = torch.arange(replications * n).reshape(replications, n)
    start = system.random_states((replications, n), Key.of(4))
    betas = torch.linspace(0, 1, 11, dtype=torch.float64)
    w = work.anneal(system, single_spin.heat_bath(system), start, betas, Key.of(5), ids=ids).work
    found = work.jarzynski(w)
    z = (found.value - found.bias - log_ratio) / found.error
    assert abs(float(z.mean())) < 5 / math.sqrt(replications)
    square = (z - z.mean()).square()
    assert abs(float(square.mean()) - 1) < 5 * float(square.std()) / math.sqrt(replications)
    assert float(found.bias.max()) < 0


@statistical(alpha=beyond(5, 2, samples=32), bugs=("hot-heat-bath", "log-weight-off"))
def test_the_partition_function_of_a_small_restricted_boltzmann_machine():
    """Six visible and four hidden spins, couplings between the two kinds only."""
    couplings = noise.normal(Key.of(2), torch.arange(6), 4, torch.float64)
    pairs = torch.cartesian_prod(torch.arange(6), torch.arange(6, 10))
    fields = noise.normal(Key.of(3), torch.arange(1), 10, torch.float64)[0]
    machine = spins.Ising(pairs, couplings.flatten(), fields)
    exact = math.log(float((-machine(all_states(10))).exp().sum()))
    start = machine.random_states((4000,), Key.of(0))
    w = work.anneal(
        machine, single_spin.heat_bath(machine), start, torch.linspace(0, 1, 21, dtype=torch.float64), Key.of(1)
    ).work
    found = work.jarzynski(w)
    assert abs(float(found.value) + 10 * math.log(2) - exact) < 5 * float(found.error)
    assert float(found.error) < 0.03


@pytest.mark.parametrize("kind", ["mala", "hmc"])
@statistical(alpha=beyond(5, 6, samples=32), bugs=("wide-sampler-noise", "log-weight-off"))
def test_continuous_systems_are_annealed_by_the_same_function(kind):
    prior = Gaussian(torch.zeros(3).double(), torch.eye(3).double())
    matrix = torch.tensor([[4.0, 1.0, 0.0], [1.0, 3.0, -1.0], [0.0, -1.0, 2.0]]).double()
    posterior = Gaussian(torch.tensor([1.0, -0.5, 0.3]).double(), matrix)
    path = work.between(prior, posterior)

    def sweep_at(level: float):
        return langevin.mala(path(level), 0.15) if kind == "mala" else hamiltonian.hmc(path(level), 0.4, 3)

    start = noise.normal(Key.of(0), torch.arange(3000), 3, torch.float64)
    levels = torch.linspace(0, 1, 15, dtype=torch.float64)
    forth = work.drive(path, sweep_at, start, levels, Key.of(1))
    exact = float(posterior.log_partition() - prior.log_partition())
    found = work.jarzynski(forth.work)
    assert abs(float(found.value) - exact) < 5 * float(found.error)
    end = (
        posterior.mean
        + noise.normal(Key.of(2), torch.arange(3000), 3, torch.float64) @ torch.linalg.cholesky(posterior.covariance).T
    )
    back = work.drive(path, sweep_at, end, levels.flip(0), Key.of(3))
    both = work.crooks(forth.work, back.work)
    assert abs(float(both.value) - exact) < 5 * float(both.error) and both.error < found.error
    backward = work.jarzynski(back.work)
    assert abs(float(backward.value) + exact) < 5 * float(backward.error)


def drag(n: int, steps: int, time: float, key: Key, back: bool = False) -> torch.Tensor:
    """Reduced work of a trap of stiffness 2 dragged from 0 to 1.5 (or back) at T = .8, from equilibrium."""
    k, distance, temperature = 2.0, 1.5, 0.8
    beta = 1 / temperature
    ends = torch.linspace(0, distance, steps + 1, dtype=torch.float64)
    ends = ends.flip(0) if back else ends
    start = float(ends[0]) + math.sqrt(temperature / k) * noise.normal(key.fold("start"), torch.arange(n), 1).double()

    def energy_at(centre: float):
        return lambda x: k / 2 * (x[..., 0] - centre) ** 2

    return work.drive(
        energy_at, lambda centre: dragged_trap.relaxation(k, centre, time / steps), start, ends, key, beta
    ).work


@pytest.mark.parametrize(("steps", "time"), [(1, 1.0), (6, 0.5), (40, 3.0)])
@statistical(alpha=beyond(5, 10), bugs=("wide-sampler-noise", "steps-share-noise"))
def test_the_work_of_dragging_a_trap_is_the_exact_gaussian(steps, time):
    n, temperature = 20_000, 0.8
    exact = dragged_trap.stepwise(2.0, 1.5, time, temperature, steps)
    assert exact.variance == pytest.approx(2 * temperature * exact.mean, rel=1e-12)  # Jarzynski for a Gaussian
    w = drag(n, steps, time, Key.of(steps)) * temperature
    assert abs(float(w.mean()) - exact.mean) < 5 * math.sqrt(exact.variance / n)
    assert abs(float(w.var()) / exact.variance - 1) < 5 * math.sqrt(2 / n)
    cube = ((w - w.mean()) / w.std()) ** 3
    assert abs(float(cube.mean())) < 5 * math.sqrt(15 / n)  # E z^6 = 15


def test_small_jumps_approach_the_trap_that_never_rests():
    smooth = dragged_trap.continuous(2.0, 1.5, 3.0, 0.8)
    gaps = [dragged_trap.stepwise(2.0, 1.5, 3.0, 0.8, n).mean - smooth.mean for n in (100, 200, 400)]
    assert gaps[0] > 0 and gaps[1] == pytest.approx(gaps[0] / 4, rel=0.02) == gaps[2] * 4
    assert dragged_trap.continuous(2.0, 1.5, 1e-9, 0.8).mean == pytest.approx(
        1.5**2, rel=1e-6
    )  # k L^2/2: a sudden jump
    assert dragged_trap.continuous(2.0, 1.5, 1e6, 0.8).mean < 1e-5  # slow enough is reversible
    assert smooth.variance == 2 * 0.8 * smooth.mean


def test_a_sudden_drag_and_its_reverse_obey_crooks():
    n = 30_000
    forth, back = drag(n, 4, 0.4, Key.of(1)), drag(n, 4, 0.4, Key.of(2), back=True)
    found = work.crooks(forth, back)
    assert abs(float(found.value)) < 5 * float(found.error) and float(found.error) < 0.02
    # P_F(w) = P_R(-w) e^w: the mean of any bounded function over one is a weighted mean over the other.
    ahead, behind = torch.sigmoid(-forth), torch.sigmoid(back) * torch.exp(-back)
    error = math.sqrt(float(ahead.var() + behind.var()) / n)
    assert abs(float(ahead.mean() - behind.mean())) < 5 * error


def test_annealing_too_fast_is_warned_of_with_the_effective_sample_size():
    system = spins.ising(graphs.torus(8, 8), 64)
    start = system.random_states((200,), Key.of(0))
    found = work.anneal(system, single_spin.heat_bath(system), start, torch.tensor([0.0, 1.0]), Key.of(0))
    with pytest.warns(perturbation.PoorOverlap, match="ESS of 1"):
        estimate = work.jarzynski(found.work)
    assert float(estimate.bias) < 0


def test_a_chain_does_not_know_how_many_chains_are_annealed():
    system = spins.ising(graphs.torus(8), 8)
    start, betas = system.random_states((20,), Key.of(0)), torch.linspace(0, 1, 4)
    sweep = single_spin.heat_bath(system)
    whole = work.anneal(system, sweep, start, betas, Key.of(1), sweeps=2).work
    part = work.anneal(system, sweep, start[5:8], betas, Key.of(1), sweeps=2, ids=torch.arange(5, 8)).work
    assert torch.equal(whole[5:8], part)


def test_paths_that_lead_nowhere_are_refused():
    system = spins.ising(graphs.torus(8), 8)
    sweep, start = single_spin.heat_bath(system), system.random_states((20,), Key.of(0))
    with pytest.raises(ConfigError, match="its two ends"):
        work.anneal(system, sweep, start, torch.tensor([1.0]), Key.of(0))
    with pytest.raises(ConfigError, match="at least 0"):
        work.anneal(system, sweep, start, torch.tensor([0.0, -1.0]), Key.of(0))
    with pytest.raises(ConfigError, match="at least one sweep"):
        work.anneal(system, sweep, start, torch.tensor([0.0, 1.0]), Key.of(0), sweeps=0)
    with pytest.raises(ConfigError, match="stiffness above 0"):
        dragged_trap.continuous(0.0, 1.0, 1.0, 1.0)
    assert float(random.uniform(Key.of(0), torch.tensor(1))) > 0
