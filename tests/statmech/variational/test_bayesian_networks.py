"""Mean-field Bayesian networks: closed forms, unbiased gradients, and Bayes' linear regression as their exact case."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from mfmarl import random
from mfmarl.errors import ConfigError
from mfmarl.random import Key
from mfmarl.statmech.exact.regression import LinearRegression
from mfmarl.statmech.variational import bayesian_networks as bnn
from tests.statistical import beyond, statistical


def _normal(seed: int, *shape: int) -> Tensor:
    ids = torch.arange(math.prod(shape[:-1])).reshape(shape[:-1])
    return random.normal(Key.of(seed), ids, shape[-1])


def test_divergence_and_entropy_are_those_of_gaussians():
    mean, log_scale, precision, temperature = _normal(1, 4, 7), 0.3 * _normal(2, 4, 7), 2.5, 0.4
    q = torch.distributions.Normal(mean, log_scale.exp())
    p = torch.distributions.Normal(0.0, math.sqrt(temperature / precision))
    kl = torch.distributions.kl_divergence(q, p).sum(-1)
    torch.testing.assert_close(bnn.kl_to_prior(mean, log_scale, precision, temperature), kl)
    torch.testing.assert_close(bnn.gaussian_entropy(log_scale), q.entropy().sum(-1))
    # T KL = <prior energy> - T S + const: the entropy enters with a minus.
    energy = precision / 2 * (mean.square() + (2 * log_scale).exp()).sum(-1)
    constant = 7 * temperature / 2 * math.log(2 * math.pi * temperature / precision)
    regularised = bnn.entropy_regularised(energy, bnn.gaussian_entropy(log_scale), temperature) + constant
    torch.testing.assert_close(temperature * kl, regularised)


def _linear_data() -> tuple[Tensor, Tensor]:
    x = _normal(3, 40, 2)
    return x, x @ torch.tensor([1.0, -1.0]) + _normal(4, 40, 1)[:, 0]


@pytest.mark.parametrize("kind", ["weights", "activations"])
@statistical(alpha=beyond(5, 20, samples=16), bugs=("uniforms-narrow", "shifted-normals"))
def test_a_linear_network_learns_the_mean_field_of_the_exact_posterior(kind: str):
    x, y = _linear_data()
    wide = torch.cat([x, torch.ones(40, 1)], -1)  # the bias is a weight like the others
    exact = LinearRegression(wide.double(), y.double(), 1.0, 0.5)
    networks = 16
    network: bnn.MeanField | bnn.MeanFieldLayers
    if kind == "weights":
        network = bnn.MeanField(nn.Linear(2, 1), 0.5, networks=networks)
    else:
        network = bnn.MeanFieldLayers([2, 1], 0.5, key=Key.of(5), networks=networks)
    adam = torch.optim.Adam(network.parameters(), lr=0.05)
    steps = 800
    for step in range(steps):
        for group in adam.param_groups:
            group["lr"] = 0.05 * 0.5 * (1 + math.cos(math.pi * step / steps))
        outputs = network(x, Key.of(6).fold(step), 8).squeeze(-1)
        losses = (outputs - y).square().sum(-1) / 2
        adam.zero_grad()
        network.free_energy(losses).sum().backward()
        adam.step()
    with torch.no_grad():
        if isinstance(network, bnn.MeanField):
            mean, scale = network.mean, network.log_scale.exp()
        else:
            mean, scale = network.means[0].squeeze(-1), network.log_scales[0].exp().squeeze(-1)
        variance = 1 / exact.precision().diagonal()
        truth = exact.posterior()[0]
        for found, wanted in ((mean, truth), (scale, variance.sqrt())):
            error = found.double().std(0) / math.sqrt(networks)
            assert bool(((found.double().mean(0) - wanted).abs() < 5 * error + 1e-4).all())
            assert float(error.max()) < 0.01
        # The ELBO, its constant included, stays below the log evidence, by the divergence of mean field.
        outputs = network(x, Key.of(7), 500).squeeze(-1)
        losses = (outputs - y).square().sum(-1) / 2 + 20 * math.log(2 * math.pi)
        elbo = -network.free_energy(losses).double()
        error = losses.double().std(0) / math.sqrt(500)
        posterior = torch.distributions.MultivariateNormal(*exact.posterior())
        mean_field = torch.distributions.MultivariateNormal(truth, torch.diag(variance))
        lost = torch.distributions.kl_divergence(mean_field, posterior)
        expected = float(exact.log_evidence() - lost)
        assert abs(float(elbo.mean()) - expected) < 5 * float(error.mean()) / math.sqrt(networks) + 0.01
        assert float(elbo.mean()) < float(exact.log_evidence())


def test_sampled_activations_have_the_law_of_sampled_weights():
    x = _normal(8, 3, 4)
    layers = bnn.MeanFieldLayers([4, 2], key=Key.of(9), scale=0.4)
    with torch.no_grad():
        layers.log_scales[0] += 0.5 * _normal(10, 5, 2)
        drawn = layers(x, Key.of(11), 40_000)[:, 0]
        mean, variance = layers.means[0][0], (2 * layers.log_scales[0][0]).exp()
        wide = torch.cat([x, torch.ones(3, 1)], -1)
        law_mean, law_variance = wide @ mean, wide.square() @ variance
        assert bool(((drawn.mean(0) - law_mean).abs() < 5 * (law_variance / 40_000).sqrt()).all())
        assert bool(((drawn.var(0) / law_variance - 1).abs() < 5 * math.sqrt(2 / 40_000)).all())
        torch.testing.assert_close(layers(x, None)[0, 0], law_mean)


def test_networks_in_one_batch_are_independent_and_their_kl_is_of_each():
    both = bnn.MeanField(nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)), networks=2)
    with torch.no_grad():
        both.mean[1] *= 2
    assert both.kl()[1] > both.kl()[0]
    outputs = both(_normal(12, 5, 3), Key.of(13), 6)
    assert outputs.shape == (6, 2, 5, 2)
    both.free_energy(outputs.square().sum((-1, -2)))[0].backward()
    assert both.mean.grad is not None
    assert float(both.mean.grad[0].abs().max()) > 0 and float(both.mean.grad[1].abs().max()) == 0


def test_every_network_may_have_a_prior_of_its_own():
    many = bnn.MeanFieldLayers([2, 3], torch.tensor([0.5, 2.0]), key=Key.of(16), networks=2)
    for k, precision in enumerate((0.5, 2.0)):
        mean, log_scale = many.means[0][k].flatten(), many.log_scales[0][k].flatten()
        torch.testing.assert_close(many.kl(0.7)[k], bnn.kl_to_prior(mean, log_scale, precision, 0.7))
    with pytest.raises(ConfigError, match="each of 3"):
        bnn.MeanField(nn.Linear(1, 1), torch.tensor([0.5, 2.0]), networks=3)


def test_the_model_that_is_made_bayesian_is_left_as_it_is():
    model = nn.Linear(2, 1)
    before = [p.detach().clone() for p in model.parameters()]
    network = bnn.MeanField(model, scale=1e-6)
    assert {name for name, _ in network.named_parameters()} == {"mean", "log_scale"}
    x = _normal(14, 4, 2)
    torch.testing.assert_close(network(x, Key.of(15))[0, 0], model(x), rtol=0, atol=1e-4)
    for p, q in zip(model.parameters(), before, strict=True):
        assert torch.equal(p, q) and p.grad is None


def test_cold_free_energy_is_maximum_a_posteriori():
    network = bnn.MeanField(nn.Linear(2, 1), 3.0, scale=1e-3)
    cold = float(network.free_energy(torch.tensor([[2.0]]), 1e-8).detach())
    assert cold == pytest.approx(2.0 + 1.5 * float(network.mean.detach().square().sum()), abs=1e-4)


def test_what_cannot_be_bayesian_is_refused():
    with pytest.raises(ConfigError, match="no parameters"):
        bnn.MeanField(nn.Tanh())
    for wrong in ({"prior_precision": 0.0}, {"scale": -1.0}, {"networks": 0}):
        with pytest.raises(ConfigError):
            bnn.MeanField(nn.Linear(1, 1), **wrong)
    with pytest.raises(ConfigError, match="output width"):
        bnn.MeanFieldLayers([3], key=Key.of(1))
    with pytest.raises(ConfigError, match="key"):
        bnn.MeanFieldLayers([3, 1], key=Key.of(1))(torch.zeros(2, 3), None, 4)
    with pytest.raises(ConfigError, match="temperature"):
        bnn.entropy_regularised(torch.zeros(()), torch.zeros(()), -1.0)
