r"""What an agent believes about a hidden world that it sees in part and acts upon: a finite model, filtered in time.

$$ p_f(s') = \sum_s B^f(s' \mid s, u)\, q_f(s), \qquad
   q(s') \propto \prod_m A^m(o_m \mid s') \prod_f p_f(s'_f) $$

Each step is a belief update by `statmech.variational.beliefs`: exact over all joint states and then kept as marginals,
or by mean field, which minimises the variational free energy. With one factor the exact filter is the forward algorithm
of hidden Markov models (Rabiner 1989, Proc. IEEE 77, 257), and its free energies add up to -log p(o_1 ... o_T).
With several the product of marginals forgets their correlations (assumed-density filtering: Boyen and Koller 1998).
Beliefs are [*b, S_f]: a population's all at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from mfmarl.errors import ConfigError
from mfmarl.statmech.variational import beliefs

Method = Literal["exact", "mean field"]


@dataclass(frozen=True, eq=False)
class GenerativeModel:
    """F factors of S_f hidden states each, M modalities of O_m outcomes, U actions."""

    likelihoods: tuple[Tensor, ...]
    """A^m [O_m, S_1, ..., S_F]: sums to 1 over outcomes."""
    transitions: tuple[Tensor, ...]
    """B^f [U, S_f, S_f]: from the last axis to the one before it, whose sum is 1."""
    priors: tuple[Tensor, ...]
    """D^f [S_f]: before anything is seen."""

    def __post_init__(self) -> None:
        if not self.priors or len(self.transitions) != len(self.priors):
            raise ConfigError(f"{len(self.priors)} factors need as many transitions, not {len(self.transitions)}.")
        sizes = [len(prior) for prior in self.priors]
        actions = {len(table) for table in self.transitions}
        for m, table in enumerate(self.likelihoods):
            if list(table.shape[1:]) != sizes:
                raise ConfigError(f"Likelihood {m} must be [outcomes, {str(sizes)[1:-1]}], not {list(table.shape)}.")
        for f, (table, size) in enumerate(zip(self.transitions, sizes, strict=True)):
            if table.ndim != 3 or table.shape[1:] != (size, size) or len(actions) != 1:
                raise ConfigError(f"Transition {f} must be [actions, {size}, {size}], as many actions in each.")
            if bool((table < 0).any()) or bool(((table.sum(1) - 1).abs() > 1e-4).any()):
                raise ConfigError(f"Transition {f} must be a distribution over where it leads, from every state.")

    @property
    def num_actions(self) -> int:
        return len(self.transitions[0])


class Step(NamedTuple):
    """What is believed once something has been seen."""

    factors: tuple[Tensor, ...]
    """q_f [*b, S_f]."""
    free_energy: Tensor
    """F [*b], nats: the surprise -log p(o) of an exact update, a bound of it in mean field."""


def update(model: GenerativeModel, expected: Sequence[Tensor], observations: Tensor, method: Method = "exact") -> Step:
    """From what is expected [*b, S_f] (or [S_f]) to what is believed, having seen `observations` int64 [*b, M]."""
    if method not in ("exact", "mean field"):
        raise ConfigError(f"Beliefs are updated by 'exact' or 'mean field', not {method!r}.")
    seen = beliefs.log_likelihood(model.likelihoods, observations)
    if method == "exact":
        found = beliefs.exact(seen, expected)
        return Step(found.marginals, -found.log_evidence)
    settled = beliefs.mean_field(seen, expected)
    return Step(settled.factors, settled.free_energy)


def predict(model: GenerativeModel, believed: Sequence[Tensor], action: Tensor) -> tuple[Tensor, ...]:
    """What is expected [*b, S_f] after an action int64 [*b]."""
    if action.numel() and not (int(action.min()) >= 0 and int(action.max()) < model.num_actions):
        raise ConfigError(f"An action lies outside 0..{model.num_actions - 1}.")
    return tuple(
        (table[action] @ q.unsqueeze(-1)).squeeze(-1) for table, q in zip(model.transitions, believed, strict=True)
    )


def follow(
    model: GenerativeModel, observations: Tensor, actions: Tensor, method: Method = "exact"
) -> tuple[list[tuple[Tensor, ...]], Tensor]:
    """Beliefs after each of `observations` [T, *b, M], with `actions` [T - 1, *b] between them; and F [T, *b]."""
    if len(actions) != len(observations) - 1:
        raise ConfigError(f"{len(observations)} observations have one action less between them, not {len(actions)}.")
    expected: tuple[Tensor, ...] = model.priors
    believed: list[tuple[Tensor, ...]] = []
    costs: list[Tensor] = []
    for t, seen in enumerate(observations):
        if t:
            expected = predict(model, believed[-1], actions[t - 1])
        step = update(model, expected, seen, method)
        believed.append(step.factors)
        costs.append(step.free_energy)
    return believed, torch.stack(costs)
