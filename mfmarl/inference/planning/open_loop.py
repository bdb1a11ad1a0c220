r"""Open-loop planning: every policy of L actions weighed by the expected free energy of where it leads.

$$ g(\pi) = \sum_{l=1}^{L} g\big(Q(s_{t+l} \mid u_1 \ldots u_l)\big), \qquad Q(\pi) = \mathrm{softmax}(\ln E + \gamma g), \qquad
   g(u) = \tfrac{1}{\gamma} \ln \sum_{\pi : u_1 = u} e^{\ln E(\pi) + \gamma g(\pi)} $$

(Friston et al. 2017, "Active inference: a process theory", eq. 7-9.) Beliefs are pushed down a tree of prefixes level by
level, so that policies that begin alike share their beginning: U + U^2 + ... + U^L predictions instead of L U^L. Of
independent factors each goes its own way, and one that nobody moves is never repeated. Where everybody has the same
model there is a shorter way to the same numbers: `closed_form`.

Agents are taken in pieces whose trees stay within the cache, and single trees branch by branch where they exceed the
budget.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from mfmarl.errors import ConfigError, NumericFault
from mfmarl.inference.counts import Counts
from mfmarl.inference.expected_free_energy import (
    contract,
    flat_transition,
    of_beliefs,
    outer,
    parameter_information,
    ways_of_showing,
    worth_of_showing,
    xlogx,
)
from mfmarl.inference.model import GenerativeModel
from mfmarl.inference.objective import Objective, Plan, Terms
from mfmarl.inference.planning import closed_form
from mfmarl.inference.planning.inductive import Inductive
from mfmarl.inference.planning.layout import (
    Layout,
    arrange,
    check_beliefs,
    lifted,
    lifted_counts,
    map_counts,
)
from mfmarl.inference.policies import sharpened

BUDGET = 1 << 28
"""Bytes of memory that a tree may take."""
_CACHE = 1 << 21  # bytes of a piece's last level: about the second-level cache of a core

_DEAR = 2048  # bytes of a plan from which it pays to look for others that are the same
_FEW = 64  # agents

_Worth: TypeAlias = "_Tree | closed_form.ClosedForm"
How = Literal["auto", "tree", "closed_form"]
Columns = list[Tensor]


def plan(
    model: GenerativeModel,
    believed: Sequence[Tensor],
    depth: int,
    gamma: float | Tensor = 1.0,
    objective: Objective = Objective(),  # noqa: B008
    counts: Counts | None = None,
    inductive: Inductive | None = None,
    t: int = 0,
    budget: int = BUDGET,
    *,
    allowed: Tensor | None = None,
    legal: Tensor | None = None,
    legal_at: Literal["first", "all"] = "first",
    details: bool = True,
    how: How = "auto",
    merge: bool = True,
) -> Plan:
    """What every action is worth to agents that believe q_f [*b, S_f], by all policies of `depth` actions.

    `t` is the time of the first step ahead, for preferences that are timed. Habits are the model's E, over actions (taken
    at every step) or over policies (last step fastest). gamma is a number, infinity included, or [*b].

    `allowed` bool [U^L] are the policies there are; `legal` bool [*b, U] the actions an agent may take first (or, with
    `legal_at="all"`, at every step). `details`: whether log Q(pi) and the terms of the first step are kept.
    `how`: "tree", or "closed_form", which is made once for a model and then kept (for tables that all share, no counts);
    "auto" takes it where it can: a model that is new at every step, as one that is learned, should ask for the tree.
    `merge`: agents of one model that believe the very same plan once, where plans are dear.

    Raises ConfigError for policies that do not fit the budget, or where nothing is allowed; NumericFault for NaN.
    """
    if depth < 1:
        raise ConfigError(f"A plan needs a depth of at least 1, not {depth}.")
    if how not in ("auto", "tree", "closed_form"):
        raise ConfigError(f"Open-loop plans are made by 'auto', 'tree' or 'closed_form', not {how!r}.")
    U = model.num_actions
    size = torch.finfo(model.dtype).bits // 8
    if 3 * U**depth * size > budget:
        raise ConfigError(
            f"A plan of depth {depth} has {U}^{depth} = {U**depth:.3g} policies, whose values alone exceed the budget of "
            f"{budget} bytes: plan less deep, allow more, or search (planning.search)."
        )
    lengths = sorted({U, U**depth})
    if model.E is not None and model.E.shape[-1] not in lengths:
        raise ConfigError(
            f"Habits E are over {model.E.shape[-1]} policies: a plan of depth {depth} has habits over its {U} actions or "
            f"its {U**depth} policies."
        )
    layout = _arranged(model, believed, counts)
    whole = layout.batch
    if details and layout.minds * layout.rows * U**depth * size > 8 * budget:
        raise ConfigError(
            f"The log-probabilities of {U**depth} policies for {layout.minds * layout.rows} agents exceed 8 times the "
            f"budget of {budget} bytes: ask for details=False, or allow more."
        )
    restrictions = _Restrictions.of(layout, depth, U, allowed, legal, legal_at)
    precise = _rows(gamma, whole, layout) if isinstance(gamma, Tensor) else gamma
    if not (bool((precise > 0).all()) if isinstance(precise, Tensor) else precise > 0):
        raise ConfigError("Precision gamma must be positive: the value of an action has no meaning without it.")
    closed = None
    if how != "tree":
        closed = closed_form.of(model, objective, depth, t, counts is not None or inductive is not None, how != "auto")

    def worth_to(part: Layout) -> _Worth:
        return closed or _Tree(part, depth, objective, t, budget)

    weights = inductive.weights(believed) if inductive is not None else None
    prices = None if weights is None else tuple(_rows(w, whole, layout, 1) for w in weights)
    ask = _Question(depth, objective, t, precise, restrictions, prices)
    each = worth_to(some_minds(layout, slice(0, 1))).bytes_per_row() + 4 * U**depth * size
    alike = weights is None and restrictions.legal is None and not isinstance(precise, Tensor)
    found = _different(layout) if merge and alike and each >= _DEAR else None
    one = layout if found is None else layout.take(found[0])
    value, policies, terms = _planned(one, worth_to, ask, details, each, budget)
    if bool(value.isnan().any()):
        raise NumericFault("Values of actions are NaN: beliefs or tables of the model hold NaN, or nothing is allowed.")

    def back(x: Tensor) -> Tensor:
        return layout.back(x if found is None else x[:, found[1]])

    return Plan(
        back(value),
        None if policies is None else back(policies.unflatten(-1, (U,) * depth)),
        None if terms is None else Terms(*map(back, terms)),
    )


def _arranged(model: GenerativeModel, believed: Sequence[Tensor], counts: Counts | None) -> Layout:
    """`arrange`, by a shorter way where there is nothing to arrange: one model, beliefs of one shape."""
    if counts is not None or not closed_form.shared(model) or len({q.shape[:-1] for q in believed}) != 1:
        return arrange(model, believed, 1.0, counts)
    if model.E is not None and model.E.ndim > 1:
        return arrange(model, believed, 1.0, counts)
    check_beliefs(model, believed)
    batch = tuple(believed[0].shape[:-1])
    return Layout(model, tuple(q.reshape(1, -1, q.shape[-1]) for q in believed), 1.0, None, batch)


@dataclass(frozen=True)
class _Question:
    """What is asked of every agent."""

    depth: int
    objective: Objective
    t: int
    gamma: float | Tensor
    """A number or [M, R]."""
    restrictions: _Restrictions
    prices: tuple[Tensor, ...] | None
    """Of a goal, [M, R, S_f]."""

    def of(self, minds: slice, rows: slice) -> _Question:
        gamma = self.gamma[minds, rows] if isinstance(self.gamma, Tensor) else self.gamma
        prices = None if self.prices is None else tuple(w[minds, rows] for w in self.prices)
        return replace(self, gamma=gamma, restrictions=self.restrictions.of_some(minds, rows), prices=prices)


def _planned(
    layout: Layout, worth_to: Callable[[Layout], _Worth], ask: _Question, details: bool, each: int, budget: int
) -> tuple[Tensor, Tensor | None, list[Tensor] | None]:
    """g [M, R, U], log Q(pi) [M, R, U^L] and the first terms [M, R, U], piece by piece; a row takes `each` bytes."""
    U, minds, rows = layout.model.num_actions, layout.minds, layout.rows
    like = layout.believed[0]
    value = like.new_empty(minds, rows, U)
    policies = like.new_empty(minds, rows, U**ask.depth) if details else None
    terms = [like.new_empty(minds, rows, U) for _ in Terms._fields] if details else None
    at_once = max(1, min(budget, max(_CACHE, _FEW * each)) // each)  # rows of all minds
    several = min(minds, max(1, at_once // rows))
    for mind in range(0, minds, several):
        own = slice(mind, min(mind + several, minds))
        part = layout if several == minds else some_minds(layout, own)
        worth = worth_to(part)
        step = max(1, at_once // part.minds)
        for start in range(0, rows, step):
            piece = slice(start, min(start + step, rows))
            asked = ask.of(own, piece)
            g = worth.values([q[:, piece] for q in part.believed], asked.prices)
            _settle(
                g,
                asked.gamma,
                asked.restrictions.prior(g),
                U,
                value[own, piece],
                None if policies is None else policies[own, piece],
            )
            if terms is not None:
                for kept, found in zip(terms, first_terms(part, piece, ask.objective, ask.t), strict=True):
                    kept[own, piece] = found
    return value, policies, terms


def some_minds(layout: Layout, which: slice) -> Layout:
    """Some of the minds, with all of their rows."""
    if layout.minds == 1:
        return layout
    model = layout.model

    def own(x: Tensor, core: int) -> Tensor:
        return x[which] if x.ndim > core else x

    cut = model.trusted(
        A=tuple(own(a, 1 + len(pa)) for a, pa in zip(model.A, model.A_factors, strict=True)),
        B=tuple(
            own(b, 1 + len(pa) + len(u)) for b, pa, u in zip(model.B, model.B_factors, model.B_controls, strict=True)
        ),
        C=tuple(own(c, 2 if model.timed else 1) for c in model.C),
        D=tuple(own(d, 1) for d in model.D),
        E=None if model.E is None else own(model.E, 1),
    )
    counts = None if layout.counts is None else map_counts(model, layout.counts, own)
    believed = tuple(q[which] for q in layout.believed)
    return Layout(cut, believed, layout.gamma, counts, tuple(believed[0].shape[:2]))


def _different(layout: Layout) -> tuple[Tensor, Tensor] | None:
    """Numbers of the rows that differ, and which of them each row is [R]; None unless half of them or more repeat others."""
    rows = layout.rows
    if layout.minds > 1 or rows < _FEW:
        return None
    mark = torch.zeros(rows, dtype=torch.float64, device=layout.believed[0].device)
    for f, q in enumerate(layout.believed):
        # Fractions of multiples of the golden ratio: no sums of them agree by chance.
        steps = torch.arange(1, q.shape[-1] + 1, dtype=torch.float64, device=q.device)
        mark += q[0].double() @ ((steps + 997 * f) * 0.6180339887498949 % 1)
    mark = (mark * 2**40).round()  # products of the same row may differ in their last bits
    if len(mark[:: rows // _FEW].unique()) > _FEW // 2:
        return None
    _, which = mark.unique(return_inverse=True)
    count = int(which.max()) + 1
    first = torch.full((count,), rows, dtype=torch.int64, device=which.device)
    first.scatter_reduce_(0, which, torch.arange(rows, device=which.device), "amin")
    if 2 * count > rows or any(not torch.equal(q[0, first][which], q[0]) for q in layout.believed):
        return None
    return first, which


def _settle(
    g: Tensor, gamma: float | Tensor, prior: Tensor | None, U: int, value: Tensor, policies: Tensor | None
) -> None:
    """Writes g [.., U] of first actions, and log Q(pi), from values [.., U^L] and a log prior."""
    if policies is None and prior is None and g.shape[-1] == U:
        value.copy_(g)
        return
    sharp = sharpened(g, gamma, torch.zeros_like(g[..., :1]) if prior is None else prior)
    if policies is not None:
        policies.copy_(torch.log_softmax(sharp, -1))
    if isinstance(gamma, float) and math.isinf(gamma):
        best = g if prior is None else torch.where(prior > -math.inf, g, -math.inf)
        value.copy_(best.unflatten(-1, (U, -1)).amax(-1))
        return
    rest = sharp.unflatten(-1, (U, -1))
    # torch.logsumexp makes several passes over short rows; the maximum is all that is needed against overflow.
    top = rest.amax(-1, keepdim=True)
    top = torch.where(top > -math.inf, top, 0.0) if prior is not None else top
    total = (rest - top).exp_().sum(-1).log_() + top.squeeze(-1)
    value.copy_(total / (gamma.unsqueeze(-1) if isinstance(gamma, Tensor) else gamma))


def first_terms(layout: Layout, piece: slice, objective: Objective, t: int) -> Terms:
    """Terms [M, R, U] of the first step by every action."""
    U = layout.model.num_actions
    part = layout.take(piece)
    wide = lifted(layout.model, 2)
    root = [q.unsqueeze(2) for q in part.believed]
    ahead = _moved(root, _moves(wide), wide.B_factors, U)
    flat = [q.expand(*q.shape[:2], U, q.shape[-1]) for q in ahead]
    before = [q.expand(*q.shape[:2], U, q.shape[-1]) for q in root]
    action = torch.arange(U, device=flat[0].device).expand(flat[0].shape[:-1])
    counts = lifted_counts(layout.model, layout.counts, 2)
    found = of_beliefs(wide, flat, t, objective, counts, before, action)
    return Terms(*(x.expand(flat[0].shape[:-1]) for x in found))


# ------------------------------------------------------------------------------------------------- the tree


@dataclass(frozen=True, eq=False)
class _Move:
    """A factor's transitions as a matrix."""

    matrix: Tensor
    """[M, 1, 1, P, V S_f] (or without leading axes) for V settings of its own controls."""
    settings: int
    which: Tensor | None
    """Its setting for each action [U]; None: they are the same."""


def _moves(model: GenerativeModel) -> list[_Move]:
    found = []
    for f, size in enumerate(model.sizes):
        matrix, which = flat_transition(model, f)
        settings = matrix.shape[-1] // size
        same = settings == len(which) and torch.equal(which, torch.arange(len(which), device=which.device))
        found.append(_Move(matrix, settings, None if same or settings == 1 else which))
    return found


def _moved(q: Columns, moves: list[_Move], parents: Sequence[Sequence[int]], U: int) -> Columns:
    """Beliefs [M, R, K_f, S_f] a step on, [M, R, K_f U, S_f]; K_f stays 1 for a factor that no action has touched."""
    width = max(x.shape[2] for x in q)
    found = []
    for f, move in enumerate(moves):
        x = contract(outer([q[g] for g in parents[f]]), move.matrix).unflatten(-1, (move.settings, -1))
        if move.which is not None:
            x = x.index_select(-2, move.which)
        if x.shape[2] == 1 and x.shape[3] == 1:
            found.append(x.squeeze(2))
        else:
            found.append(x.expand(*x.shape[:2], width, U, x.shape[-1]).flatten(2, 3))
    return found


class _Tree:
    """Values of all policies by a tree of prefixes."""

    def __init__(self, layout: Layout, depth: int, objective: Objective, t: int, budget: int) -> None:
        self.model = lifted(layout.model, 2)
        self.counts = lifted_counts(layout.model, layout.counts, 2)
        self.depth, self.objective, self.budget = depth, objective, budget
        self.minds, self.U = layout.minds, layout.model.num_actions
        self.weight = 0.0 if objective.state_information == "none" else objective.state_weight
        times = range(t, t + depth) if self.model.timed else [t]
        showing = [ways_of_showing(self.model, objective, time) for time in times]
        self.showing = showing if self.model.timed else showing * depth
        self.moves = _moves(self.model)
        self.leaf = self._short_cut()
        self.size = torch.finfo(self.model.dtype).bits // 8

    def _short_cut(self) -> Tensor | None:
        """[S, U (X + 1)]: from a belief to what every last action shows and is worth, without the beliefs between."""
        last = self.showing[-1]
        alone = len(self.moves) == 1 and len(last) == 1 and self.objective.parameter_information == "none"
        if not alone or self.moves[0].matrix.ndim != 2 or last[0].linear.ndim != 2:
            return None
        way, move = last[0], self.moves[0]
        shown = way.linear if way.outcomes is None else torch.cat([way.linear, way.outcomes], -1)
        table = move.matrix.unflatten(-1, (move.settings, -1)) @ shown  # [S, V, X + 1]
        if move.settings == 1:
            table = table.expand(-1, self.U, -1)
        elif move.which is not None:
            table = table.index_select(-2, move.which)
        return table.flatten(1)

    def width(self) -> int:
        """Numbers that a node takes while it is weighed."""
        total = sum(self.model.sizes)
        for way in self.showing[0]:
            shown = 0 if way.outcomes is None else way.outcomes.shape[-1]
            total += math.prod(self.model.sizes[f] for f in way.factors) + 2 * shown
        return total

    def bytes_per_row(self) -> int:
        return self.U**self.depth * self.width() * self.size

    def values(self, believed: Columns, prices: tuple[Tensor, ...] | None) -> Tensor:
        """g [M, R, U^L] of beliefs [M, R, S_f]."""
        root = [q.unsqueeze(2) for q in believed]
        own = None if prices is None else tuple(w.unsqueeze(2) for w in prices)
        return self._grow(root, 0, own)

    def _grow(self, q: Columns, level: int, prices: tuple[Tensor, ...] | None) -> Tensor:
        rows = q[0].shape[0] * q[0].shape[1]
        left = self.depth - level
        if left > 1 and rows * self.U**left * self.width() * self.size > max(self.budget, _CACHE):
            ahead, g = self._step(q, level, prices)
            branches = []
            for u in range(self.U):
                branch = [x if x.shape[2] == 1 else x[:, :, u : u + 1] for x in ahead]
                branches.append(g[..., u : u + 1] + self._grow(branch, level + 1, prices))
            return torch.cat(branches, -1)
        total = None
        for step in range(level, self.depth):
            q, g = self._step(q, step, prices)
            total = g if total is None else (total.unsqueeze(-1) + g.unflatten(-1, (-1, self.U))).flatten(-2)
        assert total is not None
        return total

    def _step(self, q: Columns, level: int, prices: tuple[Tensor, ...] | None) -> tuple[Columns, Tensor]:
        if self.leaf is not None and prices is None and level == self.depth - 1:
            x = (q[0] @ self.leaf).unflatten(-1, (self.U, -1))
            g = x[..., 0]
            if x.shape[-1] > 1:
                g = g - self.weight * xlogx(x[..., 1:]).sum(-1)
            return q, g.flatten(2)
        nodes = max(x.shape[2] for x in q)
        ahead = _moved(q, self.moves, self.model.B_factors, self.U)
        g = worth_of_showing(self.showing[level], ahead, self.weight)
        if prices is not None:
            for x, w in zip(ahead, prices, strict=True):
                g = g + (x * w).sum(-1)
        shape = (*q[0].shape[:2], nodes * self.U)
        g = g.expand(shape)
        if self.objective.parameter_information != "none":
            after = [x.expand(*shape, x.shape[-1]) for x in ahead]
            before = [x.expand(*x.shape[:2], nodes, x.shape[-1]).repeat_interleave(self.U, 2) for x in q]
            action = torch.arange(self.U, device=g.device).repeat(nodes).expand(shape)
            learned = parameter_information(self.model, after, self.objective, self.counts, before, action)
            assert learned is not None
            g = g + self.objective.parameter_weight * learned
        return ahead, g


# ---------------------------------------------------------------------------------------- what is not allowed


class _Restrictions:
    """ln E, and minus infinity for what is not allowed, by pieces of agents."""

    def __init__(self, shared: Tensor | None, legal: Tensor | None, depth: int, everywhere: bool) -> None:
        self.shared, self.legal, self.depth, self.everywhere = shared, legal, depth, everywhere

    @classmethod
    def of(
        cls,
        layout: Layout,
        depth: int,
        U: int,
        allowed: Tensor | None,
        legal: Tensor | None,
        legal_at: str,
    ) -> _Restrictions:
        if legal_at not in ("first", "all"):
            raise ConfigError(f"Legal actions restrict the 'first' step or 'all', not {legal_at!r}.")
        shared, E = None, layout.model.E
        if E is not None:
            shared = E.log()
            if E.shape[-1] != U**depth:
                shared = _at_every_step(shared, depth)
            shared = shared.unsqueeze(-2)  # [M, 1, U^L] or [1, U^L]
        if allowed is not None:
            if allowed.dtype != torch.bool or allowed.numel() != U**depth:
                raise ConfigError(f"allowed must be bool [{U**depth}], one for each policy, not {list(allowed.shape)}.")
            if not bool(allowed.any()):
                raise ConfigError("No policy is allowed: allow one at least.")
            closed = torch.where(allowed.flatten(), 0.0, -math.inf).to(layout.believed[0])
            shared = closed if shared is None else shared + closed
        rows = None
        if legal is not None:
            if legal.dtype != torch.bool or legal.shape[-1] != U:
                raise ConfigError(f"legal must be bool [*b, {U}], one for each action, not {list(legal.shape)}.")
            if not bool(legal.any(-1).all()):
                raise ConfigError("Some agents have no legal action: leave them out of the plan, or allow one.")
            rows = _rows(torch.where(legal, 0.0, -math.inf).to(layout.believed[0]), layout.batch, layout, 1)
        return cls(shared, rows, depth, legal_at == "all")

    def of_some(self, minds: slice, rows: slice) -> _Restrictions:
        shared = self.shared
        if shared is not None and shared.ndim > 2:
            shared = shared[minds]
        legal = None if self.legal is None else self.legal[minds, rows]
        return _Restrictions(shared, legal, self.depth, self.everywhere)

    def prior(self, like: Tensor) -> Tensor | None:
        """[M, R, U^L] (or what broadcasts against it), None: all policies alike."""
        if self.legal is None:
            return self.shared
        U = self.legal.shape[-1]
        if self.everywhere:
            wide = _at_every_step(self.legal, self.depth)
        else:
            wide = self.legal.repeat_interleave(like.shape[-1] // U, -1)
        return wide if self.shared is None else wide + self.shared


def _at_every_step(x: Tensor, depth: int) -> Tensor:
    """Of actions [*b, U], added up over the steps of every policy: [*b, U^L]."""
    total = x
    for _ in range(depth - 1):
        total = (total.unsqueeze(-1) + x.unsqueeze(-2)).flatten(-2)
    return total


def _rows(x: Tensor, batch: tuple[int, ...], layout: Layout, core: int = 0) -> Tensor:
    """[*b, ...] as the layout's [M, R, ...]."""
    tail = x.shape[x.ndim - core :]
    return x.expand(*batch, *tail).reshape(layout.minds, layout.rows, *tail)
