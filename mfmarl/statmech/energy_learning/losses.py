r"""Losses that shape an energy: low at the right answer, high at the wrong ones.

| loss | of E = E(x, right), E' = least E(x, wrong) | margin |
|---|---|---|
| perceptron | E - min_y E(x, y) | 0: satisfied by a constant energy |
| hinge | max(0, m + E - E') | m |
| log | log(1 + exp(E - E')) | any |
| square-square | E^2 + max(0, m - E')^2 | m |
| square-exponential | E^2 + g exp(-E') | any |
| minimum classification error | sigmoid(E - E') | any, bounded |
| negative log-likelihood | E + (1/beta) log sum_y exp(-beta E(x, y)) | any |
| contrastive | E - E(x, a wrong draw of the model) | 0 |

LeCun, Chopra, Hadsell, Ranzato and Huang 2006, "A tutorial on energy-based learning", section 2 and table 1. The
negative log-likelihood is E minus the free energy at temperature 1/beta: it becomes the perceptron loss as beta goes
to infinity. Energies are [*b, C] with a class on the last axis, labels int64 [*b]; losses are [*b].
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import softplus

from mfmarl.errors import ConfigError, nearest
from mfmarl.random import Key
from mfmarl.statmech import gibbs

Loss = Callable[[Tensor, Tensor], Tensor]
"""(energies [*b, C], labels int64 [*b]) -> [*b]."""


def right_and_wrong(energies: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """E of the label, and the least E of the others (the most offending wrong answer), each [*b]."""
    if energies.shape[-1] < 2:
        raise ConfigError(f"Energies need two classes at least on the last axis, not {energies.shape[-1]}.")
    index = labels.unsqueeze(-1)
    return energies.gather(-1, index).squeeze(-1), energies.scatter(-1, index, math.inf).amin(-1)


def perceptron(energies: Tensor, labels: Tensor) -> Tensor:
    """E - min E: 0 as soon as no other answer is better, and for an energy that does not distinguish any."""
    return energies.gather(-1, labels.unsqueeze(-1)).squeeze(-1) - energies.amin(-1)


def hinge(energies: Tensor, labels: Tensor, margin: float = 1.0) -> Tensor:
    """max(0, margin + E - E'): 0 only where the best wrong answer is worse by the margin."""
    right, wrong = right_and_wrong(energies, labels)
    return (margin + right - wrong).clamp(min=0)


def log(energies: Tensor, labels: Tensor) -> Tensor:
    """log(1 + exp(E - E')): a hinge that never stops pushing."""
    right, wrong = right_and_wrong(energies, labels)
    return softplus(right - wrong)


def square_square(energies: Tensor, labels: Tensor, margin: float = 1.0) -> Tensor:
    """E^2 + max(0, margin - E')^2: for energies that are at least 0."""
    right, wrong = right_and_wrong(energies, labels)
    return right.square() + (margin - wrong).clamp(min=0).square()


def square_exponential(energies: Tensor, labels: Tensor, weight: float = 1.0) -> Tensor:
    """E^2 + weight exp(-E')."""
    right, wrong = right_and_wrong(energies, labels)
    return right.square() + weight * torch.exp(-wrong)


def minimum_classification_error(energies: Tensor, labels: Tensor) -> Tensor:
    """sigmoid(E - E'): a smooth count of the mistakes (Juang, Chou and Lee 1997)."""
    right, wrong = right_and_wrong(energies, labels)
    return torch.sigmoid(right - wrong)


def negative_log_likelihood(energies: Tensor, labels: Tensor, beta: float = 1.0) -> Tensor:
    """E - F at temperature 1/beta: minus log p(label)/beta. Tends to the perceptron loss as beta grows."""
    _positive(beta)
    right = energies.gather(-1, labels.unsqueeze(-1)).squeeze(-1)
    return right - gibbs.free_energy(energies, 1 / beta)


def contrastive(energies: Tensor, labels: Tensor, ids: Tensor, key: Key, beta: float = 1.0, draws: int = 1) -> Tensor:
    """E minus the mean energy of `draws` answers drawn from the Gibbs distribution, [*b]; ids int64 [*b].

    Its gradient is on average that of the negative log-likelihood, from samples instead of a sum over all answers:
    contrastive divergence's idea where answers are too many to sum. The value itself means nothing.
    """
    _positive(beta)
    right = energies.gather(-1, labels.unsqueeze(-1)).squeeze(-1)
    held = energies.detach()
    drawn = [gibbs.sample(held, 1 / beta, ids, key.fold("wrong", turn)) for turn in range(draws)]
    return right - energies.gather(-1, torch.stack(drawn, -1)).mean(-1)


LOSSES: dict[str, Loss] = {
    "perceptron": perceptron,
    "hinge": hinge,
    "log": log,
    "square_square": square_square,
    "square_exponential": square_exponential,
    "mce": minimum_classification_error,
    "nll": negative_log_likelihood,
}


def named(name: str) -> Loss:
    """The loss of a name in `LOSSES`, with its usual options. Raises ConfigError naming the nearest."""
    if name not in LOSSES:
        raise ConfigError(f"There is no loss {name!r}.{nearest(name, LOSSES)}")
    return LOSSES[name]


def mistake_bound(features: Tensor, labels: Tensor, separator: Tensor) -> float:
    """(R/gamma)^2: as many mistakes at most the perceptron makes on features [n, d] with labels -1 and +1 [n].

    R is the longest example, gamma the margin of `separator` [d] at unit length (Novikoff 1962). Raises ConfigError
    if it does not separate them.
    """
    margin = float((labels * (features @ separator)).min() / separator.norm())
    if not margin > 0:
        raise ConfigError("The separator leaves an example on the wrong side: there is no bound on the mistakes.")
    return float((features.norm(dim=-1).max() / margin) ** 2)


def perceptron_mistakes(features: Tensor, labels: Tensor, most: int = 10**6) -> tuple[Tensor, int]:
    """Rosenblatt's rule until nothing is wrong: the weights [d], and how often they were changed.

    Stochastic descent on the perceptron loss of E(x, y) = -y w x/2 at rate 1, an example at a time in the order given.
    Raises ConfigError after `most` mistakes: the examples can hardly be separated.
    """
    weights, mistakes, clean = torch.zeros_like(features[0]), 0, 0
    while clean < len(features):
        for example, label in zip(features, labels, strict=True):
            if float(label * (example @ weights)) > 0:
                clean += 1
                if clean >= len(features):
                    break
                continue
            weights, clean, mistakes = weights + label * example, 0, mistakes + 1
            if mistakes > most:
                raise ConfigError(f"After {most} mistakes the examples are still not separated by a plane.")
    return weights, mistakes


def _positive(beta: float) -> None:
    if not 0 < beta <= math.inf:
        raise ConfigError(f"The beta of a likelihood must be above 0, not {beta:g}.")
