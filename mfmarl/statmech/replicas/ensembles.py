r"""Ensembles as replicas: copies of a learner that differ in their noise, perhaps coupled, and what their spread says.

$$ H(\theta_1 \dots \theta_R) = \sum_a E(\theta_a) + \frac{\gamma}{2} \sum_a |\theta_a - \bar\theta|^2, \qquad
   \operatorname{Var} y = \underbrace{\overline{\sigma_a^2}}_{\text{noise}} + \underbrace{\overline{(\mu_a - \bar\mu)^2}}_{\text{disagreement}}, \qquad
   (\bar\mu - y)^2 = \overline{(\mu_a - y)^2} - \overline{(\mu_a - \bar\mu)^2} $$

Coupled replicas prefer wide valleys: integrating all but one out leaves its local entropy (Baldassi et al. 2016, PNAS
113, E7655; Pittorino et al. 2021). The two identities on the right are the law of total variance, and the ambiguity
decomposition (Krogh and Vedelsby 1995): an ensemble's mean errs less than its members by exactly their spread. For
distributions the disagreement is the Jensen-Shannon divergence, the information that knowing the right member would
give (BALD; Houlsby et al. 2011).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from mfmarl.errors import ConfigError
from mfmarl.statmech import information
from mfmarl.statmech.energies import energy as energies
from mfmarl.statmech.energies.energy import Energy
from mfmarl.statmech.exact.disorder import Estimate


@dataclass(frozen=True, eq=False)
class Replicated:
    """The energy of R coupled replicas; states [*b, R n], one replica after the other. Any sampler of continuous
    states serves.
    """

    energy: Energy
    """Of one replica: [*b, n] -> [*b]."""
    replicas: int
    coupling: float
    """gamma, at least 0: 0 are independent replicas."""

    def __post_init__(self) -> None:
        if self.replicas < 1 or not self.coupling >= 0:
            raise ConfigError(
                f"Replicas are 1 or more, their coupling at least 0: not {self.replicas}, {self.coupling:g}."
            )

    def split(self, x: Tensor) -> Tensor:
        """[*b, R n] as [*b, R, n]."""
        if x.shape[-1] % self.replicas:
            raise ConfigError(f"States of {x.shape[-1]} numbers are not {self.replicas} replicas of the same length.")
        return x.unflatten(-1, (self.replicas, -1))

    def __call__(self, x: Tensor) -> Tensor:
        each = self.split(x)
        return self.energy(each).sum(-1) + coupling_energy(each, self.coupling)

    def gradient(self, x: Tensor) -> Tensor:
        each = self.split(x)
        away = each - each.mean(-2, keepdim=True)
        return (energies.gradient(self.energy, each) + self.coupling * away).flatten(-2)


class Uncertainty(NamedTuple):
    """Of an ensemble's prediction: what more data would not remove, and what they would."""

    total: Tensor
    noise: Tensor
    disagreement: Tensor


class Ambiguity(NamedTuple):
    """Squared errors [*b]: `ensemble` = `members` - `spread`, exactly."""

    ensemble: Tensor
    members: Tensor
    spread: Tensor


def coupling_energy(replicas: Tensor, coupling: float) -> Tensor:
    """(gamma/2) sum_a |theta_a - mean|^2 [*b] of replicas [*b, R, n]."""
    away = replicas - replicas.mean(-2, keepdim=True)
    return coupling / 2 * away.square().sum((-1, -2))


def of_distributions(probabilities: Tensor) -> Uncertainty:
    """Nats [*b] of R replicas' distributions [R, *b, A]: the entropy of the mean, the mean entropy, the difference."""
    total = information.entropy(probabilities.mean(0))
    noise = information.entropy(probabilities).mean(0)
    return Uncertainty(total, noise, total - noise)


def of_numbers(means: Tensor, variances: Tensor) -> Uncertainty:
    """Variances [*b] of R replicas' predictions with means and variances [R, *b], by the law of total variance."""
    noise, disagreement = variances.mean(0), means.var(0, correction=0)
    return Uncertainty(noise + disagreement, noise, disagreement)


def ambiguity(predictions: Tensor, targets: Tensor) -> Ambiguity:
    """See `Ambiguity`; predictions [R, *b], targets [*b]."""
    mean = predictions.mean(0)
    return Ambiguity(
        (mean - targets).square(), (predictions - targets).square().mean(0), (predictions - mean).square().mean(0)
    )


def rank_correlation(spread: Tensor, error: Tensor) -> Estimate:
    """Spearman's rho between an ensemble's spread [n] and its error [n], and its standard error 1/sqrt(n - 3)
    (Fisher's, times the slope 1 - rho^2): does the ensemble know where it errs?
    """
    n = len(spread)
    if n < 5 or error.shape != spread.shape:
        raise ConfigError(f"A rank correlation needs 5 pairs or more, not {n} and {len(error)} numbers.")
    ranks = [_ranks(x.double()) for x in (spread, error)]
    a, b = (rank - rank.mean() for rank in ranks)
    scale = float((a.square().sum() * b.square().sum()).sqrt())
    rho = float((a * b).sum()) / scale if scale > 0 else 0.0
    return Estimate(rho, (1 - rho * rho) / math.sqrt(n - 3))


def _ranks(x: Tensor) -> Tensor:
    """Ties share their mean rank."""
    _, inverse, counts = torch.unique(x, return_inverse=True, return_counts=True)
    below = counts.cumsum(0) - counts
    return (below + (counts - 1) / 2)[inverse]
