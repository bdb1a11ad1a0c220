r"""What is believed of one's own policies: their posterior, its precision, and the action that comes of it.

$$ Q(\pi) = \mathrm{softmax}(\ln E + \gamma g - F_\pi), \qquad Q_0(\pi) = \mathrm{softmax}(\ln E + \gamma g) $$

with g = -G the value of a policy, E the habits, F_pi the free energy of what was seen under it (Friston et al. 2017,
"Active inference: a process theory", eq. 7). Precision gamma is 1 / temperature: the posterior is a Gibbs distribution
of G. Its own posterior, gamma ~ Gamma(1, beta), is met by iteration: `precision` as SPM's spm_MDP_VB_X has it, and
`older_precision` as spm_MDP_VB before it and cpp-AIF.

Policies lie on the last axis; where they are told apart by their steps, [*b, U, U, ...], flatten them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from mfmarl.errors import ConfigError, NumericFault
from mfmarl.random import Key
from mfmarl.statmech import gibbs

Selection = Literal["full", "action", "marginal"]


class Precision(NamedTuple):
    """What became of gamma."""

    gamma: Tensor
    """[*b]."""
    beta: Tensor
    """Its inverse [*b], the rate of the Gamma distribution."""
    log_policies: Tensor
    """log Q(pi) [*b, P] at it."""


def posterior(
    value: Tensor, gamma: float | Tensor = 1.0, habits: Tensor | None = None, evidence: Tensor | None = None
) -> Tensor:
    """log Q(pi) [*b, P] of values g [*b, P]; habits E are probabilities [P] or [*b, P], `evidence` is F_pi [*b, P].

    gamma is a number or [*b]; infinity leaves the best policies, and habits among them. A habit of 0 forbids.
    Raises ConfigError for a gamma below 0 or where nothing is allowed.
    """
    prior = torch.zeros_like(value) if habits is None else habits.to(value).log().expand_as(value)
    if evidence is not None:
        prior = prior - evidence
    return torch.log_softmax(sharpened(value, gamma, prior), -1)


def sharpened(value: Tensor, gamma: float | Tensor, prior: Tensor) -> Tensor:
    """gamma g + prior [*b, P], nats, in the limit where gamma is infinite: minus infinity but for the best."""
    if isinstance(gamma, Tensor):
        rate = gamma.unsqueeze(-1) if gamma.ndim else gamma
        if not bool((rate >= 0).all()) or bool(rate.isinf().any()):
            raise ConfigError("Precision gamma must be finite numbers of 0 and more (infinity: as a float).")
        return rate * value + prior
    if not gamma >= 0:
        raise ConfigError(f"Precision gamma must be 0 or more, not {gamma}.")
    if math.isinf(gamma):
        open_to = torch.where(prior > -math.inf, value, -math.inf)
        best = open_to.amax(-1, keepdim=True)
        return torch.where(open_to == best, prior, -math.inf)
    return gamma * value + prior


def precision(
    value: Tensor,
    evidence: Tensor | None = None,
    habits: Tensor | None = None,
    beta: float | Tensor = 1.0,
    iterations: int = 16,
    start: Tensor | None = None,
) -> Precision:
    """SPM's posterior of gamma ~ Gamma(1, beta): b moves half way to beta - (Q - Q_0) . g, so many times.

    Values g and evidence F_pi are [*b, P], beta is a number or [*b], `start` [*b] the b to begin from (of the last step).
    A constant added to g changes nothing: log Q(pi) of a plan at gamma = 1 without habits serves as g.
    Without evidence gamma is 1 / beta. Raises NumericFault where there is no positive fixed point.
    """
    first = torch.as_tensor(beta, dtype=value.dtype, device=value.device).expand(value.shape[:-1])
    if not bool((first > 0).all()):
        raise ConfigError("The rate beta of the precision must be positive.")
    b = first if start is None else start
    for _ in range(iterations):
        # As in the paper's code: both are of the gamma before, and the step is halved.
        Q = posterior(value, 1 / b, habits, evidence).exp()
        Q_0 = posterior(value, 1 / b, habits).exp()
        error = _expected(Q - Q_0, value)
        b = b - (b - first + error) / 2
        if not bool((b > 0).all()):
            raise NumericFault(
                "Precision has no positive fixed point: what was seen favours policies of far more value than expected "
                f"(b fell to {float(b.min()):.3g}); use a larger beta than {float(first.min()):.3g}, or a fixed gamma."
            )
    return Precision(1 / b, b, posterior(value, 1 / b, habits, evidence))


def older_precision(
    value: Tensor,
    habits: Tensor | None = None,
    alpha: float = 8.0,
    beta: float = 4.0,
    keep: float = 0.0,
    iterations: int = 16,
) -> Precision:
    """The older form, of cpp-AIF: gamma = alpha / b, b <- keep b + (1 - keep) (beta - Q . g), Q = softmax(gamma g).

    Not the same as `precision`: it sees g itself, not what evidence adds to it, and needs Q . g < beta, as negative g
    have it. How much of b is kept does not change where it ends. Raises NumericFault where b does not stay positive.
    """
    if not (alpha > 0 and beta > 0 and 0 <= keep < 1):
        raise ConfigError(f"alpha and beta must be positive and keep in [0, 1), not {alpha}, {beta} and {keep}.")
    b = torch.full_like(value[..., 0], beta)
    for _ in range(iterations):
        Q = posterior(value, alpha / b, habits).exp()
        b = keep * b + (1 - keep) * (beta - _expected(Q, value))
        if not bool((b > 0).all()):
            raise NumericFault(
                f"The older precision needs values below beta: b fell to {float(b.min()):.3g}; subtract the largest "
                "value from all, or use a larger beta."
            )
    return Precision(alpha / b, b, posterior(value, alpha / b, habits))


def precision_for_entropy(value: Tensor, entropy: float, habits: Tensor | None = None, iterations: int = 60) -> Tensor:
    """The gamma [*b] at which each row's posterior has that entropy, nats, by bisection on ln gamma in 1e-6 .. 1e6.

    Out of reach (ties, or habits that are sharper) it is the nearest end.
    """
    low = torch.full_like(value[..., 0], math.log(1e-6))
    high = -low
    for _ in range(iterations):
        middle = (low + high) / 2
        broad = entropy_of(posterior(value, middle.exp(), habits)) > entropy
        low, high = torch.where(broad, middle, low), torch.where(broad, high, middle)
    return ((low + high) / 2).exp()


def anneal(gamma: float | Tensor, log_policies: Tensor, entropy: float, rate: float) -> Tensor:
    """gamma [] a step towards a target of the mean entropy: d ln gamma / dk = rate (H[Q] - target)."""
    excess = entropy_of(log_policies).mean() - entropy
    return torch.as_tensor(gamma, dtype=log_policies.dtype, device=log_policies.device) * (rate * excess).exp()


def entropy_of(log_policies: Tensor) -> Tensor:
    """H[Q] [*b], nats; 0 for what is forbidden."""
    p = log_policies.exp()
    return -torch.where(p > 0, p * log_policies, torch.zeros_like(p)).sum(-1)


def log_actions(
    log_policies: Tensor,
    depth: int = 1,
    how: Selection = "full",
    alpha: float = 1.0,
    controls: Sequence[int] | None = None,
) -> Tensor:
    """log probability of every first action [*b, U], from log Q(pi) [*b, U, ...] with `depth` axes of steps.

    "full": a policy is drawn from Q^alpha and its first action taken. "action": the first actions' probabilities are
    raised to alpha, SPM's softmax(alpha ln P(u)). "marginal": each control by itself, raised to alpha, as pymdp's
    marginal sampling; `controls` are the model's. alpha = infinity takes the best, ties alike.
    Unknown `how`, a negative alpha or controls that do not make up U raise ConfigError.
    """
    if how not in ("full", "action", "marginal"):
        raise ConfigError(f"Actions are selected by 'full', 'action' or 'marginal', not {how!r}.")
    first = log_policies.flatten(-depth).unflatten(-1, (log_policies.shape[-depth], -1))  # [*b, U, rest]
    zero = torch.zeros_like(first[..., 0])
    if how == "full":
        return torch.log_softmax(_raised(first.flatten(-2), alpha).unflatten(-1, first.shape[-2:]).logsumexp(-1), -1)
    of_actions = first.logsumexp(-1)
    if how == "action":
        return torch.log_softmax(_raised(of_actions, alpha), -1)
    settings = list(controls) if controls is not None else [of_actions.shape[-1]]
    if math.prod(settings) != of_actions.shape[-1]:
        raise ConfigError(f"Controls of {settings} settings do not make up {of_actions.shape[-1]} actions.")
    grid = of_actions.unflatten(-1, settings)
    total = zero.unflatten(-1, settings)
    for g in range(len(settings)):
        others = [-len(settings) + h for h in range(len(settings)) if h != g]
        own = grid.logsumexp(others, keepdim=True) if others else grid
        axis = -len(settings) + g
        total = total + torch.log_softmax(_raised(own.movedim(axis, -1), alpha), -1).movedim(-1, axis)
    return total.flatten(-len(settings))


def _raised(log_p: Tensor, alpha: float) -> Tensor:
    """alpha log p, not normalised; what is forbidden stays so at alpha = 0."""
    return sharpened(torch.where(log_p > -math.inf, log_p, 0.0), alpha, torch.where(log_p > -math.inf, 0.0, -math.inf))


def choose(log_probabilities: Tensor, ids: Tensor, key: Key) -> Tensor:
    """An action int64 [*b] drawn from [*b, U]; `ids` int64 [*b] say whose draw it is."""
    return gibbs.sample(-log_probabilities, 1.0, ids, key)


def _expected(weights: Tensor, value: Tensor) -> Tensor:
    return (weights * value).sum(-1)
