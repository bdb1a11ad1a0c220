r"""Open-loop values of all policies at once, where everybody has the same model: a product, logarithms, a product.

$$ g(\pi) = \sum_s q(s)\, w_\pi(s) - \sum_k N_{\pi k}\, p_k \ln p_k, \qquad p_k = \sum_s q(s)\, z_k(s) $$

Where beliefs move by themselves (one factor, or factors that do not depend on others) the state after any actions is a
linear function of the belief q now, and so is the probability p of every outcome; pragmatic value and ambiguity are
linear too. So all of a plan that depends on the belief are the entropies of those p. Most are the same: actions commute,
walls stop, outcomes are certain or never seen. What is left are K different functions z_k, how often each policy meets
them, N [K, U^L], and a linear part w [S, U^L]: three products for a crowd. They are found once for a model, an objective
and a depth, by a walk down the tree of prefixes that keeps one of each pair of nodes that lead alike, and are kept as
long as the model is.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from mfmarl.errors import ConfigError
from mfmarl.inference.expected_free_energy import (
    independent_modalities,
    joint_likelihood,
    log_preferences,
    outer,
    xlogx,
)
from mfmarl.inference.model import GenerativeModel
from mfmarl.inference.objective import Objective

_POLICIES = 4096  # more are the tree's
_STATES = 1024
_LOGARITHM = 10  # multiplications that p ln p takes the time of
_WORTH = 2.5  # times the tree's work, done in fewer and larger products (measured)
_NUMBERS = 1 << 23  # of the tables of a level, while they are found
_KEPT: WeakKeyDictionary[GenerativeModel, dict[tuple[Objective, int, int], ClosedForm]] = WeakKeyDictionary()


@dataclass(frozen=True, eq=False)
class ClosedForm:
    """A model's policies, ready to be weighed."""

    first: Tensor
    """[S, U^L + K]: w and z side by side."""
    meetings: Tensor | None
    """-weight N [K, U^L]; None: no entropy counts."""
    policies: int
    pays: bool = True
    """Whether it takes less work than the tree: not where few nodes lead alike."""

    def bytes_per_row(self) -> int:
        return int(2 * sum(self.first.shape) * self.first.element_size())

    def values(self, believed: list[Tensor], prices: tuple[Tensor, ...] | None = None) -> Tensor:
        """g [M, R, U^L] of beliefs [M, R, S_f]."""
        x = outer(believed) @ self.first
        if self.meetings is None:
            return x
        flat = x.flatten(0, -2)
        known = xlogx(flat[:, self.policies :])
        return torch.addmm(flat[:, : self.policies], known, self.meetings).view(*x.shape[:-1], self.policies)


def of(
    model: GenerativeModel, objective: Objective, depth: int, t: int = 0, hindered: bool = False, wanted: bool = False
) -> ClosedForm | None:
    """The closed form of a model's policies of `depth` actions from time t on, kept with it; None where there is none.

    `wanted`: raises ConfigError instead of None, and says why.
    """
    # Later times than the last one of timed preferences are alike.
    time = min(t, model.C[0].shape[-2]) if model.timed else 0
    kept = _KEPT.setdefault(model, {})
    key = (objective, depth, time)
    if hindered or key not in kept:
        why = _hindrance(model, objective, depth, hindered)
        if why:
            if wanted:
                raise ConfigError(f"There is no closed form of these plans: {why}; use how='tree'.")
            return None
        kept[key] = _found(model, objective, depth, time)
    form = kept[key]
    return form if wanted or form.pays else None


def _hindrance(model: GenerativeModel, objective: Objective, depth: int, hindered: bool) -> str:
    if hindered or objective.parameter_information != "none":
        return "they weigh counts or goals"
    if len(model.sizes) > 1 and any(own != (f,) for f, own in enumerate(model.B_factors)):
        return "factors move by others, and their beliefs are products"
    if not shared(model):
        return "agents have tables of their own"
    if model.num_states > _STATES or model.num_actions**depth > _POLICIES:
        return f"more than {_STATES} states or {_POLICIES} policies"
    outcomes = sum(model.outcomes)
    if objective.state_information == "joint":
        parts = [1] * len(model.A)
        for members in independent_modalities(model):
            for m in members:
                parts[members[0]] *= model.outcomes[m]
        outcomes = sum(parts)
    if model.num_actions**depth * (model.num_states + outcomes) * model.num_states > _NUMBERS:
        return f"their tables would hold more than {_NUMBERS} numbers"
    return ""


def shared(model: GenerativeModel) -> bool:
    """Whether no table has leading axes of agents' own."""
    return (
        all(a.ndim == 1 + len(own) for a, own in zip(model.A, model.A_factors, strict=True))
        and all(
            b.ndim == 1 + len(own) + len(u)
            for b, own, u in zip(model.B, model.B_factors, model.B_controls, strict=True)
        )
        and all(c.ndim == 1 + model.timed for c in model.C)
    )


def _found(model: GenerativeModel, objective: Objective, depth: int, t: int) -> ClosedForm:
    exact = model.to(dtype=torch.float64).joint()
    # What differs by rounding is the same: by that of the model's tables, not of these products.
    grain = 64 * torch.finfo(model.dtype).eps
    S, U = model.num_states, model.num_actions
    move = exact.of_action(0)  # [U, S', S]
    tables = [a.flatten(1) for a in exact.A]
    weight = 0.0 if objective.state_information == "none" else objective.state_weight
    ambiguity = weight * sum(xlogx(a).sum(0) for a in tables)  # <= 0, [S]
    seen = tables
    if objective.state_information == "joint":
        seen = []
        for members in independent_modalities(model):
            own, table = joint_likelihood(model.to(dtype=torch.float64), members)
            seen.append(_over_all(table, own, model.sizes).mT)
    shows = torch.cat(seen)  # [X, S]
    nodes = torch.eye(S, dtype=torch.float64, device=model.device).unsqueeze(0)  # [K, S', S]: what prefixes lead to
    at = torch.zeros(1, dtype=torch.int64, device=model.device)  # the node of every prefix
    linear = torch.zeros(1, S, dtype=torch.float64, device=model.device)
    functions: list[Tensor] = []
    met: list[tuple[Tensor, Tensor]] = []  # of each level: functions of its nodes [K, X], nodes of its prefixes
    for level in range(depth):
        children = (move.unsqueeze(0) @ nodes.unsqueeze(1)).flatten(0, 1)  # [K U, S', S]
        which, nodes = _distinct(children.flatten(1), grain)
        nodes = nodes.unflatten(-1, (S, S))
        at = which.view(-1, U)[at].flatten()
        liked = [
            log_preferences(c, objective.normalise).to(torch.float64) @ a
            for c, a in zip(exact.preferences(t + level), tables, strict=True)
        ]
        worth = (sum(liked) + ambiguity) @ nodes  # [K, S]
        linear = linear.repeat_interleave(U, 0) + worth[at]
        if weight:
            functions.append(shows @ nodes)  # [K, X, S]
            met.append((torch.arange(len(nodes), device=at.device), at))
    if not weight:
        return ClosedForm(linear.T.to(model.dtype).contiguous(), None, U**depth)
    sizes = [len(f) for f in functions]
    which, kinds = _distinct(torch.cat([f.flatten(0, 1) for f in functions]), grain)
    # What is never or always seen has no entropy, whatever is believed.
    certain = (kinds.abs() <= grain).all(-1) | ((kinds - 1).abs() <= grain).all(-1)
    number = torch.where(certain, -1, torch.cumsum(~certain, 0) - 1)
    counted = number[which].view(-1, len(shows))  # [sum K, X], -1: certain
    of_node = torch.zeros(len(counted), int((~certain).sum()) + 1, dtype=torch.float64, device=model.device)
    of_node.scatter_add_(1, counted % of_node.shape[1], torch.ones_like(counted, dtype=torch.float64))
    of_node = of_node[:, :-1]
    meetings = torch.zeros(of_node.shape[1], U**depth, dtype=torch.float64, device=model.device)
    start = 0
    for level, (size, (_, prefixes)) in enumerate(zip(sizes, met, strict=True)):
        nodes_met = of_node[start : start + size][prefixes]  # [U^(level + 1), K]
        meetings += nodes_met.T.repeat_interleave(U ** (depth - 1 - level), 1)
        start += size
    first = torch.cat([linear, kinds[~certain]]).T
    work = first.numel() + meetings.numel() + _LOGARITHM * len(meetings)
    return ClosedForm(
        first.to(model.dtype).contiguous(),
        (-weight * meetings).to(model.dtype),
        U**depth,
        work <= _WORTH * _work_of_tree(model, depth, len(shows)),
    )


def _work_of_tree(model: GenerativeModel, depth: int, outcomes: int) -> int:
    """Multiplications of the tree for one agent, about: those of its last level, and the logarithms."""
    nodes = model.num_actions**depth
    if len(model.sizes) == 1:
        each = model.num_states * outcomes
    else:
        each = sum(size * size for size in model.sizes)
        each += sum(
            size * math.prod(model.sizes[f] for f in own)
            for size, own in zip(model.outcomes, model.A_factors, strict=True)
        )
    return nodes * (each + _LOGARITHM * outcomes)


def _distinct(rows: Tensor, grain: float) -> tuple[Tensor, Tensor]:
    """Which of the different rows each [N, X] is, and those: equal up to rounding."""
    _, which = torch.unique((rows / grain).round(), dim=0, return_inverse=True)
    first = torch.full((int(which.max()) + 1,), len(rows), dtype=torch.int64, device=rows.device)
    first.scatter_reduce_(0, which, torch.arange(len(rows), device=rows.device), "amin")
    return which, rows[first]


def _over_all(table: Tensor, own: tuple[int, ...], sizes: tuple[int, ...]) -> Tensor:
    """[P, X] of some factors' joint states as [S, X] of all."""
    x = table.reshape(*[sizes[f] if f in own else 1 for f in range(len(sizes))], table.shape[-1])
    return x.expand(*sizes, table.shape[-1]).reshape(-1, table.shape[-1])
