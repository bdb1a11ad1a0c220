"""Beliefs over hidden states: exact by Bayes' rule, mean field by descent on a free energy that bounds the surprise."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mfmarl import random
from mfmarl.errors import ConfigError
from mfmarl.random import Key
from mfmarl.statmech.variational import beliefs
from mfmarl.statmech.variational.free_energy import of_factors

SIZES = (2, 3, 4)


def _positive(seed: int, *shape: int) -> Tensor:
    ids = torch.arange(math.prod(shape[:-1])).reshape(shape[:-1])
    return random.exponential(Key.of(seed), ids, shape[-1]).double()


def _model(seed: int) -> tuple[list[Tensor], list[Tensor]]:
    likelihoods = [_positive(seed + m, outcomes * 6, 4).reshape(outcomes, *SIZES) for m, outcomes in enumerate((5, 2))]
    priors = [_positive(seed + 7 + f, 3, size) for f, size in enumerate(SIZES)]
    return [x / x.sum(0) for x in likelihoods], [p / p.sum(-1, keepdim=True) for p in priors]


OBSERVED = torch.tensor([[0, 1], [4, 0], [2, 1]])


@settings(max_examples=20)
@given(seed=st.integers(0, 10_000))
def test_the_exact_posterior_is_bayes_rule_written_out(seed: int):
    likelihoods, priors = _model(seed)
    found = beliefs.exact(beliefs.log_likelihood(likelihoods, OBSERVED), priors)
    for b in range(3):
        joint = torch.zeros(SIZES, dtype=torch.float64)
        for s in itertools.product(*map(range, SIZES)):
            p = math.prod(float(priors[f][b, s[f]]) for f in range(3))
            p *= math.prod(float(likelihoods[m][int(OBSERVED[b, m])][s]) for m in range(2))
            joint[s] = p
        assert float(found.log_evidence[b]) == pytest.approx(math.log(float(joint.sum())), abs=1e-12)
        torch.testing.assert_close(found.joint[b], joint / joint.sum())
        torch.testing.assert_close(found.marginals[1][b], joint.sum((0, 2)) / joint.sum())


@settings(max_examples=20)
@given(seed=st.integers(0, 10_000))
def test_mean_field_beliefs_bound_the_surprise_by_their_divergence_and_are_stationary(seed: int):
    likelihoods, priors = _model(seed)
    log_like = beliefs.log_likelihood(likelihoods, OBSERVED)
    exact, found = beliefs.exact(log_like, priors), beliefs.mean_field(log_like, priors)
    q = torch.einsum("bi,bj,bk->bijk", *found.factors)
    kl = (q * (q.log() - exact.joint.log())).sum((1, 2, 3))
    torch.testing.assert_close(found.free_energy, kl - exact.log_evidence, rtol=1e-9, atol=1e-9)
    assert bool((found.free_energy >= -exact.log_evidence - 1e-12).all())
    energy = -log_like - sum(p.log().reshape(3, *(1,) * f, -1, *(1,) * (2 - f)) for f, p in enumerate(priors))
    torch.testing.assert_close(of_factors(energy, found.factors), found.free_energy)
    # No one belief can be bettered alone.
    for f, size in enumerate(SIZES):
        for state in range(size):
            nudged = list(found.factors)
            nudged[f] = 0.99 * nudged[f] + 0.01 * torch.nn.functional.one_hot(torch.tensor(state), size)
            assert bool((beliefs.variational_free_energy(log_like, priors, nudged) >= found.free_energy - 1e-9).all())


def test_two_factors_that_explain_each_other_away_have_known_numbers():
    """p(o = 1 | s) = .9 if either cause is there, .1 if none; causes of probability .3: done by hand."""
    table = torch.tensor([[0.1, 0.9], [0.9, 0.9]], dtype=torch.float64)
    log_like = beliefs.log_likelihood([torch.stack([1 - table, table])], torch.tensor([1]))
    priors = [torch.tensor([0.7, 0.3], dtype=torch.float64)] * 2
    exact = beliefs.exact(log_like, priors)
    evidence = 0.49 * 0.1 + 0.51 * 0.9
    assert float(exact.log_evidence) == pytest.approx(math.log(evidence), abs=1e-14)
    assert float(exact.marginals[0][1]) == pytest.approx(0.3 * 0.9 / evidence, abs=1e-14)
    # The least of the free energy over both beliefs, on a fine grid.
    a = torch.linspace(0.001, 0.999, 999, dtype=torch.float64)
    grid = torch.cartesian_prod(a, a)
    factors = [torch.stack([1 - grid[:, f], grid[:, f]], -1) for f in (0, 1)]
    least = beliefs.variational_free_energy(log_like, priors, factors).min()
    starts = torch.tensor([[0.9, 0.1], [0.1, 0.9]], dtype=torch.float64)
    found = beliefs.mean_field(log_like.expand(2, 2, 2), priors, start=[starts, starts.flip(0)])
    assert float(found.free_energy.min()) == pytest.approx(float(least), abs=1e-5)
    assert -math.log(evidence) < float(found.free_energy.min()) < -math.log(evidence) + 0.25
    assert found.factors[0][:, 1].tolist() == pytest.approx(found.factors[1].flip(0)[:, 1].tolist())


def test_the_anchor_of_two_binary_factors():
    """p(s) = (.7, .3) (.5, .5), p(o | s) = [[.9, .3], [.4, .05]]: -log evidence .7184649885, mean field .7270451802."""
    seen = torch.tensor([[0.9, 0.3], [0.4, 0.05]], dtype=torch.float64)
    priors = [torch.tensor([0.7, 0.3], dtype=torch.float64), torch.tensor([0.5, 0.5], dtype=torch.float64)]
    log_like = beliefs.log_likelihood([torch.stack([seen, 1 - seen])], torch.tensor([0]))
    assert -float(beliefs.exact(log_like, priors).log_evidence) == pytest.approx(0.7184649885, abs=1e-10)
    found = beliefs.mean_field(log_like, priors, tolerance=1e-12)
    assert float(found.free_energy) == pytest.approx(0.7270451802, abs=1e-10)


def test_one_factor_is_exact_at_once():
    likelihood = torch.tensor([[0.9, 0.2], [0.1, 0.8]], dtype=torch.float64)
    prior = torch.tensor([0.5, 0.5], dtype=torch.float64)
    log_like = beliefs.log_likelihood([likelihood], torch.tensor([[0], [1]]))
    found, exact = beliefs.mean_field(log_like, [prior]), beliefs.exact(log_like, [prior])
    torch.testing.assert_close(found.factors[0], exact.marginals[0])
    torch.testing.assert_close(found.free_energy, -exact.log_evidence)
    assert found.sweeps == 1


def test_beliefs_updated_twice_are_beliefs_updated_by_both():
    likelihoods, priors = _model(3)
    first = beliefs.log_likelihood(likelihoods[:1], OBSERVED[:, :1])
    second = beliefs.log_likelihood(likelihoods[1:], OBSERVED[:, 1:])
    both = beliefs.exact(beliefs.log_likelihood(likelihoods, OBSERVED), priors)
    joint_prior = beliefs.exact(first, priors).joint.flatten(1)
    after = beliefs.exact(second.flatten(-3).expand(3, -1), [joint_prior])
    torch.testing.assert_close(after.marginals[0], both.joint.flatten(1))


def test_impossible_states_are_not_believed():
    likelihood = torch.tensor([[[1.0, 0.5], [0.0, 0.5]], [[0.0, 0.5], [1.0, 0.5]]], dtype=torch.float64)
    priors = [torch.tensor([0.5, 0.5], dtype=torch.float64), torch.tensor([1.0, 0.0], dtype=torch.float64)]
    log_like = beliefs.log_likelihood([likelihood], torch.tensor([0]))
    found = beliefs.mean_field(log_like, priors)
    assert [f.tolist() for f in found.factors] == [[1, 0], [1, 0]]
    assert float(found.free_energy) == pytest.approx(-float(beliefs.exact(log_like, priors).log_evidence))


def test_what_is_no_model_is_refused():
    likelihoods, priors = _model(1)
    with pytest.raises(ConfigError, match="as many observations"):
        beliefs.log_likelihood(likelihoods, OBSERVED[:, :1])
    with pytest.raises(ConfigError, match=r"0\.\.4"):
        beliefs.log_likelihood(likelihoods, torch.tensor([[5, 0]]))
    with pytest.raises(ConfigError, match="Likelihood 0"):
        beliefs.log_likelihood([likelihoods[0] * 2], OBSERVED[:, :1])
    log_like = beliefs.log_likelihood(likelihoods, OBSERVED)
    with pytest.raises(ConfigError, match="states"):
        beliefs.exact(log_like, priors[::-1])
    with pytest.raises(ConfigError, match="Prior 1"):
        beliefs.mean_field(log_like, [priors[0], priors[1] * 2, priors[2]])
