"""What each loss is, asks for, and is content with."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from mfmarl import random
from mfmarl.errors import ConfigError
from mfmarl.random import Key
from mfmarl.statmech import gibbs
from mfmarl.statmech.energy_learning import losses
from tests.statistical import beyond, statistical

KEY = Key.of(61)


@st.composite
def answers(draw: st.DrawFn) -> tuple[Tensor, Tensor]:
    classes = draw(st.integers(2, 5))
    rows = draw(st.lists(st.lists(st.floats(-5, 5), min_size=classes, max_size=classes), min_size=1, max_size=4))
    labels = draw(st.lists(st.integers(0, classes - 1), min_size=len(rows), max_size=len(rows)))
    return torch.tensor(rows, dtype=torch.float64), torch.tensor(labels)


def test_every_loss_is_its_formula() -> None:
    energies = torch.tensor([[1.0, 0.5, 2.0], [0.3, 3.0, 0.9]], dtype=torch.float64)
    labels = torch.tensor([0, 0])  # right: 1 and .3; best wrong: .5 and .9
    gap = torch.tensor([0.5, -0.6], dtype=torch.float64)
    wrong = torch.tensor([0.5, 0.9], dtype=torch.float64)
    wanted = {
        "perceptron": torch.tensor([0.5, 0.0], dtype=torch.float64),
        "hinge": torch.tensor([1.5, 0.4], dtype=torch.float64),
        "log": (1 + gap.exp()).log(),
        "square_square": torch.tensor([1 + 0.25, 0.09 + 0.01], dtype=torch.float64),
        "square_exponential": torch.tensor([1.0, 0.09], dtype=torch.float64) + (-wrong).exp(),
        "mce": 1 / (1 + (-gap).exp()),
        "nll": -torch.log_softmax(-energies, -1)[:, 0],
    }
    assert set(wanted) == set(losses.LOSSES)
    for name, value in wanted.items():
        assert torch.allclose(losses.named(name)(energies, labels), value, rtol=1e-12), name


def test_a_constant_energy_satisfies_the_perceptron_but_no_loss_with_a_margin() -> None:
    flat = torch.full((4, 3), 7.0, dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([0, 1, 2, 0])
    assert bool((losses.perceptron(flat, labels) == 0).all())
    for margin in (0.1, 1.0, 3.0):
        assert bool((losses.hinge(flat, labels, margin) - margin).abs().max() < 1e-12)
    assert bool((losses.log(flat, labels) == math.log(2)).all())
    (push,) = torch.autograd.grad(losses.hinge(flat, labels).sum(), flat)
    assert bool((push.gather(-1, labels.unsqueeze(-1)) == 1).all())


@given(answers())
def test_the_hinge_is_content_exactly_beyond_its_margin(given_answers: tuple[Tensor, Tensor]) -> None:
    energies, labels = given_answers
    right, wrong = losses.right_and_wrong(energies, labels)
    assert torch.equal(losses.hinge(energies, labels, 0.7) == 0, right - wrong <= -0.7)
    assert torch.equal(losses.perceptron(energies, labels) == 0, right <= wrong)
    assert torch.allclose(losses.perceptron(energies, labels), losses.hinge(energies, labels, 0.0))
    assert bool((losses.log(energies, labels) >= losses.perceptron(energies, labels)).all())


@given(answers())
def test_the_likelihood_becomes_the_perceptron_as_it_cools(given_answers: tuple[Tensor, Tensor]) -> None:
    energies, labels = given_answers
    cold = losses.perceptron(energies, labels)
    for beta in (1.0, 10.0, 1e3, 1e6):
        excess = losses.negative_log_likelihood(energies, labels, beta) - cold
        # -(1/beta) log of the number of ground states, at most.
        assert bool((excess >= -1e-12).all()) and bool((excess <= math.log(energies.shape[-1]) / beta + 1e-12).all())
    assert torch.allclose(losses.negative_log_likelihood(energies, labels, math.inf), cold, atol=1e-12)
    plain = torch.nn.functional.cross_entropy(-3 * energies, labels, reduction="none") / 3
    assert torch.allclose(losses.negative_log_likelihood(energies, labels, 3.0), plain, atol=1e-9)


@statistical(alpha=beyond(5, 6), bugs=("hot-draws", "negated-draws"))
def test_contrast_has_the_gradient_of_the_likelihood_on_average() -> None:
    energies = torch.tensor([0.3, -0.4, 1.0], dtype=torch.float64, requires_grad=True)
    copies = 40_000
    many, labels = energies.expand(copies, 3), torch.zeros(copies, dtype=torch.int64)
    for draws in (1, 3):
        loss = losses.contrastive(many, labels, torch.arange(copies), KEY, 0.8, draws)
        (slope,) = torch.autograd.grad(loss.mean(), energies)
        (wanted,) = torch.autograd.grad(losses.negative_log_likelihood(energies, torch.tensor(0), 0.8), energies)
        p = gibbs.probabilities(energies.detach(), 1 / 0.8)
        assert bool(((slope - wanted).abs() < 5 * (p * (1 - p) / copies / draws).sqrt()).all())


def test_the_perceptron_makes_no_more_mistakes_than_its_bound() -> None:
    for trial in range(20):
        key = KEY.fold("plane", trial)
        x = random.normal(key, torch.arange(60), 3).double()
        plane = random.normal(key.fold("w"), torch.arange(3)).double()
        signs = torch.sign(x @ plane)
        x = x[(x @ plane).abs() > 0.2 * plane.norm()]
        signs = torch.sign(x @ plane)
        weights, mistakes = losses.perceptron_mistakes(x, signs)
        assert bool((signs * (x @ weights) > 0).all())
        assert 0 < mistakes <= losses.mistake_bound(x, signs, plane)
        # A separator found is one whose own margin bounds as well.
        assert mistakes <= losses.mistake_bound(x, signs, weights)


def test_rosenblatts_rule_is_descent_on_the_perceptron_loss() -> None:
    w = torch.tensor([0.5, -1.0], dtype=torch.float64, requires_grad=True)
    x = torch.tensor([1.0, 2.0], dtype=torch.float64)
    energies = torch.stack([(x @ w) / 2, -(x @ w) / 2])  # y = -1, +1
    (slope,) = torch.autograd.grad(losses.perceptron(energies, torch.tensor(1)), w)
    assert torch.allclose(-slope, x)


def test_what_makes_no_sense_is_refused() -> None:
    with pytest.raises(ConfigError, match="Did you mean 'hinge'"):
        losses.named("hing")
    with pytest.raises(ConfigError, match="two classes"):
        losses.hinge(torch.zeros(3, 1), torch.zeros(3, dtype=torch.int64))
    with pytest.raises(ConfigError, match="beta"):
        losses.negative_log_likelihood(torch.zeros(3, 2), torch.zeros(3, dtype=torch.int64), 0.0)
    x = torch.tensor([[1.0], [1.0]])
    with pytest.raises(ConfigError, match="wrong side"):
        losses.mistake_bound(x, torch.tensor([1.0, -1.0]), torch.ones(1))
    with pytest.raises(ConfigError, match="still not separated"):
        losses.perceptron_mistakes(x, torch.tensor([1.0, -1.0]), most=50)
