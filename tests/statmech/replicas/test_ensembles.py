"""Replicated ensembles: coupled Gaussians in closed form, identities of uncertainty, a spread that knows its error."""

from __future__ import annotations

import math

import pytest
import torch

from mfmarl import random
from mfmarl.errors import ConfigError
from mfmarl.random import Key
from mfmarl.statmech import information
from mfmarl.statmech.energies.continuous import DoubleWell, Gaussian
from mfmarl.statmech.replicas import ensembles
from mfmarl.statmech.sampling.chains import chain_ids
from mfmarl.statmech.sampling.langevin import mala
from tests.statistical import beyond, statistical


def _noise(seed: int, *shape: int) -> torch.Tensor:
    return random.normal(Key.of(seed), torch.arange(math.prod(shape)).reshape(shape)).double()


def test_coupled_gaussians_are_a_gaussian_of_known_precision():
    gauss = Gaussian(torch.tensor([0.3, -1.0]).double(), torch.tensor([[2.0, 0.5], [0.5, 1.0]]).double())
    replicas, gamma = 3, 1.7
    coupled = ensembles.Replicated(gauss, replicas, gamma)
    one = torch.eye(replicas, dtype=torch.float64)
    precision = torch.kron(one, gauss.precision) + torch.kron(
        gamma * (one - 1 / replicas), torch.eye(2, dtype=torch.float64)
    )
    joint = Gaussian(gauss.mean.repeat(replicas), precision)
    x = _noise(1, 5, 4, 6)
    assert torch.allclose(coupled(x), joint(x), atol=1e-12)
    assert torch.allclose(coupled.gradient(x), joint.gradient(x), atol=1e-12)


@statistical(alpha=beyond(5, 2), bugs=("wide-sampler-noise", "uniforms-lean"))
def test_sampled_replicas_are_drawn_together_by_their_coupling():
    gauss = Gaussian(torch.zeros(1).double(), torch.ones(1, 1).double())
    replicas, gamma, chains = 4, 3.0, 4000
    coupled = ensembles.Replicated(gauss, replicas, gamma)
    sweep, x = mala(coupled, 0.4, 30), _noise(2, chains, replicas)
    x = sweep(x, 1.0, chain_ids((chains,)), Key.of(3))
    # Deviations from the mean have variance 1/(1 + gamma); the mean itself 1/R.
    away = x - x.mean(-1, keepdim=True)
    spread = away.square().sum(-1) / (replicas - 1)
    assert abs(float(spread.mean()) - 1 / (1 + gamma)) < 5 * float(spread.std()) / math.sqrt(chains)
    square = x.mean(-1).square()
    assert abs(float(square.mean()) - 1 / replicas) < 5 * float(square.std()) / math.sqrt(chains)


def test_a_gradient_by_hand_is_the_automatic_one():
    coupled = ensembles.Replicated(DoubleWell(), 3, 0.8)
    x = _noise(4, 2, 6).requires_grad_()
    (slope,) = torch.autograd.grad(coupled(x).sum(), x)
    assert torch.allclose(slope, coupled.gradient(x.detach()), atol=1e-12)
    assert float(ensembles.coupling_energy(torch.tensor([[1.0], [3.0]]), 0.5)) == pytest.approx(0.5)


def test_disagreement_is_the_information_about_the_member():
    p = torch.softmax(_noise(5, 6, 20, 4), -1)
    found = ensembles.of_distributions(p)
    assert torch.allclose(found.disagreement, information.jensen_shannon(p.movedim(0, -2)), atol=1e-12)
    assert bool((found.disagreement > 0).all()) and torch.allclose(found.total, found.noise + found.disagreement)
    alike = ensembles.of_distributions(p[:1].expand(6, 20, 4))
    assert float(alike.disagreement.abs().max()) < 1e-12


def test_total_variance_is_noise_and_disagreement():
    means, variances = _noise(6, 5, 30), _noise(7, 5, 30).square()
    found = ensembles.of_numbers(means, variances)
    # The moments of the mixture.
    second = (variances + means**2).mean(0) - means.mean(0) ** 2
    assert torch.allclose(found.total, second, atol=1e-12)
    parts = ensembles.ambiguity(means, _noise(8, 30))
    assert torch.allclose(parts.ensemble, parts.members - parts.spread, atol=1e-12)


@statistical(alpha=beyond(5, 20, samples=30), bugs=("purposes-share-noise", "draws-repeat"))
def test_where_replicas_disagree_they_err():
    """Twenty replicas of a network of random features, each fitted to its own resample, of a task with a gap; 30
    tasks.
    """
    replicas, train, width = 20, 40, 60

    def task(key: Key) -> tuple[float, float]:
        x = (random.uniform(key.fold("x"), torch.arange(train)).double() - 0.5) * 4
        x = torch.where(x.abs() < 0.5, x + 1.5 * x.sign(), x)
        y = torch.sin(2 * x) + 0.1 * random.normal(key.fold("y"), torch.arange(train)).double()
        test = torch.linspace(-3, 3, 200, dtype=torch.float64)
        weights = random.normal(key.fold("w"), torch.arange(replicas), 2 * width).double().reshape(replicas, 2, width)

        def features(points: torch.Tensor) -> torch.Tensor:
            return torch.tanh(2 * points[:, None] * weights[:, :1] + 2 * weights[:, 1:])

        drawn = random.integers(key.fold("draw"), torch.arange(replicas), train, train)
        phi = features(x).gather(1, drawn.unsqueeze(-1).expand(-1, -1, width))
        ridge = phi.mT @ phi + 0.05 * torch.eye(width, dtype=torch.float64)
        found = features(test) @ torch.linalg.solve(ridge, phi.mT @ y[drawn].unsqueeze(-1))
        parts = ensembles.ambiguity(found.squeeze(-1), torch.sin(2 * test))
        near = (test[:, None] - x).abs().amin(-1) < 0.1
        return (
            ensembles.rank_correlation(parts.spread, parts.ensemble).value,
            float((parts.spread[~near].mean() / parts.spread[near].mean()).log()),
        )

    # Points of one task are alike: the error comes from the tasks, which are independent.
    seen = torch.tensor([task(Key.of(9).fold(number)) for number in range(30)])
    mean, error = seen.mean(0), seen.std(0) / math.sqrt(30)
    assert bool((mean > 5 * error).all()), (mean, error)
    assert float(mean[0]) > 0.4 and float(mean[1]) > 1


def test_rank_correlation_is_one_for_any_rising_map_and_its_error_is_right():
    x = _noise(10, 50)
    assert ensembles.rank_correlation(x, x.exp()).value == pytest.approx(1)
    assert ensembles.rank_correlation(x, -(x**3)).value == pytest.approx(-1)
    found = [ensembles.rank_correlation(a, b) for a, b in zip(_noise(11, 400, 50), _noise(12, 400, 50), strict=True)]
    values = torch.tensor([f.value for f in found])
    stated = sum(f.error for f in found) / len(found)
    assert float(values.std()) == pytest.approx(stated, rel=5 / math.sqrt(800))
    assert float(ensembles.rank_correlation(torch.ones(9), torch.arange(9.0)).value) == 0


def test_replicas_of_unequal_length_are_refused():
    with pytest.raises(ConfigError, match="replicas of the same length"):
        ensembles.Replicated(DoubleWell(), 3, 0.1)(torch.zeros(4))
    with pytest.raises(ConfigError, match="at least 0"):
        ensembles.Replicated(DoubleWell(), 3, -0.1)
