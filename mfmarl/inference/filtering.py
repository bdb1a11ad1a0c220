r"""What is believed of hidden states once something has been seen: exactly, or by mean field; and so in time.

$$ F[q] = \underbrace{KL[q(s) \| p(s)]}_{\mathrm{complexity}}
        - \underbrace{\langle \ln p(o \mid s) \rangle_q}_{\mathrm{accuracy}} \ge -\ln p(o), \qquad
   q_f(s_f) \propto p_f(s_f) \exp \sum_{m: f \in pa(m)} \langle \ln A^m(o_m \mid s) \rangle_{q_{\setminus f}} $$

(Friston et al. 2017, "Active inference: a process theory", eq. 4-6; Da Costa et al. 2020, eq. 7.) "exact" is Bayes' rule
over joint states, one modality after the other; factors that no modality ties together are updated apart, which loses
nothing. The others believe in independent factors: "sequential" (one factor after the other: F never rises; Bishop 2006,
eq. 10.9), "parallel" (all at once, as pymdp's fixed-point iteration does: it may cycle, and end at a higher F than it
began), "damped" (all at once, a part of the way).

In time, with one factor the exact filter is the forward algorithm of hidden Markov models (Rabiner 1989, Proc. IEEE 77,
257) and its free energies add up to -ln p(o_1 ... o_T). With several, the product of marginals forgets their
correlations (assumed-density filtering: Boyen and Koller 1998); of `model.joint()` nothing is forgotten.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from mfmarl.errors import ConfigError, nearest
from mfmarl.inference.model import GenerativeModel

Method = Literal["exact", "sequential", "parallel", "damped"]
Soft = Literal["average", "uncertain"]
Seen = Tensor | Sequence[Tensor]
"""Outcomes, int64 [*b, M] (-1: nothing seen of that modality); or weights of outcomes, [*b, O_m] of every modality."""

_CACHED = 1 << 17  # numbers that stay in the cache through the dozen passes of an update
_SMALL = 64  # joint states
_ITERATIONS: dict[str, int] = {"sequential": 256, "parallel": 16, "damped": 256}


class Step(NamedTuple):
    """What is believed once something has been seen."""

    factors: tuple[Tensor, ...]
    """q_f [*b, S_f]."""
    free_energy: Tensor
    """F [*b], nats: complexity - accuracy. The surprise -ln p(o) of an exact update, a bound of it in mean field."""
    complexity: Tensor
    """KL[q || p] [*b]: how far beliefs have moved."""
    accuracy: Tensor
    """E_q[ln p(o | s)] [*b]: how well they explain what was seen."""


# ------------------------------------------------------------------------------------------------- one update


def update(
    model: GenerativeModel,
    expected: Sequence[Tensor],
    seen: Seen,
    method: Method = "exact",
    *,
    iterations: int | None = None,
    damping: float = 0.5,
    tolerance: float | None = None,
    soft: Soft = "average",
    floor: float | None = None,
    check: bool = True,
    terms: bool = True,
) -> Step:
    """From what is expected, [*b, S_f] (or [S_f]) of every factor, to what is believed.

    `iterations`: sweeps at most (256; 16 in parallel, which does them all); the others stop once a sweep lowers F by no
    more than `tolerance` (1 + |F|), each belief for itself: 1e-12 in float64, 1e-6 in float32. `damping`: the part of
    the way that "damped" goes. `soft`: what weights of outcomes mean (see `log_likelihoods`). `floor`: the least
    probability in logarithms; none when exact, else the dtype's least normal number; 2.220446049250313e-16 is pymdp's.
    `terms=False` leaves complexity and accuracy as NaN, to save time.

    Raises ConfigError for outcomes that there are not, or that are impossible (`check=False`: not looked at; a modality
    that is impossible changes no belief then, and F is infinite).
    """
    if method not in get_args(Method):
        raise ConfigError(f"Beliefs are not updated by {method!r}.{nearest(str(method), get_args(Method))}")
    expected = _expected(model, expected)
    if not 0 < damping <= 1:
        raise ConfigError(f"damping={damping}: the part of the way lies in (0, 1].")
    count = _ITERATIONS.get(method, 1) if iterations is None else iterations
    if count < 1:
        raise ConfigError(f"iterations={count}: at least one sweep is needed.")
    _check_seen(model, seen, soft, check)
    if check and method != "exact":
        for m, own in enumerate(likelihoods(model, seen, soft, floor, check=False)):
            before = _aligned_product([expected[f] for f in model.A_factors[m]])
            reached = torch.where(before.isnan(), before, own * (before > 0))
            _refuse_impossible(model, m, seen, reached.flatten(-len(model.A_factors[m])).amax(-1))

    def of(expected: tuple[Tensor, ...], seen: Seen, check: bool) -> Step:
        if method == "exact":
            return _exact(model, expected, seen, soft, floor, check, terms)
        return _mean_field(model, expected, seen, method, count, damping, tolerance, soft, floor, terms)

    length = _piece(model, expected, seen)
    if not length:
        return of(expected, seen, check)
    batch = expected[0].shape[:-1]
    shown = [seen] if isinstance(seen, Tensor) else list(seen)
    pieces = zip(*[x.flatten(0, -2).split(length) for x in (*expected, *shown)], strict=True)
    parts = []
    for piece in pieces:
        rest = piece[len(expected) :]
        parts.append(of(piece[: len(expected)], rest[0] if isinstance(seen, Tensor) else rest, False))
    cost = torch.cat([part.free_energy for part in parts]).view(batch)
    if check and method == "exact" and not bool(cost.isfinite().all()):
        return of(expected, seen, True)  # which says what is impossible, and where
    factors = tuple(torch.cat(x).unflatten(0, batch) for x in zip(*[part.factors for part in parts], strict=True))
    complexity = torch.cat([part.complexity for part in parts]).view(batch)
    return Step(factors, cost, complexity, torch.cat([part.accuracy for part in parts]).view(batch))


def _piece(model: GenerativeModel, expected: tuple[Tensor, ...], seen: Seen) -> int:
    """So many beliefs at a time stay in the cache: 0 where all are taken at once."""
    shown = [seen] if isinstance(seen, Tensor) else list(seen)
    batch = expected[0].shape[:-1]
    own = any(a.ndim > 1 + len(parents) for a, parents in zip(model.A, model.A_factors, strict=True))
    if not batch or own or model.device.type != "cpu" or any(x.shape[:-1] != batch for x in (*expected, *shown)):
        return 0
    length = max(_CACHED // max(model.num_states, 8), 256)
    return length if math.prod(batch) >= 2 * length else 0


def predict(
    model: GenerativeModel, believed: Sequence[Tensor], action: Tensor, *, check: bool = True
) -> tuple[Tensor, ...]:
    """What is expected, [*b, S_f], after actions int64 [*b]: exact for what is believed of independent factors."""
    if check and action.numel() and not (int(action.min()) >= 0 and int(action.max()) < model.num_actions):
        raise ConfigError(f"An action lies outside 0..{model.num_actions - 1}.")
    believed = _expected(model, believed)
    found = []
    for f, own in enumerate(model.B_factors):
        table, setting = transitions(model, f, action)
        found.append(_transported(table, _aligned_product([believed[g] for g in own]).flatten(-len(own)), setting))
    return tuple(found)


def carried_back(model: GenerativeModel, f: int, weight: Tensor, action: Tensor) -> Tensor:
    """sum_s' B^f(s' | ., u) w(s'), [*b, P] of weights [*b, S_f] of next states, by actions int64 [*b]: over P joint parents."""
    table, setting = transitions(model, f, action)
    return _transported(table.mT, weight, setting)


def follow(
    model: GenerativeModel,
    observations: Seen,
    actions: Tensor,
    method: Method = "exact",
    *,
    first: Sequence[Tensor] | None = None,
    iterations: int | None = None,
    damping: float = 0.5,
    tolerance: float | None = None,
    soft: Soft = "average",
    floor: float | None = None,
    check: bool = True,
    terms: bool = True,
) -> tuple[list[tuple[Tensor, ...]], Tensor]:
    """Beliefs after each of `observations` [T, *b, M] (or [T, *b, O_m] each), with `actions` [T - 1, *b] between them;
    and F [T, *b].

    An action -1 means that what comes next is the first thing seen of a new episode. `first`: what is expected at first,
    D unless given.
    """
    times = (observations if isinstance(observations, Tensor) else observations[0]).shape[0]
    if len(actions) != times - 1:
        raise ConfigError(f"{times} observations have one action less between them, not {len(actions)}.")
    if check and actions.numel() and not (int(actions.min()) >= -1 and int(actions.max()) < model.num_actions):
        raise ConfigError(f"An action lies outside 0..{model.num_actions - 1} (-1: a new episode).")
    begin = _expected(model, model.D if first is None else first)
    expected = begin
    believed: list[tuple[Tensor, ...]] = []
    costs: list[Tensor] = []
    for t in range(times):
        if t:
            expected = expect(model, believed[-1], actions[t - 1])
        seen = observations[t] if isinstance(observations, Tensor) else [o[t] for o in observations]
        step = update(
            model,
            expected,
            seen,
            method,
            iterations=iterations,
            damping=damping,
            tolerance=tolerance,
            soft=soft,
            floor=floor,
            check=check,
            terms=terms,
        )
        believed.append(step.factors)
        costs.append(step.free_energy)
    return believed, torch.stack(torch.broadcast_tensors(*costs))


def expect(model: GenerativeModel, believed: Sequence[Tensor], action: Tensor) -> tuple[Tensor, ...]:
    """`predict`, and D where the action is -1: there a new episode begins."""
    after = predict(model, believed, action.clamp(min=0), check=False)
    begun = (action < 0).unsqueeze(-1)
    return tuple(torch.where(begun, d, p) for d, p in zip(model.D, after, strict=True))


# ------------------------------------------------------------------------------------------- what has been seen


def log_likelihoods(
    model: GenerativeModel, seen: Seen, soft: Soft = "average", floor: float | None = None, *, check: bool = True
) -> tuple[Tensor, ...]:
    """ln p(o_m | s) [*b, S_pa(m), ...] of every modality: 0 where nothing was seen of it.

    Weights w of outcomes are taken as `soft` says: "average", sum_o w_o ln A(o | s), as pymdp has it, or "uncertain",
    ln sum_o w_o A(o | s), Bayes' rule for evidence that is itself uncertain. No weight at all is nothing seen.
    """
    least = _least(model, floor)
    _check_seen(model, seen, soft, check)
    found = []
    for a, own, shown in zip(model.A, model.A_factors, _each(seen), strict=True):
        core = len(own)
        if not shown.is_floating_point():
            if a.ndim == 1 + core:
                found.append(_looked_up(a.clamp(min=least).log(), shown, core, 0.0))
            else:  # fewer logarithms: of what is looked up
                found.append(_looked_up(a, shown, core, 1.0).clamp(min=least).log())
        elif soft == "average":
            found.append(_weighed(a.clamp(min=least).log(), shown, core))
        else:
            logs = _weighed(a.clamp(min=least), shown, core).clamp(min=least).log()
            found.append(torch.where(_unseen(shown, core), 0.0, logs))
    return tuple(found)


def likelihoods(
    model: GenerativeModel, seen: Seen, soft: Soft = "average", floor: float | None = None, *, check: bool = True
) -> tuple[Tensor, ...]:
    """p(o_m | s) [*b, S_pa(m), ...] of every modality, 1 where nothing was seen of it; see `log_likelihoods`."""
    _check_seen(model, seen, soft, check)
    shown = _each(seen)
    return tuple(_likelihood(a, shown[m], len(model.A_factors[m]), soft, floor) for m, a in enumerate(model.A))


def _likelihood(table: Tensor, shown: Tensor, core: int, soft: Soft, floor: float | None) -> Tensor:
    """[*b, S, ...] of a table [*p, O, S, ...] (so many axes of states) and what is shown, outcomes [*b] or weights [*b, O]."""
    if floor is not None:
        table = table.clamp(min=floor)
    if not shown.is_floating_point():
        return _looked_up(table, shown, core, 1.0)
    if soft == "uncertain":
        return torch.where(_unseen(shown, core), 1.0, _weighed(table, shown, core))
    # A weight on what is impossible in a state rules the state out; no weight on it says nothing.
    none = table == 0
    excluded = _weighed(none.to(table.dtype), shown, core) > 0
    return _weighed(table.log().masked_fill(none, 0.0), shown, core).exp().masked_fill(excluded, 0.0)


def transitions(model: GenerativeModel, f: int, action: Tensor) -> tuple[Tensor, Tensor | None]:
    """Factor f's B as [*p, V, S_f, P] by the V settings of its own controls and its P = prod S_pa joint parents, and the
    setting that each action int64 [*b] is (None: it has no control)."""
    table, own, parents = model.B[f], model.B_controls[f], len(model.B_factors[f])
    lead = table.ndim - 1 - parents - len(own)
    table = table.flatten(lead + 1, lead + parents)
    if not own:
        return table.unsqueeze(lead), None
    table = table.flatten(lead + 2).movedim(-1, lead)
    if own == tuple(range(len(model.controls))):
        return table, action
    index = torch.zeros(model.num_actions, dtype=torch.int64)
    settings = model.settings()
    for g in own:
        index = index * model.controls[g] + settings[:, g]
    return table, index.to(action.device)[action]


# ------------------------------------------------------------------------------------------------ free energy


def free_energy(
    model: GenerativeModel,
    expected: Sequence[Tensor],
    seen: Seen,
    believed: Sequence[Tensor],
    *,
    soft: Soft = "average",
    floor: float | None = None,
) -> Step:
    """F of any independent beliefs [*b, S_f], under what was expected and has been seen."""
    logs = log_likelihoods(model, seen, soft, floor)
    expected, believed = _expected(model, expected), _expected(model, believed)
    least = _least(model, floor)
    complexity = sum_of([_relative_entropy(q, p, least) for q, p in zip(believed, expected, strict=True)])
    accuracy = sum_of([_average(x, [believed[f] for f in own]) for x, own in zip(logs, model.A_factors, strict=True)])
    return Step(tuple(believed), complexity - accuracy, complexity, accuracy)


def energy_and_entropy(
    model: GenerativeModel,
    expected: Sequence[Tensor],
    seen: Seen,
    believed: Sequence[Tensor],
    *,
    soft: Soft = "average",
    floor: float | None = None,
) -> tuple[Tensor, Tensor]:
    """The other way to split F of independent beliefs: U = -E_q[ln p(o, s)] and H[q], each [*b], with F = U - H."""
    step = free_energy(model, expected, seen, believed, soft=soft, floor=floor)
    entropy = sum_of([-torch.xlogy(q, q).sum(-1) for q in step.factors])
    return step.free_energy + entropy, entropy


# ------------------------------------------------------------------------------------------------------- exact


def _exact(
    model: GenerativeModel,
    expected: tuple[Tensor, ...],
    seen: Seen,
    soft: Soft,
    floor: float | None,
    check: bool,
    terms: bool,
) -> Step:
    shown = _each(seen)
    if floor is not None:
        expected = tuple(p.clamp(min=floor) for p in expected)
    info = torch.finfo(model.dtype)
    costs, accuracies = [], []
    factors: list[Tensor] = list(expected)
    for group in _tied(model):
        own = [m for m, parents in enumerate(model.A_factors) if parents[0] in group]
        if not own:
            continue
        sizes = [model.sizes[f] for f in group]
        before = (
            expected[group[0]]
            if len(group) == 1
            else _aligned_product([expected[f] for f in group]).flatten(-len(group))
        )
        like = [_over(model, m, group, shown[m], soft, floor) for m in own]
        whole = like[0]
        for x in like[1:]:
            whole = whole * x
        weight = before * whole
        evidence = weight.sum(-1, keepdim=True)
        if evidence.numel() and not float(evidence.amin()) > info.tiny / info.eps:
            # Something is impossible, or many small numbers too small: one modality after the other.
            q, cost = _one_by_one(model, own, like, before, seen, check)
            accuracy = sum_of([torch.xlogy(q, x).sum(-1) for x in like]) if terms else cost
        else:
            q, cost = weight / evidence, -evidence.squeeze(-1).log()
            accuracy = (q * whole.clamp(min=info.tiny).log()).sum(-1) if terms else cost
        costs.append(cost)
        accuracies.append(accuracy)
        for f, marginal in zip(group, _marginals(q, sizes), strict=True):
            factors[f] = marginal
    cost = sum_of(costs)
    batch = cost.shape
    settled = tuple(q.expand(*batch, q.shape[-1]) for q in factors)
    if not terms:
        absent = cost.new_full((), math.nan).expand(batch)
        return Step(settled, cost, absent, absent)
    accuracy = sum_of(accuracies)
    return Step(settled, cost, cost + accuracy, accuracy)


def _marginals(q: Tensor, sizes: Sequence[int]) -> Sequence[Tensor]:
    """[*b, S_f] of each factor of joint beliefs [*b, S]."""
    if len(sizes) == 1:
        return (q,)
    if q.shape[-1] <= _SMALL:  # sums over few states are dearer than a product of matrices
        return (q @ _members(tuple(sizes), q.dtype, q.device)).split(list(sizes), -1)
    joint, count = q.unflatten(-1, list(sizes)), len(sizes)
    return [joint.sum([j - count for j in range(count) if j != i]) for i in range(count)]


@lru_cache(64)
def _members(sizes: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Which state of each factor a joint state is, one-hot: [S, sum S_f]."""
    places = torch.cartesian_prod(*[torch.arange(s) for s in sizes])
    hot = [torch.nn.functional.one_hot(places[:, f], s) for f, s in enumerate(sizes)]
    return torch.cat(hot, -1).to(device, dtype)


def _over(
    model: GenerativeModel, m: int, group: tuple[int, ...], shown: Tensor, soft: Soft, floor: float | None
) -> Tensor:
    """The likelihood [*b, S] of what is shown over all joint states of a group of factors."""
    table, own = model.A[m], model.A_factors[m]
    sizes = [model.sizes[f] for f in group]
    if table.ndim == 1 + len(own):  # shared: spread once for all
        table = _among(table, own, group).expand(-1, *sizes).flatten(1) if len(group) > 1 else table
        return _likelihood(table, shown, 1, soft, floor)
    found = _among(_likelihood(table, shown, len(own), soft, floor), own, group)
    return found.expand(*found.shape[: -len(group)], *sizes).flatten(-len(group))


def _one_by_one(
    model: GenerativeModel, own: Sequence[int], like: Sequence[Tensor], before: Tensor, seen: Seen, check: bool
) -> tuple[Tensor, Tensor]:
    """Bayes' rule for one modality after the other: beliefs [*b, S] and -ln p(o) [*b]. What is impossible is refused, or
    passed over with infinite cost."""
    q, costs = before, []
    for m, x in zip(own, like, strict=True):
        weight = q * x
        evidence = weight.sum(-1, keepdim=True)
        if check:
            _refuse_impossible(model, m, seen, evidence.squeeze(-1))
        q = torch.where(evidence > 0, weight / evidence, q)
        costs.append(-evidence.squeeze(-1).log())
    return q, sum_of(costs)


def _tied(model: GenerativeModel) -> list[tuple[int, ...]]:
    """Factors that some chain of modalities ties together: beliefs of different groups stay independent."""
    groups = [{f} for f in range(len(model.sizes))]
    for own in model.A_factors:
        joined = set().union(*[g for g in groups if g & set(own)])
        groups = [g for g in groups if not g & joined] + [joined]
    return sorted(tuple(sorted(g)) for g in groups)


# -------------------------------------------------------------------------------------------------- mean field


def _mean_field(
    model: GenerativeModel,
    expected: tuple[Tensor, ...],
    seen: Seen,
    method: str,
    iterations: int,
    damping: float,
    tolerance: float | None,
    soft: Soft,
    floor: float | None,
    terms: bool,
) -> Step:
    least = _least(model, floor)
    logs = log_likelihoods(model, seen, soft, floor, check=False)
    batch = torch.broadcast_shapes(
        *[p.shape[:-1] for p in expected],
        *[x.shape[: x.ndim - len(own)] for x, own in zip(logs, model.A_factors, strict=True)],
    )
    # States in front and beliefs behind: sums over few states are then done side by side for all beliefs.
    priors = [p.expand(*batch, p.shape[-1]).reshape(-1, p.shape[-1]).mT.contiguous() for p in expected]
    log_priors = [p.clamp(min=least).log() for p in priors]
    terms_of = _gathered(model, logs, log_priors, batch)
    if method == "parallel":
        q = [torch.full_like(p, 1 / len(p)) for p in priors]
        for _ in range(iterations):
            q = [torch.softmax(_message(terms_of, q, f), 0) for f in range(len(q))]
    else:
        if tolerance is None:
            tolerance = 1e-12 if model.dtype == torch.float64 else 1e-6
        q = _descend(terms_of, priors, damping if method == "damped" else None, iterations, tolerance, least)
    value = _cost(terms_of, q).view(batch)
    factors = tuple(x.unflatten(1, batch).movedim(0, -1) if batch else x.squeeze(1) for x in q)
    if not terms:
        absent = value.new_full((), math.nan).expand(batch)
        return Step(factors, value, absent, absent)
    complexity = sum_of([_divergence(x, u) for x, u in zip(q, log_priors, strict=True)]).view(batch)
    return Step(factors, value, complexity, complexity - value)


class _Terms(NamedTuple):
    """What bears on every factor alone, logarithms [S_f, n], and on several together: their numbers, [S_f, S_g, ..., n]."""

    alone: list[Tensor]
    tied: list[tuple[tuple[int, ...], Tensor]]

    def of(self, rows: Tensor) -> _Terms:
        return _Terms(
            [x.index_select(-1, rows) for x in self.alone], [(own, x.index_select(-1, rows)) for own, x in self.tied]
        )


def _descend(
    terms: _Terms, start: list[Tensor], damping: float | None, iterations: int, tolerance: float, least: float
) -> list[Tensor]:
    """Beliefs [S_f, n] of each factor after sweeps over them, each until its own free energy has settled."""
    found, q = [x.clone() for x in start], list(start)
    rows = torch.arange(start[0].shape[1], device=start[0].device)
    last: Tensor | None = None
    for sweep in range(iterations):
        if damping is None:
            for f in range(len(q)):
                logs = _message(terms, q, f)
                q[f] = torch.softmax(logs, 0)
            # F, of which the last factor's own part is the logarithm of its normalisation.
            value = _cost(terms, q[:-1]) - torch.logsumexp(logs, 0)
        else:
            before = [x.clamp(min=least).log() for x in q]
            after = [_message(terms, q, f) for f in range(len(q))]
            q = [torch.softmax(x + damping * (v - x), 0) for x, v in zip(before, after, strict=True)]
            value = _cost(terms, q)
        if sweep + 1 == iterations or (damping is None and not terms.tied):
            break
        if last is not None:
            moving = (last - value).abs() > tolerance * (1 + value.abs())
            left = moving.nonzero().squeeze(-1)
            if len(left) < len(rows):
                # The settled are done with, whomever they were computed with: most are within a few sweeps.
                for x, y in zip(found, q, strict=True):
                    x.index_copy_(1, rows, y)
                rows, value, terms = rows[left], value[left], terms.of(left)
                q = [x.index_select(1, left) for x in q]
                if not len(rows):
                    return found
        last = value
    for x, y in zip(found, q, strict=True):
        x.index_copy_(1, rows, y)
    return found


def _message(terms: _Terms, q: list[Tensor], f: int) -> Tensor:
    """ln q_f [S_f, n], up to a constant, that is best given the other factors."""
    total = terms.alone[f]
    for own, table in terms.tied:
        if f in own:
            total = total + _contracted(table, [q[g] for g in own], own.index(f))
    return total


def _cost(terms: _Terms, q: list[Tensor]) -> Tensor:
    """F [n] of the first factors: of the terms that bear on these only."""
    total = terms.alone[0].new_zeros(terms.alone[0].shape[1])
    for x, u in zip(q, terms.alone, strict=False):
        total = total + _divergence(x, u)
    for own, table in terms.tied:
        if max(own) < len(q):
            total = total - _contracted(table, [q[g] for g in own])
    return total


def _divergence(q: Tensor, logs: Tensor) -> Tensor:
    """sum q (ln q - logs) over states in front."""
    return (q * (q.clamp(min=torch.finfo(q.dtype).tiny).log() - logs)).sum(0)


def _gathered(
    model: GenerativeModel, logs: Sequence[Tensor], log_priors: Sequence[Tensor], batch: torch.Size
) -> _Terms:
    alone = list(log_priors)
    tied: dict[tuple[int, ...], Tensor] = {}
    for own, x in zip(model.A_factors, logs, strict=True):
        order = tuple(sorted(own))
        x = x.expand(*batch, *x.shape[x.ndim - len(own) :]).reshape(-1, *x.shape[x.ndim - len(own) :])
        x = x.permute(*[1 + own.index(f) for f in order], 0)
        if len(own) == 1:
            alone[own[0]] = alone[own[0]] + x
        else:
            tied[order] = tied[order] + x if order in tied else x.contiguous()
    return _Terms(alone, list(tied.items()))


def _contracted(table: Tensor, weights: Sequence[Tensor], keep: int | None = None) -> Tensor:
    """The average of a table [S_1, ..., S_k, *b] over independent weights [S_i, *b], but for the axis that is kept."""
    axis = 0
    for i, w in enumerate(weights):
        if i == keep:
            axis = 1
            continue
        rest = len(weights) - i - 1
        shape = (len(w), *[1] * rest, *w.shape[1:])
        table = (table * w.reshape(shape)).sum(axis)
    return table


# ----------------------------------------------------------------------------------------------------- pieces


def sum_of(terms: Sequence[Tensor]) -> Tensor:
    """The sum of tensors that broadcast."""
    total = terms[0]
    for x in terms[1:]:
        total = total + x
    return total


def _least(model: GenerativeModel, floor: float | None) -> float:
    return torch.finfo(model.dtype).tiny if floor is None else floor


def _relative_entropy(q: Tensor, p: Tensor, least: float) -> Tensor:
    return (torch.xlogy(q, q) - q * p.clamp(min=least).log()).sum(-1)


def _expected(model: GenerativeModel, beliefs: Sequence[Tensor]) -> tuple[Tensor, ...]:
    found = tuple(beliefs)
    if tuple(q.shape[-1] if q.ndim else 0 for q in found) != model.sizes:
        shapes = [list(q.shape) for q in found]
        raise ConfigError(f"Beliefs must be of factors of {list(model.sizes)} states, [*b, S_f] each, not {shapes}.")
    return found


def _aligned_product(factors: Sequence[Tensor]) -> Tensor:
    """[*b, S_1, ..., S_k] of independent beliefs [*b, S_i]."""
    total = factors[0]
    for i, q in enumerate(factors[1:], 1):
        total = total.unsqueeze(-1) * q.reshape(*q.shape[:-1], *[1] * i, q.shape[-1])
    return total


def _among(table: Tensor, own: tuple[int, ...], group: tuple[int, ...]) -> Tensor:
    """[*b, S_pa, ...] with an axis for every factor of a group, of size 1 where it does not depend on it."""
    if own == group:
        return table
    lead = table.ndim - len(own)
    order = sorted(range(len(own)), key=lambda i: own[i])
    table = table.permute(*range(lead), *[lead + i for i in order])
    sizes = iter(table.shape[lead:])
    return table.reshape(*table.shape[:lead], *[next(sizes) if f in own else 1 for f in group])


def _average(table: Tensor, weights: Sequence[Tensor]) -> Tensor:
    """The average [*b] of a table [*b, S_1, ..., S_k] over independent weights [*b, S_i]."""
    for before in reversed(range(len(weights))):
        w = weights[before]
        table = (table * w.reshape(*w.shape[:-1], *[1] * before, w.shape[-1])).sum(-1)
    return table


def _looked_up(table: Tensor, outcome: Tensor, core: int, unseen: float) -> Tensor:
    """[*b, S, ...] of a table [*p, O, S, ...] (so many axes of states) at outcomes [*b]; `unseen` where they are -1."""
    lead = table.ndim - 1 - core
    states = table.shape[lead + 1 :]
    if lead == 0:
        size = len(table)
        rows = torch.cat((table, table.new_full((1, *states), unseen))).flatten(1)
        return rows.index_select(0, torch.where(outcome < 0, size, outcome).reshape(-1)).view(*outcome.shape, *states)
    batch = torch.broadcast_shapes(table.shape[:lead], outcome.shape)
    where = outcome.expand(batch).reshape(*batch, *[1] * (core + 1))
    found = table.expand(*batch, *table.shape[lead:]).gather(len(batch), where.clamp(min=0).expand(*batch, 1, *states))
    return torch.where(where < 0, unseen, found).squeeze(len(batch))


def _weighed(table: Tensor, weight: Tensor, core: int) -> Tensor:
    """sum_o w_o table(o, s), [*b, S, ...] of a table [*p, O, S, ...] and weights [*b, O]."""
    states = table.shape[table.ndim - core :]
    flat = table.flatten(-core)
    if flat.ndim > 2 and flat.shape[-3] == 1 and weight.ndim > 1:
        return (weight @ flat.squeeze(-3)).unflatten(-1, states)
    if flat.ndim == 2:
        return (weight @ flat).unflatten(-1, states)
    return (weight.unsqueeze(-2) @ flat).squeeze(-2).unflatten(-1, states)


def _unseen(weight: Tensor, core: int) -> Tensor:
    return (weight == 0).all(-1).reshape(*weight.shape[:-1], *[1] * core)


def _transported(table: Tensor, x: Tensor, setting: Tensor | None) -> Tensor:
    """[*b, S'] where weights [*b, P] are led by tables [*p, V, S', P], each by that of its setting [*b]."""
    lead, (count, size, parents) = table.ndim - 3, table.shape[-3:]
    if setting is None or count == 1:
        found = _moved(table.select(lead, 0), x)
        return (
            found if setting is None else found.expand(*torch.broadcast_shapes(found.shape[:-1], setting.shape), size)
        )
    if lead:
        if table.shape[lead - 1] == 1 and setting.shape[-1:] != (1,) and count <= 8:
            total: Tensor | None = None
            for v in range(count):
                part = _moved(table.select(lead, v), x * (setting == v).unsqueeze(-1))
                total = part if total is None else total + part
            assert total is not None
            return total
        batch = torch.broadcast_shapes(table.shape[:lead], setting.shape, x.shape[:-1])
        where = setting.expand(batch).reshape(*batch, 1, 1, 1).expand(*batch, 1, size, parents)
        chosen = table.expand(*batch, count, size, parents).gather(len(batch), where).squeeze(len(batch))
        return (chosen @ x.unsqueeze(-1)).squeeze(-1)
    batch = torch.broadcast_shapes(setting.shape, x.shape[:-1])
    number = math.prod(batch)
    if number < 4 * count or x.device.type != "cpu":
        return _chosen(table, x, setting, batch)
    # Those of one setting together: a matrix product for each, and no table for each belief.
    rows, which = x.expand(*batch, parents).reshape(number, parents), setting.expand(batch).reshape(number)
    out = rows.new_empty(number, size)
    for v in range(count):
        here = (which == v).nonzero().squeeze(-1)
        out.index_copy_(0, here, rows.index_select(0, here) @ table[v].mT)
    return out.view(*batch, size)


def _chosen(table: Tensor, x: Tensor, setting: Tensor, batch: torch.Size) -> Tensor:
    """All settings' results, and of each belief the one that it chose: nothing is waited for."""
    count, size, parents = table.shape
    found = (x @ table.reshape(count * size, parents).mT).view(*x.shape[:-1], count, size)
    where = setting.expand(batch).reshape(*batch, 1, 1).expand(*batch, 1, size)
    return found.expand(*batch, count, size).gather(-2, where).squeeze(-2)


def _moved(table: Tensor, x: Tensor) -> Tensor:
    """[*b, S'] of tables [*p, S', P] and weights [*b, P]."""
    if table.ndim == 2:
        return x @ table.mT
    if table.shape[-3] == 1 and x.ndim > 1:  # one table for a row of beliefs: a product of matrices
        return x @ table.squeeze(-3).mT
    return (table @ x.unsqueeze(-1)).squeeze(-1)


# ------------------------------------------------------------------------------------------------------ checks


def _each(seen: Seen) -> Sequence[Tensor]:
    """What is shown of every modality: outcomes [*b] or weights [*b, O_m]."""
    return seen.unbind(-1) if isinstance(seen, Tensor) else seen


def _check_seen(model: GenerativeModel, seen: Seen, soft: str, check: bool) -> None:
    if isinstance(seen, Tensor):
        _check_outcomes(model, seen, check)
    else:
        _check_weights(model, seen, soft, check)


def _check_outcomes(model: GenerativeModel, seen: Tensor, check: bool) -> None:
    if seen.dtype != torch.int64 or not seen.ndim or seen.shape[-1] != len(model.A):
        raise ConfigError(
            f"{len(model.A)} modalities need observations int64 [*b, {len(model.A)}], not {seen.dtype} {list(seen.shape)}."
        )
    if not check or not seen.numel():
        return
    flat = seen.reshape(-1, len(model.A))
    for m, (low, high) in enumerate(zip(flat.amin(0).tolist(), flat.amax(0).tolist(), strict=True)):
        if low < -1 or high >= model.outcomes[m]:
            raise ConfigError(
                f"Outcome {low if low < -1 else high} of modality {model.modalities[m]!r} lies outside "
                f"0..{model.outcomes[m] - 1} (-1: nothing seen)."
            )


def _check_weights(model: GenerativeModel, seen: Sequence[Tensor], soft: str, check: bool) -> None:
    if soft not in get_args(Soft):
        raise ConfigError(f"Weights of outcomes are not taken as {soft!r}.{nearest(str(soft), get_args(Soft))}")
    if tuple(w.shape[-1] for w in seen) != model.outcomes:
        raise ConfigError(
            f"Soft observations must be weights of {list(model.outcomes)} outcomes, [*b, O_m] of each modality, not "
            f"{[list(w.shape) for w in seen]}."
        )
    if check:
        for name, w in zip(model.modalities, seen, strict=True):
            if not bool((w >= 0).all()):
                raise ConfigError(f"Weights of modality {name!r}'s outcomes must be numbers that are not negative.")


def _refuse_impossible(model: GenerativeModel, m: int, seen: Seen, evidence: Tensor) -> None:
    wrong = ~(evidence > 0)
    if not bool(wrong.any()):
        return
    where = wrong.nonzero()[0].tolist()
    name = model.modalities[m]
    if isinstance(seen, Tensor):
        outcomes = seen[..., m].expand(wrong.shape) if seen.ndim > 1 else seen[m].expand(wrong.shape)
        what = f"Outcome {int(outcomes[tuple(where)])} of modality {name!r}"
    else:
        what = f"What is shown of modality {name!r}"
    if bool(evidence.isnan().any()):
        raise ConfigError(f"Beliefs on which {what[0].lower() + what[1:]} bears hold NaN (first at {where}).")
    raise ConfigError(
        f"{what} is impossible by what is expected and the other modalities (belief {where}, {int(wrong.sum())} in all): "
        f"its A is 0 in every state that can be; give A a floor, as (A + 1e-6) / (A + 1e-6).sum over outcomes, or mend D "
        "or B that exclude the state."
    )
