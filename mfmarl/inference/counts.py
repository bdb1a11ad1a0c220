r"""Learning a generative model by counting: Dirichlet beliefs over the columns of A, B, D, preferences and habits.

$$ a^m \leftarrow a^m + \eta\, o^m_t \otimes \bigotimes_{f \in pa(m)} q_{f,t}, \qquad
   b^f_u \leftarrow b^f_u + \eta\, q_{f,t} \otimes \bigotimes_{j \in pa(f)} q_{j,t-1}, \qquad \bar A = a / a_0 $$

(Friston et al. 2016, "Active inference and learning", Neurosci. Biobehav. Rev. 68, eq. 8; Da Costa et al. 2020, J. Math.
Psych. 99, 102447, sec. 6 and eq. D.17.) Forgetting draws counts back to where they began,

$$ a \leftarrow a_{start} + (1 - \omega)(a - a_{start}), $$

so what a column holds beyond its start settles at eta / omega for each visit of every step: the length of its memory.
What there is left to be learned is a reason to act (parameter information, or novelty; `dirichlet` has its weights).
Counts have the layout of the model's tables, with leading axes [*p] of their own: beliefs [*b] are added up over the
axes that the counts do not have, so that a population teaches one table, [M, 1] one for each mind, [E, N] each its own.
Nothing is changed in place.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor

from mfmarl.errors import ConfigError
from mfmarl.inference import dirichlet, filtering
from mfmarl.inference.dirichlet import How
from mfmarl.inference.model import GenerativeModel
from mfmarl.inference.tally import Pool, add_moves, add_outcomes, add_pairs, add_soft, outer

Zeros = Literal["kept", "filled"]
Seen = Tensor | Sequence[Tensor]


@dataclass(frozen=True, eq=False)
class Counts:
    """What has been counted of each table; None for a table (or a whole letter) that is not learned."""

    A: tuple[Tensor | None, ...] | None = None
    """[*p, O_m, S_pa(m), ...]"""
    B: tuple[Tensor | None, ...] | None = None
    """[*p, S_f, S_pa(f), ..., U_g, ...]"""
    C: tuple[Tensor | None, ...] | None = None
    """[*p, O_m], or [*p, T, O_m] of a timed model."""
    D: tuple[Tensor | None, ...] | None = None
    """[*p, S_f]"""
    E: Tensor | None = None
    """[*p, U] or [*p, U^L]"""
    zeros: Zeros = "kept"
    """What has a count of 0 stays impossible (SPM), or fills up when it is seen (pymdp)."""
    _memo: dict[Any, Any] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        if self.zeros not in ("kept", "filled"):
            raise ConfigError(f"Counts of zero are 'kept' or 'filled', not {self.zeros!r}.")
        for letter in "ABCD":
            tables = getattr(self, letter)
            if tables is not None:
                object.__setattr__(self, letter, tuple(tables))

    def map(self, change: Callable[[Tensor], Tensor]) -> Counts:
        """The counts with every table changed."""
        return self.join(self, lambda a, _: change(a))

    def join(self, other: Counts, change: Callable[[Tensor, Tensor], Tensor]) -> Counts:
        """The counts with every table changed along with that of others, of the same letters, else ConfigError."""
        if other.learned != self.learned:
            raise ConfigError(f"Counts of {self.learned} do not go with counts of {other.learned}.")

        def both(a: Tensor | None, b: Tensor | None) -> Tensor | None:
            return a if a is None or b is None else change(a, b)

        tables: dict[str, Any] = {}
        for letter in "ABCD":
            own, others = getattr(self, letter), getattr(other, letter)
            tables[letter] = None if own is None else tuple(map(both, own, others))
        return replace(self, **tables, E=both(self.E, other.E))

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Counts:
        """The same counts elsewhere, or in another precision."""
        return self.map(lambda x: x.to(device=device or x.device, dtype=dtype or x.dtype))

    @property
    def learned(self) -> str:
        """The letters that are learned."""
        return "".join(letter for letter in "ABCDE" if getattr(self, letter) is not None)


def begin(
    model: GenerativeModel,
    learn: str = "AB",
    scale: float = 1.0,
    floor: float = 0.0,
    zeros: Zeros = "kept",
    modalities: Sequence[int] | None = None,
    factors: Sequence[int] | None = None,
    lead: Sequence[int] = (),
) -> Counts:
    """Counts as if every column of the model had been seen `scale` times, plus `floor` for each outcome that can be.

    `learn` is some letters of ABCDE. With zeros "kept", what the model holds impossible has no floor and stays so; with
    "filled" it has, and may be learned. `modalities` and `factors`: the only ones whose A and C, B and D are learned.
    `lead`: leading axes [*p] for tables of one's own, which broadcast against those of the model.
    scale = 0 and floor = 1 forget what the model says but for its zeros: a flat prior.

    Raises ConfigError for letters, numbers or indices that do not exist.
    """
    unknown = sorted(set(learn) - set("ABCDE"))
    if unknown or not learn:
        raise ConfigError(f"What is learned is some letters of ABCDE, not {learn!r}.")
    if not (math.isfinite(scale) and math.isfinite(floor) and scale >= 0 and floor >= 0 and scale + floor > 0):
        raise ConfigError(
            f"Counts begin at scale {scale} times the model plus {floor}: both must be 0 or more, not both 0."
        )
    chosen_m = _chosen(modalities, len(model.A), "modality")
    chosen_f = _chosen(factors, len(model.B), "factor")

    def count(p: Tensor, axes: int) -> Tensor:
        own = torch.broadcast_shapes(p.shape[: p.ndim - axes], tuple(lead))
        a = scale * p + floor
        a = torch.where(p > 0, a, torch.zeros_like(a)) if zeros == "kept" else a
        return a.expand(*own, *p.shape[p.ndim - axes :]).clone()

    A = B = C = D = E = None
    if "A" in learn:
        A = tuple(
            count(a, 1 + len(own)) if m in chosen_m else None
            for m, (a, own) in enumerate(zip(model.A, model.A_factors, strict=True))
        )
    if "B" in learn:
        B = tuple(count(b, _core_B(model, f)) if f in chosen_f else None for f, b in enumerate(model.B))
    if "C" in learn:
        C = tuple(
            count(torch.softmax(c, -1), 1 + model.timed) if m in chosen_m else None for m, c in enumerate(model.C)
        )
    if "D" in learn:
        D = tuple(count(d, 1) if f in chosen_f else None for f, d in enumerate(model.D))
    if "E" in learn:
        habit = model.E
        if habit is None:
            habit = torch.ones(model.num_actions, dtype=model.dtype, device=model.device)
        E = count(habit / habit.sum(-1, keepdim=True), 1)
    return Counts(A, B, C, D, E, zeros)


def _chosen(given: Sequence[int] | None, count: int, what: str) -> set[int]:
    chosen = set(range(count)) if given is None else set(given)
    if not chosen <= set(range(count)):
        raise ConfigError(f"There is no {what} {max(chosen - set(range(count)))}: expected some of 0..{count - 1}.")
    return chosen


def _core_B(model: GenerativeModel, f: int) -> int:
    """Axes of B^f behind the leading ones."""
    return 1 + len(model.B_factors[f]) + len(model.B_controls[f])


def expected(model: GenerativeModel, counts: Counts) -> GenerativeModel:
    """The model of the mean parameters; columns without a count, and what is not learned, are the model's. Not checked.

    Preferences become the logarithm of their mean, ln c - ln c_0.
    """

    def mean(a: Tensor, axis: int, otherwise: Tensor) -> Tensor:
        total = a.sum(axis, keepdim=True)
        p = a / total.clamp(min=torch.finfo(a.dtype).tiny)
        if bool((total > 0).all()):
            return p
        return torch.where(total > 0, p, otherwise.to(a))

    tables: dict[str, Any] = {}
    if counts.A is not None:
        tables["A"] = tuple(
            p if a is None else mean(a, -1 - len(own), p)
            for p, a, own in zip(model.A, counts.A, model.A_factors, strict=True)
        )
    if counts.B is not None:
        tables["B"] = tuple(
            p if b is None else mean(b, -_core_B(model, f), p)
            for f, (p, b) in enumerate(zip(model.B, counts.B, strict=True))
        )
    if counts.C is not None:
        tables["C"] = tuple(
            c if count is None else _log_mean(count, c) for c, count in zip(model.C, counts.C, strict=True)
        )
    if counts.D is not None:
        tables["D"] = tuple(p if d is None else mean(d, -1, p) for p, d in zip(model.D, counts.D, strict=True))
    if counts.E is not None:
        tables["E"] = mean(counts.E, -1, counts.E)
    return model.trusted(**tables)


def _log_mean(count: Tensor, given: Tensor) -> Tensor:
    """ln of mean preferences; those too small to be counted keep what was given."""
    p = count / count.sum(-1, keepdim=True).clamp(min=torch.finfo(count.dtype).tiny)
    return torch.where(p > 0, p.clamp(min=torch.finfo(p.dtype).tiny).log(), torch.log_softmax(given.to(p), -1))


# ------------------------------------------------------------------------------------------- what is counted


def learn_A(
    model: GenerativeModel,
    counts: Counts,
    seen: Seen,
    believed: Sequence[Tensor],
    rate: float = 1.0,
    weight: Tensor | None = None,
    check: bool = True,
) -> Counts:
    """Add what was seen, int64 [*b, M] (-1: nothing of that modality) or soft, [*b, O_m] each, to the columns of the
    states believed in, q_f [*b, S_f].

    `weight` [*b]: how much each belief counts (0: not at all). `check` looks for outcomes that do not exist: ConfigError.
    """
    if counts.A is None:
        return counts
    tables = list(counts.A)
    for m, table in enumerate(tables):
        if table is None:
            continue
        outcome = _outcome(model, seen, m, check)
        parents = [believed[f] for f in model.A_factors[m]]
        core = 1 + len(parents)
        pooled = Pool.of(
            table, core, [outcome.shape[:-1] if outcome.is_floating_point() else outcome.shape, *_batches(parents)]
        )
        add = add_outcomes(table, core, pooled, outcome, parents, weight, rate)
        tables[m] = _kept(counts, table, add)
    return replace(counts, A=tuple(tables))


def learn_B(
    model: GenerativeModel,
    counts: Counts,
    before: Sequence[Tensor],
    action: Tensor,
    believed: Sequence[Tensor],
    rate: float = 1.0,
    weight: Tensor | None = None,
    pairs: Sequence[Tensor] | None = None,
    joint: bool = False,
    check: bool = True,
) -> Counts:
    r"""Add a move from states believed in `before`, q_f [*b, S_f], by an action int64 [*b], to those `believed` now.

    An action of -1 was none: nothing is added. The product of the two beliefs is counted, as pymdp and SPM do, though
    where states are uncertain it blurs: it forgets that one followed from the other. `joint` counts the posterior of both,

    $$ \xi(s', s) = \frac{q_t(s')}{p(s')}\, B(s' \mid s, u)\, q_{t-1}(s), \qquad p(s') = \sum_s B(s' \mid s, u)\, q_{t-1}(s) $$

    with the B of `model`, which must be the one that beliefs were updated by; it is exact for one factor, and costs no
    more. `pairs`: such beliefs, [*b, S_f, S_pa(f), ...] each, from a smoother; `before` and `believed` are not looked at.
    Raises ConfigError for actions that do not exist.
    """
    if counts.B is None:
        return counts
    if check and action.numel() and int(action.max()) >= model.num_actions:
        raise ConfigError(f"An action of {int(action.max())} is none of 0..{model.num_actions - 1}.")
    tables = list(counts.B)
    for f, table in enumerate(tables):
        if table is None:
            continue
        own = setting_of_action(model, f)[action.clamp(min=0)]
        told = (action >= 0).to(table.dtype)
        told = told if weight is None else told * weight.to(table)
        core, settings = _core_B(model, f), math.prod(model.controls[g] for g in model.B_controls[f])
        if pairs is None:
            parents = [before[g] for g in model.B_factors[f]]
            pooled = Pool.of(table, core, [action.shape, *_batches([believed[f], *parents])])
            if joint:
                if torch.broadcast_shapes(table.shape, model.B[f].shape) != table.shape:
                    raise ConfigError(
                        f"Counts {list(table.shape)} of factor {model.factors[f]!r} cannot take joint posteriors of models "
                        f"that each have a B of their own, {list(model.B[f].shape)}: give the counts the same leading axes."
                    )
                p = filtering.predict(model, before, action.clamp(min=0), check=False)[f]
                after = torch.where(p > 0, believed[f] / torch.where(p > 0, p, 1.0), 0.0)
                both = add_moves(torch.zeros_like(table), core, settings, pooled, own, after, parents, told, rate)
                add = torch.addcmul(table, both, model.B[f].to(table))
            else:
                add = add_moves(table, core, settings, pooled, own, believed[f], parents, told, rate)
        else:
            pair = pairs[f].flatten(pairs[f].ndim - 1 - len(model.B_factors[f]))
            pooled = Pool.of(table, core, [action.shape, pair.shape[:-1]])
            add = add_pairs(table, settings, pooled, own, pair, told, rate)
        tables[f] = _kept(counts, table, add)
    return replace(counts, B=tuple(tables))


def learn_C(
    model: GenerativeModel,
    counts: Counts,
    seen: Seen,
    rate: float = 1.0,
    weight: Tensor | None = None,
    t: int = 0,
    check: bool = True,
) -> Counts:
    """Add what was seen to preferences (of the time `t` where they are timed): one comes to prefer what one is used to."""
    if counts.C is None:
        return counts
    tables = list(counts.C)
    for m, table in enumerate(tables):
        if table is None:
            continue
        outcome = _outcome(model, seen, m, check)
        now = min(t, table.shape[-2] - 1) if model.timed else 0
        part = table[..., now, :] if model.timed else table
        pooled = Pool.of(part, 1, [outcome.shape[:-1] if outcome.is_floating_point() else outcome.shape])
        add = _kept(counts, part, add_outcomes(part, 1, pooled, outcome, [], weight, rate))
        if model.timed:
            whole = table.clone()
            whole[..., now, :] = add
            add = whole
        tables[m] = add
    return replace(counts, C=tuple(tables))


def learn_D(
    model: GenerativeModel, counts: Counts, believed: Sequence[Tensor], rate: float = 1.0, weight: Tensor | None = None
) -> Counts:
    """Add the states q_f [*b, S_f] that one believes to have begun in."""
    if counts.D is None:
        return counts
    tables = [
        d if d is None else _kept(counts, d, add_soft(d, believed[f], weight, rate)) for f, d in enumerate(counts.D)
    ]
    return replace(counts, D=tuple(tables))


def learn_E(counts: Counts, chosen: Tensor, rate: float = 1.0, weight: Tensor | None = None) -> Counts:
    """Add what was done to habits: actions or policies by number, int64 [*b] (-1: none), or the posterior [*b, U^L]."""
    if counts.E is None:
        return counts
    if chosen.is_floating_point():
        add = add_soft(counts.E, chosen, weight, rate)
    else:
        if chosen.numel() and int(chosen.max()) >= counts.E.shape[-1]:
            raise ConfigError(f"A choice of {int(chosen.max())} is none of 0..{counts.E.shape[-1] - 1}.")
        pooled = Pool.of(counts.E, 1, [chosen.shape])
        add = add_outcomes(counts.E, 1, pooled, chosen, [], weight, rate)
    return replace(counts, E=_kept(counts, counts.E, add))


def forget(counts: Counts, rate: float, start: Counts | None = None) -> Counts:
    """Draw counts back to their `start`: a <- start + (1 - rate)(a - start), before what is new is added.

    Without a start they fade to nothing, a <- (1 - rate) a, the form of ActiveInference.jl (whose forgetting rate is
    1 - rate): columns that are not visited then become ever less certain. rate = 0 forgets nothing.
    """
    if not 0 <= rate <= 1:
        raise ConfigError(f"A rate of forgetting lies between 0 and 1, not at {rate}.")
    if rate == 0:
        return counts
    if start is None:
        return counts.map(lambda a: (1 - rate) * a)
    return counts.join(start, lambda a, a0: torch.lerp(a, a0.to(a).expand_as(a), rate))


# --------------------------------------------------------------------------------- what there is to be learned


def information_A(model: GenerativeModel, counts: Counts, believed: Sequence[Tensor], how: How = "exact") -> Tensor:
    """What the next observation is expected to tell of A [*b], nats, for states believed in, q_f [*b, S_f].

    "exact" averages over states what each of their columns has to tell (given the state; modalities add up). "pymdp" and
    "spm" multiply the expected outcomes of the model by the expected weights, as if outcome and state were independent.
    """
    if counts.A is None:
        return _nothing(believed)
    total: Tensor | None = None
    for m, a in enumerate(counts.A):
        if a is None:
            continue
        parents = [believed[f] for f in model.A_factors[m]]
        table = _memory(counts, ("A", m, how), a, len(parents), how)
        joint = outer(parents)
        if how == "exact":
            told = _rows(joint, table, len(parents), 0).squeeze(-1)
        else:
            told = (_rows(joint, model.A[m], len(parents), 1) * _rows(joint, table, len(parents), 1)).sum(-1)
        total = told if total is None else total + told
    return _nothing(believed) if total is None else total


def information_B(
    model: GenerativeModel,
    counts: Counts,
    before: Sequence[Tensor],
    action: Tensor | None = None,
    believed: Sequence[Tensor] | None = None,
    how: How = "exact",
) -> Tensor:
    """What a move is expected to tell of B, nats: of an action int64 [*b], [*b]; of all of them (None), [*b, U].

    `before`: beliefs q_f [*b, S_f] that it starts from. `believed`: those after it, which only the products of "pymdp" and
    "spm" need, [*b, S_f] (or [*b, U, S_f] for all actions); None: as the model predicts them.
    """
    if counts.B is None:
        nothing = _nothing(before)
        return nothing if action is not None else nothing.unsqueeze(-1).expand(*nothing.shape, model.num_actions)
    total: Tensor | None = None
    for f, b in enumerate(counts.B):
        if b is None:
            continue
        parents = [before[g] for g in model.B_factors[f]]
        n, own = len(parents), len(model.B_controls[f])
        index = setting_of_action(model, f)
        joint = outer(parents)

        def by_setting(table: Tensor, head: int, n: int = n, own: int = own) -> Tensor:
            """[*p, (S_f,) S_pa, ..., U_g, ...] -> [*p, U_f, (S_f,) S_pa, ...]"""
            first = table.ndim - own
            table = table.flatten(first) if own else table.unsqueeze(-1)
            return table.movedim(-1, table.ndim - 1 - n - head)

        table = _memory(counts, ("B", f, how), b, n + own, how)
        if how == "exact":
            told = _rows(joint, by_setting(table, 0), n, 1)  # [*b, U_f]
            told = told[..., index] if action is None else _pick(told, index[action])
        else:
            ahead = _rows(joint, by_setting(table, 1), n, 2)  # [*b, U_f, S_f]
            if believed is None:
                after = _rows(joint, by_setting(model.B[f], 1), n, 2)
                told = (ahead * after).sum(-1)
                told = told[..., index] if action is None else _pick(told, index[action])
            elif action is None:
                told = (ahead[..., index, :] * believed[f]).sum(-1)
            else:
                told = _pick((ahead * believed[f].unsqueeze(-2)).sum(-1), index[action])
        total = told if total is None else total + told
    assert total is not None
    return total


def parameter_cost(model: GenerativeModel, counts: Counts, before: Counts) -> Tensor:
    """How far beliefs over parameters have moved, [*p]: KL[Dir(counts) || Dir(before)], all columns of all tables added up.

    Added to the free energy of states it makes that of states and parameters.
    """
    total = torch.zeros((), dtype=model.dtype, device=model.device)
    for letter, m, a, a0 in _pairs(counts, before):
        columns = _columns(model, letter, m)
        kl = dirichlet.divergence(a, a0, -1 - columns)
        kl = kl.flatten(kl.ndim - columns).sum(-1) if columns else kl
        total = total + (kl.sum(-1) if letter == "C" and model.timed else kl)
    return total


# ---------------------------------------------------------------------------------------------------- inside


def setting_of_action(model: GenerativeModel, f: int) -> Tensor:
    """The number of the setting of its own controls by which every action moves a factor, int64 [U]."""
    own = model.B_controls[f]
    index = torch.zeros(model.num_actions, dtype=torch.int64, device=model.device)
    if own == tuple(range(len(model.controls))):
        return torch.arange(model.num_actions, device=model.device)
    if own:
        settings = model.settings()
        for g in own:
            index = index * model.controls[g] + settings[:, g].to(index.device)
    return index


def _nothing(believed: Sequence[Tensor]) -> Tensor:
    return believed[0].new_zeros(torch.broadcast_shapes(*_batches(believed)))


def _batches(beliefs: Sequence[Tensor]) -> list[torch.Size]:
    return [q.shape[:-1] for q in beliefs]


def _pairs(counts: Counts, before: Counts) -> list[tuple[str, int, Tensor, Tensor]]:
    """Every table that both have, with its letter and number."""
    if before.learned != counts.learned:
        raise ConfigError(f"Counts of {counts.learned} do not go with counts of {before.learned}.")
    found = [
        (letter, m, a, a0)
        for letter in "ABCD"
        for m, (a, a0) in enumerate(zip(getattr(counts, letter) or (), getattr(before, letter) or (), strict=True))
        if a is not None and a0 is not None
    ]
    habits = counts.E is not None and before.E is not None
    return [*found, ("E", 0, counts.E, before.E)] if habits else found  # type: ignore[list-item]


def _columns(model: GenerativeModel, letter: str, m: int) -> int:
    """Axes behind the one that a column lies on."""
    if letter == "A":
        return len(model.A_factors[m])
    return _core_B(model, m) - 1 if letter == "B" else 0


def _kept(counts: Counts, before: Tensor, after: Tensor) -> Tensor:
    """What was impossible stays so, if zeros are kept: what was counted there is dropped."""
    return torch.where(before > 0, after, before) if counts.zeros == "kept" else after


def _outcome(model: GenerativeModel, seen: Seen, m: int, check: bool) -> Tensor:
    """Of one modality: int64 [*b], or [*b, O_m] where it is soft."""
    size = model.outcomes[m]
    if isinstance(seen, Tensor):
        if seen.shape[-1] != len(model.A):
            raise ConfigError(f"{len(model.A)} modalities need as many outcomes [*b, M], not {list(seen.shape)}.")
        outcome = seen[..., m]
        if check and outcome.numel() and int(outcome.max()) >= size:
            raise ConfigError(
                f"An outcome of modality {model.modalities[m]!r} is {int(outcome.max())}, none of 0..{size - 1}."
            )
        return outcome
    if len(seen) != len(model.A) or seen[m].shape[-1] != size:
        raise ConfigError(
            f"Soft outcomes of modality {model.modalities[m]!r} must be [*b, {size}], one tensor for each modality."
        )
    return seen[m].to(model.dtype)


def _pick(x: Tensor, index: Tensor) -> Tensor:
    shape = torch.broadcast_shapes(x.shape[:-1], index.shape)
    return x.expand(*shape, x.shape[-1]).gather(-1, index.expand(shape).unsqueeze(-1)).squeeze(-1)


def _told(a: Tensor, columns: int, how: How) -> Tensor:
    """Of counts [*p, O, ...]: what each column has to tell, [*p, ...]; or the weights themselves for the products."""
    axis = -1 - columns
    return dirichlet.information(a, axis) if how == "exact" else dirichlet.weights(a, axis, how)


def _memory(counts: Counts, name: tuple[Any, ...], a: Tensor, columns: int, how: How) -> Tensor:
    """`_told`, found once for counts that planning asks about at every node; anew if they were changed in place."""
    if a.requires_grad or a.is_inference():
        return _told(a, columns, how)
    held = counts._memo.get(name)
    if held is None or held[0] != a._version:
        held = (a._version, _told(a, columns, how))
        counts._memo[name] = held
    return held[1]


def _rows(joint: Tensor, table: Tensor, parents: int, head: int) -> Tensor:
    """sum_pa joint [*b, S_pa] table [*p, *head axes, S_pa, ...] -> [*b, *head axes] ([*b, 1] for none)."""
    table = table.flatten(table.ndim - parents)
    own, heads = tuple(table.shape[: table.ndim - 1 - head]), table.shape[table.ndim - 1 - head : -1]
    table = table.reshape(*own, math.prod(heads), table.shape[-1])
    depth = max(joint.ndim - 1, len(own))
    batch = (1,) * (depth - joint.ndim + 1) + tuple(joint.shape[:-1])
    own = (1,) * (depth - len(own)) + tuple(own)
    rows = next((depth - i for i in range(depth, 0, -1) if own[i - 1] != 1), depth)
    # Axes that the table does not have are the rows of one product: it is never copied for each belief.
    last = joint.reshape(*batch[: depth - rows], math.prod(batch[depth - rows :]), joint.shape[-1])
    last = last.to(table.dtype) @ table.reshape(*own[: depth - rows], *table.shape[-2:]).transpose(-1, -2)
    lead = torch.broadcast_shapes(batch, own)
    return last.reshape(*lead, *heads) if heads else last.reshape(*lead, 1)
