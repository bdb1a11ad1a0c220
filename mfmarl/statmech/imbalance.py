r"""Classes of unequal size: importance weights and sampling for training, and the correction of what was learned.

$$ w_i = \frac{\tilde\pi_{y_i}}{\pi_{y_i}}, \qquad
   p_{\text{target}}(y \mid x) \propto p_{\text{train}}(y \mid x)\, \frac{\pi_{\text{target}}(y)}{\pi_{\text{train}}(y)} $$

A classifier trained on balanced classes is a classifier for balanced classes: where the world is not, its logits
want + log pi. For two classes that is the intercept log(pi/(1 - pi)): -4.59511985 at pi = .01.
Saerens, Latinne and Decaestecker 2002, Neural Computation 14(1); Elkan 2001, IJCAI.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mfmarl.errors import ConfigError


def class_shares(labels: Tensor, num_classes: int) -> Tensor:
    """pi [C] in float64, from labels int64 [n]. Raises ConfigError if a class never appears."""
    counts = torch.bincount(labels.flatten(), minlength=num_classes)
    if len(counts) != num_classes or bool((counts == 0).any()):
        missing = (counts == 0).nonzero().flatten().tolist()
        raise ConfigError(f"Each of {num_classes} classes must appear among the labels; missing: {missing}.")
    return counts.double() / counts.sum()


def class_weights(shares: Tensor, target: Tensor | None = None, power: float = 1.0) -> Tensor:
    """(target/shares)^power [C] that average to 1 over the data; `target` defaults to equal shares.

    power 1 makes the weighted loss that of the target's classes; 0 leaves it as it is; between lies a compromise
    with less variance.
    """
    target = torch.full_like(shares, 1 / len(shares)) if target is None else target
    weights = (target / shares).pow(power)
    return weights / (weights * shares).sum()


def sample_probabilities(labels: Tensor, num_classes: int, target: Tensor | None = None) -> Tensor:
    """Per example [n], sums to 1: draws by it show each class with the share of `target` (default: equal)."""
    shares = class_shares(labels, num_classes)
    return class_weights(shares, target)[labels] / labels.numel()


def prior_shift(logits: Tensor, train: Tensor, target: Tensor) -> Tensor:
    """Logits [*b, C] of a model trained with class shares `train`, for a world with `target`: + log(target/train)."""
    for name, shares in (("train", train), ("target", target)):
        if not bool((shares > 0).all()) or not math.isclose(float(shares.sum()), 1, rel_tol=1e-4):
            raise ConfigError(f"The class shares {name!r} must be above 0 and sum to 1, not {shares.tolist()}.")
    return logits + (target / train).log().to(logits.dtype)


def intercept(share: float) -> float:
    """log(pi/(1 - pi)): what a two-class model fitted on equal classes must add to its log-odds."""
    if not 0 < share < 1:
        raise ConfigError(f"The share of a class must lie between 0 and 1, not {share:g}.")
    return math.log(share) - math.log1p(-share)


def estimated_shares(probabilities: Tensor, train: Tensor, iterations: int = 1000, tolerance: float = 1e-10) -> Tensor:
    """The class shares [C] of unlabelled data from a model's probabilities [n, C] there, by expectation-maximisation.

    Saerens et al. 2002, eq. 2.12: re-weight by the current guess, average, repeat. Right if the model is calibrated.
    """
    guess = train
    for _ in range(iterations):
        posterior = probabilities * (guess / train)
        new = (posterior / posterior.sum(-1, keepdim=True)).mean(0)
        if float((new - guess).abs().max()) < tolerance:
            return new
        guess = new
    return guess
