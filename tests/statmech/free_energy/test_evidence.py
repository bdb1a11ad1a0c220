"""Priors chosen by sampled evidence, against a regression whose evidence is known."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mfmarl.errors import ConfigError
from mfmarl.random import Key
from mfmarl.statmech.exact.regression import LinearRegression
from mfmarl.statmech.free_energy import evidence
from mfmarl.statmech.sampling.hamiltonian import hmc
from mfmarl.statmech.sampling.noise import normal
from tests.statistical import beyond, statistical

PRECISIONS = torch.tensor([0.1, 0.3, 1.0, 3.0, 30.0])


def regression(precision: float) -> LinearRegression:
    inputs = normal(Key.of(1), torch.arange(12), 3, torch.float64)
    targets = inputs @ torch.tensor([1.0, -0.7, 0.4]).double() + 0.5 * normal(Key.of(2), torch.arange(12), 1)[:, 0]
    return LinearRegression(inputs, targets, 0.25, precision)


@statistical(alpha=beyond(5, 20, samples=32), bugs=("wide-sampler-noise", "chain-mean-off"))
def test_sampled_evidence_is_the_exact_one_and_chooses_the_same_prior() -> None:
    model = regression(1.0)

    def misfit(w: Tensor) -> Tensor:
        return -model.log_likelihood(w)

    found = evidence.of_priors(
        misfit, PRECISIONS, 3, lambda e: hmc(e, 0.09, 30, jitter=True), Key.of(3), num_chains=32, steps=150, warm_up=60
    )
    exact = torch.stack([regression(float(p)).log_evidence() for p in PRECISIONS])
    away = (found.log_evidence - exact).abs()
    assert bool((away <= 5 * found.error + found.discretisation).all()), (away, found.error, found.discretisation)
    assert bool((found.error < 0.5).all())
    assert found.best == float(PRECISIONS[exact.argmax()])
    # The candidate next to the prior of greatest evidence.
    best = model.best_prior()
    assert found.best == float(PRECISIONS[(PRECISIONS.log() - torch.tensor(best).log()).abs().argmin()])


def test_priors_that_are_none_are_refused() -> None:
    for wrong in (torch.tensor([1.0, 0.0]), torch.tensor([float("inf")]), torch.tensor(1.0)):
        with pytest.raises(ConfigError, match="precisions of priors"):
            evidence.of_priors(lambda w: w.sum(-1), wrong, 2, lambda e: hmc(e, 0.1, 2), Key.of(0))
