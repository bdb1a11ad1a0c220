r"""Sophisticated inference: an agent that plans what it would believe, and do, after each thing it might see.

$$ g_h(u \mid q) = g_1(u \mid q) + \sum_o Q(o \mid u, q)\, V_{h-1}(q_{u,o}), \qquad
   V(q) = \begin{cases} \frac1\gamma \log \sum_u E(u)\, e^{\gamma g(u \mid q)} & \text{free energy} \\
                        \sum_u Q(u)\, g(u \mid q), \; Q \propto E e^{\gamma g} & \text{expectation} \\
                        \max_u g(u \mid q) & \text{max} \end{cases} $$

with q_{u,o} the posterior after doing u and seeing o (Friston et al. 2021, "Sophisticated inference", Neural
Computation 33, 713, eq. 3.7-3.9, which backs up expectations; so does pymdp). With known states and no epistemic term
the free-energy back-up is soft value iteration and `max` is value iteration; `expectation` is neither: each node
evaluates a Gibbs policy that it does not improve.

A look is worth what it tells, once: what has been seen is known ever after. Open loop, looking twice at the same cue
counts it twice.

The tree grows level by level, all agents at once, a tensor for each level; nodes of one level (and one model) that
believe the same are one node. Levels have O((U K)^h) nodes for U actions and K outcomes where none agree.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from mfmarl.errors import ConfigError, nearest
from mfmarl.inference import expected_free_energy, filtering
from mfmarl.inference.model import GenerativeModel
from mfmarl.inference.objective import Objective, Plan, Terms
from mfmarl.inference.planning.layout import Layout, arrange, habits, lifted, lifted_counts
from mfmarl.statmech import gibbs

Backup = Literal["free_energy", "expectation", "max"]
Branching = Literal["outcomes", "independent_outcomes", "states"]

BUDGET = 1 << 30
"""Bytes that a tree may take; more agents than fit are planned for one part after the other."""
_LIKELY = 1 / 16  # of SPM: states less likely than that share of the likeliest are not followed ...
_MOST_STATES = 16  # ... and no more than so many


@dataclass(frozen=True)
class Pruning:
    """What is left out of the tree. The default: nothing but the impossible, and the tree is exact."""

    outcomes: float = 0.0
    """Outcomes with no more than this probability are not followed; of the others the mean is taken."""
    merge: bool = True
    """Whether equal beliefs of one level are one node."""

    def __post_init__(self) -> None:
        if not 0 <= self.outcomes < 1:
            raise ConfigError(f"Pruning.outcomes is a probability below 1, not {self.outcomes}.")


class Level(NamedTuple):
    """Nodes of one depth: M minds with R nodes each."""

    believed: tuple[Tensor, ...]  # q_f [M, R, S_f]
    value: Tensor  # g_1 [M, R, U]
    child: Tensor | None  # int64 [M, R, U, K]: nodes of the next level, -1: not followed; None at the last one
    chance: Tensor | None  # [M, R, U, K]


def plan(
    model: GenerativeModel,
    believed: Sequence[Tensor],
    depth: int,
    gamma: float | Tensor = 1.0,
    objective: Objective = Objective(),  # noqa: B008
    backup: Backup = "free_energy",
    counts: object = None,
    t: int = 0,
    budget: int = BUDGET,
    *,
    branching: Branching = "outcomes",
    method: filtering.Method = "exact",
    pruning: Pruning = Pruning(),
    beyond: Tensor | None = None,
    discount: float = 1.0,
) -> Plan:
    """What every first action is worth, [*b, U], looking `depth` actions ahead from beliefs [*b, S_f].

    `beyond` [*p, S] is what it is worth to have come to each joint state by the last of them: of a table of values, as if
    states were known from then on (QMDP, Littman et al. 1995), for what lies farther than a tree reaches. `discount` is
    what each step counts of the one before it.

    `branching`: on everything that may be seen jointly; on modalities as if they were independent given the action
    (pymdp; exact where all but one are certain); or on hidden states, seeing what each would show on average (SPM).
    `method` updates beliefs of several factors, as in `filtering.update`; "exact" is Bayes over all joint states, after
    which factors are taken to be independent. Counts are held as they are along the tree.

    Raises ConfigError where one agent's tree is larger than the budget, and for options that do not exist.
    """
    if depth < 1:
        raise ConfigError(f"Planning needs a depth of at least 1 action, not {depth}.")
    check_backup(backup)
    if branching not in ("outcomes", "independent_outcomes", "states"):
        known = ["outcomes", "independent_outcomes", "states"]
        raise ConfigError(f"There is no branching {branching!r}.{nearest(str(branching), known)}")
    whole = arrange(model, believed, gamma, counts)
    log_habit = habits(whole.model)
    first, back = _different(whole, pruning.merge)
    if not 0 <= discount <= 1:
        raise ConfigError(f"A discount lies between 0 and 1, not at {discount:g}.")
    if beyond is not None:
        if beyond.shape[-1] != model.num_states or beyond.numel() // beyond.shape[-1] not in (1, whole.minds):
            raise ConfigError(
                f"beyond must be what {model.num_states} joint states are worth, not {list(beyond.shape)}."
            )
        beyond = discount * beyond.reshape(-1, 1, 1, model.num_states)
    tree = Growth(
        whole.model,
        objective,
        counts=whole.counts,
        t=t,
        branching=branching,
        method=method,
        pruning=pruning,
        beyond=beyond,
    )
    found: list[Tensor] = []
    start, step = 0, first.rows
    while start < first.rows:
        part = first.take(slice(start, start + step))
        try:
            levels = tree.grow(part.believed, depth, budget)
        except TooLarge as error:
            if part.rows == 1:
                raise ConfigError(
                    f"A tree of depth {depth} with {model.num_actions} actions and {tree.branches} branches after each "
                    f"needs {error.size / 2**20:,.3g} MiB at depth {error.level + 1} for one agent of "
                    f"{whole.minds} model(s), and the budget is {budget / 2**20:,.3g} MiB: plan less deep, prune "
                    "outcomes, raise the budget, or use planning.search."
                ) from error
            step = -(-min(step, part.rows) // 2)
            continue
        found.append(back_through(levels, whole.gamma, backup, log_habit, discount))
        start += part.rows
    value = found[0] if len(found) == 1 else torch.cat(found, 1)
    value = value if back is None else value.gather(1, back.unsqueeze(-1).expand(*back.shape, value.shape[-1]))
    if log_habit is not None:
        value = value + _led(log_habit, 1) / whole.precision(2)
    return Plan(whole.back(value), None, tree.first_terms(whole))


def check_backup(backup: str) -> None:
    """Raises ConfigError for a back-up that does not exist."""
    known = ["free_energy", "expectation", "max"]
    if backup not in known:
        raise ConfigError(f"There is no back-up {backup!r}.{nearest(str(backup), known)}")


def back_up(value: Tensor, gamma: float | Tensor, backup: Backup, log_habit: Tensor | None = None) -> Tensor:
    """V [*b] of values g [*b, U] of actions, habits left out; `gamma` broadcasts against [*b], ln E against [*b, U]."""
    wide = gamma.unsqueeze(-1) if isinstance(gamma, Tensor) and gamma.ndim else gamma
    if backup == "max" or (isinstance(gamma, float) and gamma == math.inf):
        allowed = value if log_habit is None else value.masked_fill(log_habit == -math.inf, -math.inf)
        return allowed.amax(-1)
    score = wide * value if log_habit is None else wide * value + log_habit
    if backup == "free_energy":
        return torch.logsumexp(score, -1) / gamma
    p = gibbs.softmax(score)
    # What no habit ever does has probability 0, whatever it would be worth.
    return torch.where(p > 0, p * value, torch.zeros_like(p)).sum(-1)


def back_through(
    levels: Sequence[Level], gamma: float | Tensor, backup: Backup, log_habit: Tensor | None, discount: float = 1.0
) -> Tensor:
    """g_h [M, R, U] of the first level, from the last one upwards."""
    precision = gamma.unsqueeze(-1) if isinstance(gamma, Tensor) else gamma
    habit = None if log_habit is None else _led(log_habit, 1)
    value = levels[-1].value
    for level in reversed(levels[:-1]):
        ahead = back_up(value, precision, backup, habit)  # [M, R']
        assert level.child is not None and level.chance is not None
        follows = ahead.gather(1, level.child.clamp(min=0).flatten(1)).view(level.child.shape)
        value = level.value + discount * (level.chance * follows).sum(-1)
    return value


def _led(x: Tensor, core: int) -> Tensor:
    """[M, core axis] or [core axis] against [M, R, core axis]."""
    return x.unsqueeze(1) if x.ndim > core else x


class TooLarge(Exception):
    """A tree beyond its budget: at which level, and of how many bytes."""

    def __init__(self, level: int, size: float) -> None:
        super().__init__()
        self.level, self.size = level, size


class Growth:
    """How one model's trees grow: what every action leads to, shows and is worth."""

    def __init__(
        self,
        model: GenerativeModel,
        objective: Objective,
        *,
        counts: object = None,
        t: int = 0,
        branching: Branching = "outcomes",
        method: filtering.Method = "exact",
        pruning: Pruning = Pruning(),
        beyond: Tensor | None = None,
    ) -> None:
        self.model, self.objective, self.t, self.beyond = model, objective, t, beyond
        self.branching, self.method, self.pruning = branching, method, pruning
        self.moves = [model.of_action(f) for f in range(len(model.sizes))]  # [*p, U, S_f', S_pa...]
        self.wide = lifted(model, 2)
        self.ways: dict[int, tuple[expected_free_energy.Showing, ...]] = {}
        self.counts = lifted_counts(model, counts, 2)
        self.outcomes, self.likelihood = possible_outcomes(model)  # [K, modalities], [*p, K, S]
        self.branches = model.num_states if branching == "states" else len(self.outcomes)
        if branching == "states":
            self.likelihood = _of_states(self.model)

    # ------------------------------------------------------------------------------------ one step ahead

    def predicted(self, believed: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """q_f' [M, R, U, S_f] after every action, from [M, R, S_f]."""
        return tuple(
            _moved(table, believed, parents) for table, parents in zip(self.moves, self.model.B_factors, strict=True)
        )

    def worth(self, believed: tuple[Tensor, ...], ahead: tuple[Tensor, ...], t: int) -> Tensor:
        """g_1 [M, R, U]."""
        if self.objective.parameter_information != "none":
            return self.terms(believed, ahead, t).value(self.objective)
        when = t if self.model.timed else 0
        if when not in self.ways:
            self.ways[when] = expected_free_energy.ways_of_showing(self.wide, self.objective, when)
        return expected_free_energy.worth_of_showing(self.ways[when], ahead, self.objective.state_weight)

    def terms(self, believed: tuple[Tensor, ...], ahead: tuple[Tensor, ...], t: int) -> Terms:
        """Parts of the expected free energy of the next step, each [M, R, U]."""
        if self.objective.parameter_information == "none":
            return expected_free_energy.of_beliefs(self.wide, ahead, t, self.objective)
        actions = torch.arange(self.model.num_actions, device=self.model.device).expand(ahead[0].shape[:-1])
        before = tuple(q.unsqueeze(2) for q in believed)
        return expected_free_energy.of_beliefs(
            self.wide, ahead, t, self.objective, counts=self.counts, before=before, action=actions
        )

    def first_terms(self, whole: Layout) -> Terms:
        found = self.terms(whole.believed, self.predicted(whole.believed), self.t)
        return Terms(*[whole.back(x) for x in found])

    def follow(self, ahead: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Probabilities [M, R, U, K] of what may be seen, and beliefs q_f [M, R, U, K, S_f] after it."""
        sizes = self.model.sizes
        joint = _product(ahead)  # [M, R, U, S]
        likelihood = self.likelihood.reshape(-1, 1, 1, *self.likelihood.shape[-2:])
        both = likelihood * joint.unsqueeze(-2)  # [M, R, U, K, S]
        chance = both.sum(-1)
        if self.branching == "states":
            # A state's own probability, that of the likeliest few; seeing it is soft evidence.
            top = joint.amax(-1, keepdim=True)
            kept = joint > top * _LIKELY
            if joint.shape[-1] > _MOST_STATES:
                least = joint.topk(_MOST_STATES, -1).values[..., -1:]
                kept &= joint >= least
            weight = torch.where(kept, joint, torch.zeros_like(joint))
            posterior = both / chance.clamp(min=torch.finfo(both.dtype).tiny).unsqueeze(-1)
            return weight / weight.sum(-1, keepdim=True), _marginals(posterior, sizes)
        if self.method != "exact":
            wide = lifted(self.model, 3)
            expected = tuple(q.unsqueeze(-2) for q in ahead)
            seen = self.outcomes.expand(*chance.shape, -1)
            posterior_factors = filtering.update(wide, expected, seen, self.method, check=False).factors
        else:
            posterior = both / chance.clamp(min=torch.finfo(both.dtype).tiny).unsqueeze(-1)
            posterior_factors = _marginals(posterior, sizes)
        if self.branching == "independent_outcomes":
            chance = self._independent(ahead)
        return chance, posterior_factors

    def _independent(self, ahead: tuple[Tensor, ...]) -> Tensor:
        """prod_m Q(o^m) [M, R, U, K] of every joint outcome."""
        total: Tensor | None = None
        for m, (a, parents) in enumerate(zip(self.wide.A, self.model.A_factors, strict=True)):
            own = _product(tuple(ahead[f] for f in parents))
            table = a.flatten(-len(parents))
            seen = (table @ own.unsqueeze(-1)).squeeze(-1)[..., self.outcomes[:, m]]
            total = seen if total is None else total * seen
        assert total is not None
        return total

    def size_of(self, nodes: int) -> float:
        """Bytes that it takes to follow so many nodes at once."""
        size = torch.finfo(self.model.dtype).bits // 8
        return 4.0 * nodes * self.model.num_actions * self.branches * self.model.num_states * size

    # ----------------------------------------------------------------------------------------- the tree

    def grow(self, believed: tuple[Tensor, ...], depth: int, budget: int) -> list[Level]:
        """Levels of the tree from beliefs [M, R, S_f]. Raises TooLarge."""
        levels: list[Level] = []
        used = 0.0
        for level in range(depth):
            minds, rows = believed[0].shape[:2]
            ahead_size = minds * rows * self.model.num_actions * sum(self.model.sizes) * believed[0].element_size()
            if used + 4 * ahead_size > budget:
                raise TooLarge(level, used + 4 * ahead_size)
            ahead = self.predicted(believed)
            value = self.worth(believed, ahead, self.t + level)
            if level == depth - 1:
                if self.beyond is not None:
                    value = value + (_product(ahead) * self.beyond).sum(-1)
                levels.append(Level(believed, value, None, None))
                break
            following, child, chance = self._followed(ahead, level, budget, used)
            levels.append(Level(believed, value, child, chance))
            used += 16.0 * child.numel() + sum(q.numel() * q.element_size() for q in following)
            if used > budget:
                raise TooLarge(level, used)
            believed = following
        return levels

    def _followed(
        self, ahead: tuple[Tensor, ...], level: int, budget: int, used: float
    ) -> tuple[tuple[Tensor, ...], Tensor, Tensor]:
        """The next level's beliefs, and for every action and branch its node there and its probability."""
        minds, rows = ahead[0].shape[:2]
        size = ahead[0].element_size()
        one = self.size_of(minds)
        step = int((budget - used) // one)
        if step < 1:
            raise TooLarge(level, used + one)
        nodes: list[tuple[Tensor, ...]] = []
        children: list[Tensor] = []
        chances: list[Tensor] = []
        for start in range(0, rows, step):
            part = tuple(q[:, start : start + step] for q in ahead)
            chance, posterior = self.follow(part)
            kept = chance > self.pruning.outcomes
            if self.pruning.outcomes:
                # Something always happens: where all is unlikely, the likeliest is followed.
                kept |= chance >= chance.amax(-1, keepdim=True)
            chance = torch.where(kept, chance, torch.zeros_like(chance))
            if self.pruning.outcomes and self.branching != "states":
                chance = chance / chance.sum(-1, keepdim=True)
            flat = tuple(q.reshape(minds, -1, q.shape[-1]) for q in posterior)
            some, child = gathered(flat, kept.flatten(1), self.pruning.merge)
            offset = sum(n[0].shape[1] for n in nodes)
            nodes.append(some)
            children.append(torch.where(child >= 0, child + offset, child).view(chance.shape))
            chances.append(chance)
            kept_size = sum(n[0].shape[1] for n in nodes) * minds * sum(self.model.sizes) * size
            if used + kept_size > budget:
                raise TooLarge(level, used + kept_size)
        child, chance = torch.cat(children, 1), torch.cat(chances, 1)
        if len(nodes) == 1:
            return nodes[0], child, chance
        every = tuple(torch.cat(parts, 1) for parts in zip(*nodes, strict=True))
        if not self.pruning.merge:
            return every, child, chance
        # Parts were merged within themselves; now with each other.
        some, again = gathered(every, torch.ones(every[0].shape[:2], dtype=torch.bool, device=child.device), True)
        moved = again.gather(1, child.clamp(min=0).flatten(1)).view(child.shape)
        return some, torch.where(child >= 0, moved, child), chance


def _different(whole: Layout, merge: bool) -> tuple[Layout, Tensor | None]:
    """The rows that differ, and for each row [M, R] which of them it is; None: they are the rows themselves."""
    if not merge or whole.rows == 1:
        return whole, None
    kept = torch.ones((whole.minds, whole.rows), dtype=torch.bool, device=whole.model.device)
    some, back = gathered(whole.believed, kept, True)
    return replace(whole, believed=some, batch=(whole.minds, some[0].shape[1])), back


# ---------------------------------------------------------------------------------------------- what may be seen


def possible_outcomes(model: GenerativeModel) -> tuple[Tensor, Tensor]:
    """Every joint outcome that some joint state shows, int64 [K, M], and its likelihood [*p, K, S] in each.

    Built one modality after the other, so that what cannot be seen together is never written down.
    """
    outcomes = torch.zeros((1, 0), dtype=torch.int64, device=model.device)
    likelihood: Tensor | None = None
    for a, parents in zip(model.A, model.A_factors, strict=True):
        lead = a.ndim - 1 - len(parents)
        table = _over_all_states(a, parents, model.sizes, lead)  # [*p, O, S]
        size = table.shape[-2]
        likelihood_next = (
            table if likelihood is None else (likelihood.unsqueeze(-2) * table.unsqueeze(-3)).flatten(-3, -2)
        )
        numbers = torch.arange(size, device=model.device)
        pairs = torch.cat([outcomes.repeat_interleave(size, 0), numbers.repeat(len(outcomes)).unsqueeze(-1)], -1)
        shown = (likelihood_next > 0).any(-1).reshape(-1, likelihood_next.shape[-2]).any(0)
        likelihood, outcomes = likelihood_next[..., shown, :], pairs[shown]
    assert likelihood is not None
    return outcomes, likelihood


def _over_all_states(a: Tensor, parents: Sequence[int], sizes: Sequence[int], lead: int) -> Tensor:
    """[*p, O, S_pa...] -> [*p, O, S] over joint states, the last factor fastest."""
    order = sorted(range(len(parents)), key=lambda i: parents[i])
    a = a.permute(*range(lead + 1), *[lead + 1 + i for i in order])
    shape = [size if f in parents else 1 for f, size in enumerate(sizes)]
    head = a.shape[: lead + 1]
    return a.reshape(*head, *shape).expand(*head, *sizes).flatten(lead + 1)


def _of_states(model: GenerativeModel) -> Tensor:
    """prod_m sum_o A^m[o, i] A^m[o, s], [*p, S, S]: soft evidence for s of what state i shows on average (SPM)."""
    total: Tensor | None = None
    for a, parents in zip(model.A, model.A_factors, strict=True):
        table = _over_all_states(a, parents, model.sizes, a.ndim - 1 - len(parents))
        overlap = table.mT @ table
        total = overlap if total is None else total * overlap
    assert total is not None
    return total


def _moved(table: Tensor, believed: tuple[Tensor, ...], parents: Sequence[int]) -> Tensor:
    """[*p, U, S', S_pa...] and [M, R, S_f] -> [M, R, U, S']."""
    own = _product(tuple(believed[f] for f in parents))  # [M, R, Q]
    flat = table.flatten(-len(parents)).flatten(-3, -2)  # [*p, U S', Q]
    return (own @ flat.mT).unflatten(-1, (-1, table.shape[-1 - len(parents)]))


def _product(factors: tuple[Tensor, ...]) -> Tensor:
    """Independent beliefs [..., S_f] as joint ones [..., S]."""
    joint = factors[0]
    for q in factors[1:]:
        joint = (joint.unsqueeze(-1) * q.unsqueeze(-2)).flatten(-2)
    return joint


def _marginals(joint: Tensor, sizes: Sequence[int]) -> tuple[Tensor, ...]:
    if len(sizes) == 1:
        return (joint,)
    full = joint.unflatten(-1, tuple(sizes))
    axes = range(-len(sizes), 0)
    return tuple(full.sum(tuple(a for a in axes if a != f - len(sizes))) for f in range(len(sizes)))


# --------------------------------------------------------------------------------------------- nodes that agree

_GOLDEN, _C1, _C2 = -7046029254386353131, -4658895280553007687, -7723592293110705685


def gathered(rows: tuple[Tensor, ...], kept: Tensor, merge: bool) -> tuple[tuple[Tensor, ...], Tensor]:
    """The rows [M, X, S_f] that are `kept` [M, X], each once if `merge`: [M, Y, S_f], and which one each row has become
    (int64 [M, X], -1: not kept). Minds with fewer rows than others repeat one.
    """
    minds, length = kept.shape
    mind, place = kept.nonzero(as_tuple=True)
    flat = mind * length + place
    index: Tensor
    if merge:
        first, index = _agreeing(rows, mind, flat)
    else:
        first, index = flat, torch.arange(len(flat), device=kept.device)
    owner = first // length
    # Sorted by mind, then by place: numbers of a mind's own nodes begin at 0.
    number = torch.bincount(owner, minlength=minds)
    begin = number.cumsum(0) - number
    rank = torch.empty_like(first)
    order = first.argsort()
    rank[order] = torch.arange(len(first), device=kept.device)
    own = rank - begin[owner]
    width = int(number.max()) if len(first) else 1
    pick = torch.zeros((minds, max(width, 1)), dtype=torch.int64, device=kept.device)
    pick[owner, own] = first - owner * length
    become = torch.full((minds * length,), -1, dtype=torch.int64, device=kept.device)
    become[flat] = own[index]
    some = tuple(q.gather(1, pick.unsqueeze(-1).expand(*pick.shape, q.shape[-1])) for q in rows)
    return some, become.view(minds, length)


def _agreeing(rows: tuple[Tensor, ...], mind: Tensor, flat: Tensor) -> tuple[Tensor, Tensor]:
    """Of the rows at `flat` of [M X], the first of each that agree, and which of these each is.

    Beliefs agree that are equal to the last few bits: fingerprints of 64 bits find them, and are looked through.
    """
    cells = _cells(tuple(q.flatten(0, 1)[flat] for q in rows))
    print_ = _mixed(cells) + (mind + 1) * _C1
    _, index = print_.unique(return_inverse=True)
    count = int(index.max()) + 1 if len(index) else 0
    first = torch.full((count,), len(flat), dtype=torch.int64, device=flat.device)
    first.scatter_reduce_(0, index, torch.arange(len(flat), device=flat.device), "amin")
    if not bool(((cells == cells[first[index]]).all(-1) & (mind == mind[first[index]])).all()):
        # Two beliefs with one fingerprint: once in 2^64 pairs.
        _, index = torch.cat([mind.unsqueeze(-1), cells], -1).unique(dim=0, return_inverse=True)
        first = torch.full((int(index.max()) + 1,), len(flat), dtype=torch.int64, device=flat.device)
        first.scatter_reduce_(0, index, torch.arange(len(flat), device=flat.device), "amin")
    return flat[first], index


def fingerprints(rows: tuple[Tensor, ...]) -> Tensor:
    """A number int64 [*b] of beliefs [*b, S_f]: the same for those that agree."""
    return _mixed(_cells(rows))


def _cells(rows: tuple[Tensor, ...]) -> Tensor:
    """Beliefs as whole numbers int64 [*b, all S_f], rid of their last few bits."""
    fine = 2.0**48 if rows[0].dtype == torch.float64 else 2.0**21
    return (torch.cat(rows, -1).double() * fine).round().to(torch.int64)


def _mixed(cells: Tensor) -> Tensor:
    # Mixed one by one before they are added up: sums of certain beliefs would differ in their high bits alone.
    z = cells + torch.arange(1, cells.shape[-1] + 1, device=cells.device) * _GOLDEN
    z = (z ^ (z >> 30)) * _C1
    z = (z ^ (z >> 27)) * _C2
    return (z ^ (z >> 31)).sum(-1)
