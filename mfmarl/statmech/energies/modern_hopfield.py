r"""Hopfield networks of continuous states, whose update is the attention of transformers.

$$ E(x) = -\beta^{-1} \log \sum_p e^{\beta\, \xi_p \cdot x} + \tfrac12 |x|^2, \qquad
   x \leftarrow x - \nabla E(x) = \Xi^\top \mathrm{softmax}(\beta\, \Xi x) $$

The patterns are keys and values, the state a query, beta one over the root of the dimension. The energy falls with
every update, and with beta large and patterns apart one update retrieves (Ramsauer et al. 2021, arXiv 2008.02217,
eq. 2-4; Demircigil et al. 2017). At small beta all patterns melt into one fixed point near their mean.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mfmarl.errors import ConfigError


@dataclass(frozen=True, eq=False)
class ModernHopfield:
    """States [*b, n] and stored patterns [P, n]."""

    patterns: Tensor
    beta: float

    def __post_init__(self) -> None:
        if self.patterns.ndim != 2 or not len(self.patterns):
            raise ConfigError(f"Patterns must be [P, n] with P at least 1, not {list(self.patterns.shape)}.")
        if not 0 < self.beta < float("inf"):
            raise ConfigError(f"The beta of a Hopfield network must be above 0 and finite, not {self.beta:g}.")

    def __call__(self, x: Tensor) -> Tensor:
        """E [*b]."""
        return 0.5 * x.square().sum(-1) - torch.logsumexp(self.beta * x @ self.patterns.mT, -1) / self.beta

    def weights(self, x: Tensor) -> Tensor:
        """The Gibbs distribution over patterns [*b, P]: what is attended to."""
        return torch.softmax(self.beta * x @ self.patterns.mT, -1)

    def gradient(self, x: Tensor) -> Tensor:
        return x - self.weights(x) @ self.patterns

    def update(self, x: Tensor) -> Tensor:
        """One step of retrieval [*b, n]: softmax attention of the state to the patterns."""
        return self.weights(x) @ self.patterns
