r"""Expected free energy of beliefs about a time to come: what is hoped for, what would be learned.

$$ Q(o^m) = \sum_s A^m(o \mid s) Q(s), \qquad
   \mathrm{risk} = \sum_m KL[Q(o^m) \| \tilde p(o^m)], \qquad \mathrm{ambiguity} = \sum_m \langle H(A^m(\cdot \mid s)) \rangle_Q $$
$$ \mathrm{pragmatic} = \sum_m \langle \ln \tilde p \rangle_{Q(o^m)}, \qquad
   \mathrm{state\ information} = \sum_m H[Q(o^m)] - \mathrm{ambiguity} \quad \mathrm{or\ jointly} \quad H[Q(o^1 \ldots o^M)] - \mathrm{ambiguity} $$

(Friston et al. 2017, "Active inference: a process theory", eq. 9; Da Costa et al. 2020, J. Math. Psych. 99, 102447,
section 6.) Outcomes are independent given the states, so ambiguity is a sum in both; only the entropy of outcomes
differs, and it alone is not linear in Q(s). `ways_of_showing` splits a model by that, which is what planning adds up.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from mfmarl.errors import ConfigError
from mfmarl.inference.counts import Counts, information_A, information_B
from mfmarl.inference.model import GenerativeModel
from mfmarl.inference.objective import Objective, Terms

LARGEST_JOINT = 1 << 24
"""Numbers of the table of joint outcomes, given the states of their factors, that is built at most."""


class Showing(NamedTuple):
    """Outcomes that the same factors show: g adds <linear> and the entropies of Q(o) to what they are worth."""

    factors: tuple[int, ...]
    linear: Tensor
    """[*p, P, 1] for the P joint states of the factors: expected preference, less ambiguity."""
    outcomes: Tensor | None
    """[*p, P, X]: what is seen, of all its modalities one after the other (or jointly); None: entropy does not count."""


def of_beliefs(
    model: GenerativeModel,
    believed: Sequence[Tensor],
    t: int = 0,
    objective: Objective = Objective(),  # noqa: B008
    counts: Counts | None = None,
    before: Sequence[Tensor] | None = None,
    action: Tensor | None = None,
) -> Terms:
    """The terms, each [*b], of beliefs q_f [*b, S_f] expected at time t (of preferences; 0: now).

    `before` [*b, S_f] and `action` int64 [*b] are what they follow from: needed for the information on transitions.
    Raises ConfigError where joint outcomes are too many to be told apart, or counts are missing that count.
    """
    check_beliefs(model, believed)
    preferences = [log_preferences(c, True) for c in model.preferences(t)]
    pragmatic = risk = ambiguity = entropy = believed[0].new_zeros(())
    for m, own in enumerate(model.A_factors):
        q = outer([believed[f] for f in own])
        table = flat_likelihood(model, m)
        shown = contract(q, table)
        chaos, liked = -xlogx(shown).sum(-1), (shown * preferences[m]).sum(-1)
        ambiguity = ambiguity + contract(q, -xlogx(table).sum(-1, keepdim=True)).squeeze(-1)
        entropy = entropy + chaos
        risk = risk - chaos - liked
        given = model.preferences(t)[m]
        pragmatic = pragmatic + (liked if objective.normalise else (shown * given).sum(-1))
    zero = torch.zeros_like(pragmatic + ambiguity)
    information = zero
    if objective.state_information == "per_modality":
        information = entropy - ambiguity
    elif objective.state_information == "joint":
        information = joint_entropy(model, believed) - ambiguity
    learned = parameter_information(model, believed, objective, counts, before, action)
    terms = (pragmatic, information, zero if learned is None else learned, risk, ambiguity)
    return Terms(*torch.broadcast_tensors(*terms))


def parameter_information(
    model: GenerativeModel,
    believed: Sequence[Tensor],
    objective: Objective,
    counts: Counts | None,
    before: Sequence[Tensor] | None = None,
    action: Tensor | None = None,
) -> Tensor | None:
    """What a step is expected to tell of A and B [*b], not weighted; None where the objective does not count it."""
    how = objective.parameter_information
    if how == "none":
        return None
    if counts is None:
        raise ConfigError(
            f"parameter_information={how!r} needs the counts of a model that is learned: pass counts, or 'none'."
        )
    total: Tensor | None = None
    if any(table is not None for table in counts.A or ()):
        total = information_A(model, counts, tuple(believed), how)
    if any(table is not None for table in counts.B or ()):
        if before is None or action is None:
            raise ConfigError("The information on transitions B needs `before` and `action`: what the beliefs follow.")
        moved = information_B(model, counts, tuple(before), action, tuple(believed), how)
        total = moved if total is None else total + moved
    if total is None:
        raise ConfigError(f"parameter_information={how!r} needs counts of A or B: these counts learn neither.")
    return total


# -------------------------------------------------------------------------------------- what planning is built from


def ways_of_showing(model: GenerativeModel, objective: Objective, t: int = 0) -> tuple[Showing, ...]:
    """A model's modalities by the factors that show them: g of beliefs is the sum of `worth_of_showing` over them."""
    weight = 0.0 if objective.state_information == "none" else objective.state_weight
    preferences = [log_preferences(c, objective.normalise) for c in model.preferences(t)]
    groups: dict[tuple[int, ...], tuple[list[Tensor], list[Tensor]]] = {}
    for m, own in enumerate(model.A_factors):
        table = flat_likelihood(model, m)
        linear = (table * preferences[m].unsqueeze(-2)).sum(-1, keepdim=True)
        if weight:
            linear = linear + weight * xlogx(table).sum(-1, keepdim=True)
        linears, tables = groups.setdefault(own, ([], []))
        linears.append(linear)
        tables.append(table)
    if not weight or objective.state_information == "per_modality":
        return tuple(
            Showing(own, _added(linears), _beside(tables) if weight else None)
            for own, (linears, tables) in groups.items()
        )
    ways = [Showing(own, _added(linears), None) for own, (linears, _) in groups.items()]
    for part in independent_modalities(model):
        own, table = joint_likelihood(model, part)
        ways.append(Showing(own, torch.zeros_like(table[..., :1]), table))
    return tuple(ways)


def worth_of_showing(ways: Sequence[Showing], believed: Sequence[Tensor], weight: float) -> Tensor:
    """g [*b] of beliefs [*b, S_f] without information on parameters; `weight` of the entropies."""
    total: Tensor | None = None
    for way in ways:
        q = outer([believed[f] for f in way.factors])
        worth = contract(q, way.linear).squeeze(-1)
        if way.outcomes is not None:
            worth = worth - weight * xlogx(contract(q, way.outcomes)).sum(-1)
        total = worth if total is None else total + worth
    assert total is not None
    return total


def joint_entropy(model: GenerativeModel, believed: Sequence[Tensor]) -> Tensor:
    """H[Q(o^1, ..., o^M)] [*b] of all modalities jointly: exact for independent factors, and so for one factor."""
    total = believed[0].new_zeros(())
    for part in independent_modalities(model):
        own, table = joint_likelihood(model, part)
        total = total - xlogx(contract(outer([believed[f] for f in own]), table)).sum(-1)
    return total


def independent_modalities(model: GenerativeModel) -> list[tuple[int, ...]]:
    """Modalities in groups that share no factor with another: for independent factors their entropies add up."""
    groups: list[tuple[set[int], list[int]]] = []
    for m, own in enumerate(model.A_factors):
        factors, members = set(own), [m]
        apart = []
        for other in groups:
            if other[0] & factors:
                factors |= other[0]
                members = other[1] + members
            else:
                apart.append(other)
        groups = [*apart, (factors, members)]
    return [tuple(sorted(members)) for _, members in groups]


def joint_likelihood(model: GenerativeModel, modalities: Sequence[int]) -> tuple[tuple[int, ...], Tensor]:
    """The factors of some modalities, and p(o^1, o^2, ... | their joint states) [*p, P, prod O_m]."""
    own = tuple(sorted({f for m in modalities for f in model.A_factors[m]}))
    sizes = [model.sizes[f] for f in own]
    numbers = math.prod(sizes) * math.prod(model.outcomes[m] for m in modalities)
    if numbers > LARGEST_JOINT:
        names = ", ".join(repr(model.modalities[m]) for m in modalities)
        raise ConfigError(
            f"Joint outcomes of the modalities {names} need a table of {numbers} numbers, more than {LARGEST_JOINT}: "
            "use state_information='per_modality', or let fewer modalities share factors."
        )
    total: Tensor | None = None
    for m in modalities:
        table = model.A[m].movedim(model.A[m].ndim - 1 - len(model.A_factors[m]), -1)  # [*p, S_pa, ..., O]
        first = table.ndim - 1 - len(model.A_factors[m])
        order = [first + model.A_factors[m].index(f) for f in own if f in model.A_factors[m]]
        table = table.permute(*range(first), *order, table.ndim - 1)
        shape = [model.sizes[f] if f in model.A_factors[m] else 1 for f in own]
        table = table.reshape(*table.shape[:first], *shape, table.shape[-1])
        total = table if total is None else (total.unsqueeze(-1) * table.unsqueeze(-2)).flatten(-2)
    assert total is not None
    lead = total.ndim - 1 - len(own)
    total = total.expand(*total.shape[:lead], *sizes, total.shape[-1]).flatten(lead, -2)
    if lead == 0:
        total = total[:, (total > 0).any(0)]  # outcomes that never come together have no entropy
    return own, total


def flat_likelihood(model: GenerativeModel, m: int) -> Tensor:
    """A^m as a matrix [*p, P, O_m] from the joint states of its factors."""
    return model.A[m].flatten(model.A[m].ndim - len(model.A_factors[m])).mT


def flat_transition(model: GenerativeModel, f: int) -> tuple[Tensor, Tensor]:
    """B^f as a matrix [*p, P, V * S_f] by the V settings of its own controls, and which of them each action is, [U]."""
    own, parents = model.B_controls[f], len(model.B_factors[f])
    table = model.B[f]
    lead = table.ndim - 1 - parents - len(own)
    moved = table.flatten(lead + 1 + parents) if own else table.unsqueeze(-1)
    moved = moved.flatten(lead + 1, lead + parents)  # [*p, S', P, V]
    matrix = moved.permute(*range(lead), lead + 1, lead + 2, lead).flatten(-2)
    which = torch.zeros(model.num_actions, dtype=torch.int64)
    settings = model.settings()
    for g in own:
        which = which * model.controls[g] + settings[:, g]
    return matrix, which.to(table.device)


def log_preferences(C: Tensor, normalise: bool) -> Tensor:
    """ln P~(o) [*p, O]: ln softmax(C), or C as it is."""
    return torch.log_softmax(C, -1) if normalise else C


def xlogx(p: Tensor) -> Tensor:
    """p ln p, 0 at 0."""
    # torch.xlogy is not vectorised: this is several times as fast, and 0 times the log of the least number is 0.
    return p * p.clamp(min=torch.finfo(p.dtype).tiny).log()


def outer(factors: Sequence[Tensor]) -> Tensor:
    """The product [*b, prod S_f] of independent beliefs [*b, S_f], last factor fastest."""
    total = factors[0]
    for q in factors[1:]:
        total = (total.unsqueeze(-1) * q.unsqueeze(-2)).flatten(-2)
    return total


def contract(x: Tensor, table: Tensor) -> Tensor:
    """[*b, P] by tables [*p, P, X] that broadcast against it: [*b, X], as few and as large products as may be."""
    lead = table.ndim - 2
    if lead == 0:
        return x @ table
    ones = sum(1 for _ in itertools.takewhile(lambda n: n == 1, reversed(table.shape[:-2])))
    while x.ndim - 1 < lead:
        x = x.unsqueeze(0)
    if ones == 0:
        return (x.unsqueeze(-2) @ table).squeeze(-2)
    table = table.reshape(*table.shape[: lead - ones], *table.shape[-2:])
    if ones == lead:
        return x @ table
    # Beliefs that share a table are the rows of one product with it.
    rows = x.flatten(-1 - ones, -2) @ table
    return rows.unflatten(-2, x.shape[-1 - ones : -1])


def check_beliefs(model: GenerativeModel, believed: Sequence[Tensor]) -> None:
    """Raises ConfigError unless there is one belief for every factor, of its size."""
    found = [q.shape[-1] for q in believed]
    if found != list(model.sizes):
        raise ConfigError(f"Beliefs must be one for each factor, over {list(model.sizes)} states, not over {found}.")


def _added(tables: list[Tensor]) -> Tensor:
    total = tables[0]
    for table in tables[1:]:
        total = total + table
    return total


def _beside(tables: list[Tensor]) -> Tensor:
    lead = torch.broadcast_shapes(*(table.shape[:-2] for table in tables))
    return torch.cat([table.expand(*lead, *table.shape[-2:]) for table in tables], -1)
