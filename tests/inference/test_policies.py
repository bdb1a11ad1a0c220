"""Posterior of policies, its precision, and the actions that come of it: written out, and where iterations must end."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from mfmarl import random
from mfmarl.errors import ConfigError, NumericFault
from mfmarl.inference import policies
from mfmarl.random import Key
from tests.inference.planning.small_models import columns
from tests.statistical import beyond, statistical


def normal(seed: int, *shape: int) -> Tensor:
    return random.normal(Key.of(seed), torch.arange(math.prod(shape)).reshape(shape)).double()


def test_the_posterior_weighs_habits_value_and_evidence() -> None:
    g, F, E = normal(1, 4, 6), normal(2, 4, 6), columns(3, 6)
    gamma = torch.tensor([0.0, 0.5, 2.0, 9.0], dtype=torch.float64)
    found = policies.posterior(g, gamma, E, F).exp()
    weights = E * (gamma.unsqueeze(-1) * g).exp() / F.exp()
    assert torch.allclose(found, weights / weights.sum(-1, keepdim=True), atol=1e-14, rtol=0)


def test_a_habit_of_nothing_forbids_and_infinite_precision_leaves_the_best() -> None:
    g = torch.tensor([1.0, 3.0, 3.0, 2.0, 5.0], dtype=torch.float64)
    E = torch.tensor([0.2, 0.3, 0.1, 0.4, 0.0], dtype=torch.float64)
    assert policies.posterior(g, 2.0, E)[4] == -math.inf
    best = policies.posterior(g, math.inf, E).exp()
    assert torch.allclose(best, torch.tensor([0, 0.75, 0.25, 0, 0], dtype=torch.float64), atol=1e-15, rtol=0)


def written_out(g: list[float], F: list[float], E: list[float], beta: float, iterations: int) -> float:
    """The inner loop in plain numbers."""

    def softmax(x: list[float]) -> list[float]:
        w = [math.exp(y - max(x)) for y in x]
        return [y / sum(w) for y in w]

    b = beta
    for _ in range(iterations):
        Q = softmax([math.log(e) + v / b - f for e, v, f in zip(E, g, F, strict=True)])
        Q0 = softmax([math.log(e) + v / b for e, v in zip(E, g, strict=True)])
        error = sum((p - p0) * v for p, p0, v in zip(Q, Q0, g, strict=True))
        b = b - (b - beta + error) / 2
    return 1 / b


def test_precision_is_the_inner_loop_written_out() -> None:
    g, F, E = normal(4, 5, 7), normal(5, 5, 7), columns(6, 7)
    found = policies.precision(g, F, E, 3.0)
    truth = [written_out(g[i].tolist(), F[i].tolist(), E.tolist(), 3.0, 16) for i in range(5)]
    assert torch.allclose(found.gamma, torch.tensor(truth, dtype=torch.float64), atol=1e-14, rtol=0)
    assert torch.equal(found.log_policies, policies.posterior(g, found.gamma, E, F))


def test_precision_ends_where_evidence_and_prior_agree() -> None:
    g, F = normal(7, 30, 5), normal(8, 30, 5)
    found = policies.precision(g, F, beta=4.0, iterations=200)
    Q, Q0 = policies.posterior(g, found.gamma, None, F).exp(), policies.posterior(g, found.gamma).exp()
    assert torch.allclose(found.beta, 4.0 - ((Q - Q0) * g).sum(-1), atol=1e-12, rtol=0)
    # Evidence for what was valued makes sure, evidence against it unsure.
    favours = ((Q - Q0) * g).sum(-1) > 0
    assert bool((favours == (found.gamma > 0.25)).all()) and 0 < int(favours.sum()) < 30


def test_without_evidence_precision_is_its_prior() -> None:
    g = normal(9, 3, 4)
    beta = torch.tensor([0.5, 1.0, 8.0], dtype=torch.float64)
    for evidence in (None, torch.full_like(g, 2.5)):
        assert torch.allclose(policies.precision(g, evidence, beta=beta).gamma, 1 / beta, atol=1e-14, rtol=0)
    late = policies.precision(g, None, beta=beta, start=2 * beta, iterations=60)
    assert torch.allclose(late.gamma, 1 / beta, atol=1e-13, rtol=0)


def test_the_older_precision_ends_at_its_own_fixed_point() -> None:
    g = -normal(10, 20, 6).abs()
    ends = [policies.older_precision(g, keep=keep, iterations=300) for keep in (0.0, 0.5)]
    Q = policies.posterior(g, ends[0].gamma).exp()
    assert torch.allclose(ends[0].beta, 4.0 - (Q * g).sum(-1), atol=1e-12, rtol=0)
    assert torch.allclose(ends[0].beta, ends[1].beta, atol=1e-12, rtol=0)
    assert torch.allclose(ends[0].gamma, 8.0 / ends[0].beta, atol=1e-14, rtol=0)
    assert bool((ends[0].gamma < 2).all())  # alpha / beta is what it is where nothing is at stake


def test_precisions_that_have_no_end_are_faults() -> None:
    g = torch.tensor([0.0, 10.0], dtype=torch.float64)
    with pytest.raises(NumericFault, match="larger beta than 1"):
        policies.precision(g, torch.tensor([8.0, 0.0], dtype=torch.float64), torch.tensor([1.0, 1e-9]).double())
    with pytest.raises(NumericFault, match="subtract the largest value"):
        policies.older_precision(g)
    with pytest.raises(ConfigError, match="must be positive"):
        policies.precision(g, beta=0.0)
    with pytest.raises(ConfigError, match="keep in"):
        policies.older_precision(-g, keep=1.0)
    with pytest.raises(ConfigError, match="0 or more"):
        policies.posterior(g, -1.0)


def test_precision_for_an_entropy_gives_that_entropy() -> None:
    g, E = normal(11, 12, 9), columns(12, 9)
    for target in (0.3, 1.2):
        found = policies.precision_for_entropy(g, target, E)
        H = policies.entropy_of(policies.posterior(g, found, E))
        assert torch.allclose(H, torch.full_like(H, target), atol=1e-9, rtol=0)
    assert float(policies.precision_for_entropy(torch.zeros(4).double(), 0.5)) > 9e5  # ties: out of reach


def test_annealing_drives_the_mean_entropy_to_its_target() -> None:
    g = normal(13, 50, 8)
    gamma: float | Tensor = 0.01
    for _ in range(400):
        gamma = policies.anneal(gamma, policies.posterior(g, gamma), 0.8, 0.5)
    H = policies.entropy_of(policies.posterior(g, gamma)).mean()
    assert float(H) == pytest.approx(0.8, abs=1e-9)


def test_actions_of_two_controls_are_selected_as_written_out() -> None:
    controls, depth, alpha = (2, 3), 2, 1.7
    U = math.prod(controls)
    Q = columns(14, 3, U**depth, axis=-1)
    log_Q = Q.log().unflatten(-1, (U, U))
    full, action, marginal = torch.zeros(3, U).double(), torch.zeros(3, U).double(), torch.zeros(3, U).double()
    first = [torch.zeros(3, n).double() for n in controls]
    for i, (u, _) in enumerate(itertools.product(range(U), repeat=2)):
        full[:, u] += Q[:, i] ** alpha
        action[:, u] += Q[:, i]
        first[0][:, u // 3] += Q[:, i]
        first[1][:, u % 3] += Q[:, i]
    first = [p**alpha / (p**alpha).sum(-1, keepdim=True) for p in first]
    for u in range(U):
        marginal[:, u] = first[0][:, u // 3] * first[1][:, u % 3]
    action = action**alpha
    for how, truth in (("full", full), ("action", action), ("marginal", marginal)):
        found = policies.log_actions(log_Q, depth, how, alpha, controls).exp()  # type: ignore[arg-type]
        assert torch.allclose(found, truth / truth.sum(-1, keepdim=True), atol=1e-14, rtol=0), how


def test_selection_agrees_at_alpha_one_and_takes_the_best_at_infinity() -> None:
    log_Q = columns(15, 4, 9, axis=-1).log().unflatten(-1, (3, 3))
    once = [policies.log_actions(log_Q, 2, how) for how in ("full", "action", "marginal")]  # type: ignore[arg-type]
    assert torch.allclose(once[0], once[1], atol=1e-14) and torch.allclose(once[0], once[2], atol=1e-14)
    best = log_Q.flatten(1).argmax(-1) // 3
    assert torch.equal(policies.log_actions(log_Q, 2, "full", math.inf).argmax(-1), best)
    assert torch.equal(policies.log_actions(log_Q, 2, "full", math.inf).exp().amax(-1), torch.ones(4).double())
    likeliest = once[0].argmax(-1)
    assert torch.equal(policies.log_actions(log_Q, 2, "action", math.inf).argmax(-1), likeliest)


def test_the_forbidden_stays_forbidden_at_any_alpha() -> None:
    log_Q = torch.tensor([-math.inf, math.log(0.25), math.log(0.75)], dtype=torch.float64)
    for how, alpha in itertools.product(("full", "action", "marginal"), (0.0, 0.5, 4.0, math.inf)):
        p = policies.log_actions(log_Q, 1, how, alpha).exp()  # type: ignore[arg-type]
        assert p[0] == 0 and float(p.sum()) == pytest.approx(1)


@statistical(alpha=beyond(5, 4), bugs=("hot-draws", "negated-draws"))
def test_actions_are_drawn_as_often_as_they_are_likely() -> None:
    p = torch.tensor([0.5, 0.0, 0.2, 0.3], dtype=torch.float64)
    count = 40_000
    drawn = policies.choose(p.log().expand(count, 4), torch.arange(count), Key.of(16))
    found = torch.bincount(drawn, minlength=4) / count
    assert bool(((found - p).abs() <= 5 * (p * (1 - p) / count).sqrt()).all()) and found[1] == 0


def test_unknown_ways_of_selecting_are_refused() -> None:
    log_Q = torch.zeros(6).double()
    with pytest.raises(ConfigError, match="not 'best'"):
        policies.log_actions(log_Q, 1, "best")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="do not make up 6 actions"):
        policies.log_actions(log_Q, 1, "marginal", controls=(2, 2))
    with pytest.raises(ConfigError, match="0 or more"):
        policies.log_actions(log_Q, 1, alpha=-1.0)
