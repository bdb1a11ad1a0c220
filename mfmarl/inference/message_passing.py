r"""Beliefs about a window of time in which every factor is believed in apart from the others and from its own past.

$$ F[q] = \sum_{t, f} \Big( \langle \ln q^f_t \rangle - \langle \ln B^f(s_t \mid s^{pa}_{t-1}, u_{t-1}) \rangle \Big)
        - \sum_{t, m} \langle \ln A^m(o_t \mid s^{pa}_t) \rangle \ge -\ln p(o_{1:T}), \qquad B_1 = D $$

"variational": each belief's logarithm is the sum of the averages of all terms of F that it occurs in (variational
message passing: Winn and Bishop 2005, JMLR 6, 661). One factor after the other, even times and then odd ones, F never
rises: beliefs of one factor at times two apart share no term ("sequential"); all at once it may ("parallel", as pymdp).
"marginal": messages are logarithms of averages, each transition counted half from either side (marginal message
passing: Parr, Markovic, Kiebel and Friston 2019, Sci. Rep. 9, 1889, and SPM's spm_MDP_VB_X); it minimises another
functional than F and ends above its least value.

Times come first: observations [T, *b, M] (-1: nothing seen), actions [T - 1, *b] between them. An action -1 parts two
episodes: the next begins from D. A `Lag` holds the last W steps of every agent: beliefs about them are a fixed-lag
smoother's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from mfmarl.errors import ConfigError, nearest
from mfmarl.inference import filtering
from mfmarl.inference.filtering import Seen, Soft, sum_of
from mfmarl.inference.model import GenerativeModel

Rule = Literal["variational", "marginal"]
Schedule = Literal["sequential", "parallel"]

_MANY = 12  # states, from which on products of matrices are cheaper than sums side by side
_CACHED = 1 << 18  # numbers that stay in the cache through a sweep


class Window(NamedTuple):
    """What is believed of all times of a window."""

    factors: tuple[Tensor, ...]
    """q_f [T, *b, S_f]."""
    free_energy: Tensor
    """F [*b] of the whole window, nats."""
    complexity: Tensor
    """What of F is not accuracy, [*b]: how far the histories are from what the model expects."""
    accuracy: Tensor
    """sum_t E_q[ln p(o_t | s_t)] [*b]."""


class Lag(NamedTuple):
    """The last W steps of every agent, oldest first. Axes of agents lead, so that they can be carried."""

    seen: Tensor
    """int64 [*b, W, M]."""
    actions: Tensor
    """int64 [*b, W - 1]: between them; -1 where an episode begins behind it, or nothing has been yet."""
    first: tuple[Tensor, ...]
    """What was expected of the oldest step, [*b, S_f], by all that has left the window."""


def infer(
    model: GenerativeModel,
    observations: Seen,
    actions: Tensor,
    rule: Rule = "variational",
    *,
    schedule: Schedule | None = None,
    iterations: int | None = None,
    step: float = 1.0,
    tolerance: float | None = None,
    first: Sequence[Tensor] | None = None,
    soft: Soft = "average",
    floor: float | None = None,
    check: bool = True,
    terms: bool = True,
) -> Window:
    """Beliefs about all times of a window.

    `schedule`: sequential for the variational rule, parallel for the marginal one (which knows no other). `iterations`:
    sweeps at most (256; 16 in parallel); a sequential sweep that lowers F by no more than `tolerance` (1 + |F|) is the
    last, each window for itself: 1e-12 in float64, 1e-6 in float32. `step`: the part of the way that logarithms go at
    once. `floor`: the least probability in logarithms, else the dtype's least normal number; 2.220446049250313e-16 is
    pymdp's. `first`: what is expected of the first time [*b, S_f], D unless given. `terms=False` leaves complexity and
    accuracy as NaN.

    Raises ConfigError for outcomes, actions and options that there are not.
    """
    if rule not in get_args(Rule):
        raise ConfigError(f"Messages are not passed by the rule {rule!r}.{nearest(str(rule), get_args(Rule))}")
    schedule = schedule or ("sequential" if rule == "variational" else "parallel")
    if schedule not in get_args(Schedule) or (rule == "marginal" and schedule != "parallel"):
        raise ConfigError(
            f"Messages are passed sequential or parallel (marginal ones in parallel only), not {rule} and {schedule!r}."
        )
    if not 0 < step <= 1:
        raise ConfigError(f"step={step}: the part of the way lies in (0, 1].")
    count = (16 if schedule == "parallel" else 256) if iterations is None else iterations
    if count < 1:
        raise ConfigError(f"iterations={count}: at least one sweep is needed.")
    times = (observations if isinstance(observations, Tensor) else observations[0]).shape[0]
    if len(actions) != times - 1:
        raise ConfigError(f"{times} observations have one action less between them, not {len(actions)}.")
    if check and actions.numel() and not (int(actions.min()) >= -1 and int(actions.max()) < model.num_actions):
        raise ConfigError(f"An action lies outside 0..{model.num_actions - 1} (-1: a new episode).")
    if tolerance is None:
        tolerance = 1e-12 if model.dtype == torch.float64 else 1e-6

    def of(observations: Seen, actions: Tensor, first: Sequence[Tensor] | None) -> Window:
        problem = _Problem(model, observations, actions, first, soft, floor, check)
        q = problem.start()
        if schedule == "parallel":
            for _ in range(count):
                q = [problem.moved(q, f, rule, step) for f in range(len(q))]
        else:
            _descend(problem, q, rule, count, step, tolerance)
        return problem.window(q, terms)

    length = _piece(model, observations, actions, first)
    if not length:
        return of(observations, actions, first)
    # So many windows at a time stay in the cache.
    several = [observations] if isinstance(observations, Tensor) else list(observations)
    begin = [] if first is None else list(first)
    pieces = zip(
        *[x.split(length, 1) for x in several], actions.split(length, 1), *[x.split(length) for x in begin], strict=True
    )
    parts = []
    for piece in pieces:
        shown, rest = piece[: len(several)], piece[len(several) :]
        parts.append(of(shown[0] if isinstance(observations, Tensor) else shown, rest[0], rest[1:] or None))
    return Window(
        tuple(torch.cat(x, 1) for x in zip(*[part.factors for part in parts], strict=True)),
        *(torch.cat([getattr(part, name) for part in parts]) for name in Window._fields[1:]),
    )


def _descend(problem: _Problem, q: list[Tensor], rule: str, count: int, step: float, tolerance: float) -> None:
    """Sweeps over beliefs, in place, each window until its own free energy has settled."""
    last = None
    running = torch.ones(problem.batch, dtype=torch.bool, device=problem.model.device)
    odd = torch.arange(problem.times, device=problem.model.device) % 2 == 1
    odd = odd.reshape(-1, *[1] * len(problem.batch))
    for _ in range(count):
        for f in range(len(q)):
            for here in (~odd, odd) if problem.times > 1 else (~odd,):
                q[f] = torch.where(here & running, problem.moved(q, f, rule, step), q[f])
        value = problem.cost(q)
        if last is not None:
            running = running & ((last - value).abs() > tolerance * (1 + value.abs()))
            if not bool(running.any()):
                break
        last = value


def _piece(model: GenerativeModel, observations: Seen, actions: Tensor, first: Sequence[Tensor] | None) -> int:
    """Windows that are taken at a time: 0 where all are."""
    several = [observations] if isinstance(observations, Tensor) else list(observations)
    batch = actions.shape[1:]
    own = any(a.ndim > 1 + len(parents) for a, parents in zip(model.A, model.A_factors, strict=True)) or any(
        b.ndim > 1 + len(parents) + len(controls)
        for b, parents, controls in zip(model.B, model.B_factors, model.B_controls, strict=True)
    )
    if len(batch) != 1 or own or model.device.type != "cpu" or any(x.shape[1:-1] != batch for x in several):
        return 0
    if any(q.shape[:-1] != batch for q in first or ()):
        return 0
    largest = max(
        model.sizes[f] * (1 if _alone(model, f) else math.prod(model.sizes[g] for g in parents))
        for f, parents in enumerate(model.B_factors)
    )
    length = max(_CACHED // (largest * len(several[0])), 64)
    return length if batch[0] >= 2 * length else 0


# --------------------------------------------------------------------------------------------- a window that moves


def begin(model: GenerativeModel, width: int, batch: Sequence[int]) -> Lag:
    """A window of so many steps, none of which has been yet, for agents [*b]."""
    if width < 1:
        raise ConfigError(f"A window of {width} steps: at least one is needed.")
    shape = tuple(batch)
    return Lag(
        torch.full((*shape, width, len(model.A)), -1, device=model.device),
        torch.full((*shape, width - 1), -1, device=model.device),
        tuple(d.expand(*shape, d.shape[-1]).clone() for d in model.D),
    )


def push(
    model: GenerativeModel,
    lag: Lag,
    action: Tensor,
    seen: Tensor,
    method: filtering.Method = "exact",
    *,
    check: bool = False,
) -> Lag:
    """One step on: the action int64 [*b] taken (-1: an episode begins) and what is seen after it, int64 [*b, M].

    What leaves the window is remembered as what is expected of the oldest step: filtered by `method`.
    """
    actions = torch.cat((lag.actions, action.unsqueeze(-1)), -1)
    known = filtering.update(model, lag.first, lag.seen[..., 0, :], method, check=check, terms=False)
    first = filtering.expect(model, known.factors, actions[..., 0])
    return Lag(torch.cat((lag.seen[..., 1:, :], seen.unsqueeze(-2)), -2), actions[..., 1:], first)


def infer_lag(
    model: GenerativeModel,
    lag: Lag,
    rule: Rule = "variational",
    *,
    schedule: Schedule | None = None,
    iterations: int | None = None,
    step: float = 1.0,
    tolerance: float | None = None,
    floor: float | None = None,
    check: bool = False,
    terms: bool = True,
) -> Window:
    """`infer` of the window: the beliefs about now are those of the last time, `factors[f][-1]`."""
    return infer(
        model,
        lag.seen.movedim(-2, 0),
        lag.actions.movedim(-1, 0),
        rule,
        schedule=schedule,
        iterations=iterations,
        step=step,
        tolerance=tolerance,
        first=lag.first,
        floor=floor,
        check=check,
        terms=terms,
    )


# ------------------------------------------------------------------------------------------------------- messages


class _Problem:
    """What a window's messages are made of, looked up once. States come in front here, then times, then agents: sums over
    few states are done side by side for all of these."""

    def __init__(
        self,
        model: GenerativeModel,
        observations: Seen,
        actions: Tensor,
        first: Sequence[Tensor] | None,
        soft: Soft,
        floor: float | None,
        check: bool,
    ) -> None:
        self.model = model
        self.least = torch.finfo(model.dtype).tiny if floor is None else floor
        logs = filtering.log_likelihoods(model, observations, soft, floor, check=check)
        begin = tuple(model.D if first is None else first)
        self.times = logs[0].shape[0]
        taken = actions.clamp(min=0)
        alone = [_alone(model, f) for f in range(len(model.sizes))]
        # Where many states lead to many by tables that all share, nothing is looked up: see `_Moves`.
        tables = [model.D[f] if alone[f] else model.of_action(f, taken) for f in range(len(alone))]
        cores = [1 if here else 1 + len(own) for here, own in zip(alone, model.B_factors, strict=True)]
        self.batch = torch.broadcast_shapes(
            actions.shape[1:],
            *[d.shape[:-1] for d in (*model.D, *begin)],
            *[x.shape[1 : x.ndim - core] for x, core, a in zip(tables, cores, alone, strict=True) if not a],
            *[x.shape[1 : x.ndim - len(own)] for x, own in zip(logs, model.A_factors, strict=True)],
        )
        #: ln A(o_t | s) [S_pa, ..., T, *b].
        self.likelihoods = [
            self.in_front(x, len(own), self.times) for x, own in zip(logs, model.A_factors, strict=True)
        ]
        #: B by the actions taken, [S', S_pa, ..., T - 1, *b], but for the factors in `moves`.
        self.tables = [
            x if here else self.in_front(x, core, self.times - 1)
            for x, core, here in zip(tables, cores, alone, strict=True)
        ]
        self.log_tables = [
            x if here else x.clamp(min=self.least).log() for x, here in zip(self.tables, alone, strict=True)
        ]
        wide = taken.expand(self.times - 1, *self.batch)
        self.moves = {f: _Moves.of(model, f, wide, self.least) for f, here in enumerate(alone) if here}
        #: Where an episode begins, [T, *b]: at the first time, and behind an action -1.
        opening = torch.ones(1, *self.batch, dtype=torch.bool, device=model.device)
        self.opening = torch.cat((opening, (actions < 0).expand(self.times - 1, *self.batch)))
        #: ln D [S_f, T, *b], and of the first time what is expected of it.
        self.priors = []
        for b, d in zip(begin, model.D, strict=True):
            size = d.shape[-1]
            both = b.expand(1, *self.batch, size), d.expand(self.times - 1, *self.batch, size)
            self.priors.append(self.in_front(torch.cat(both).clamp(min=self.least).log(), 1, self.times))

    def in_front(self, x: Tensor, core: int, times: int) -> Tensor:
        """[T, *p, core axes] as [core axes, T, *b]."""
        states = x.shape[x.ndim - core :]
        x = x.expand(times, *self.batch, *states)
        return x.permute(*range(x.ndim - core, x.ndim), *range(x.ndim - core)).contiguous()

    def start(self) -> list[Tensor]:
        return [torch.full_like(x, 1 / len(x)) for x in self.priors]

    def moved(self, q: list[Tensor], f: int, rule: str, step: float) -> Tensor:
        """Factor f's beliefs at all times, from the others' messages."""
        total = self.from_past(q, f, rule)
        total[:, :-1] += self.from_future(q, f, rule)
        for own, x in zip(self.model.A_factors, self.likelihoods, strict=True):
            if f in own:
                total += _averaged(x, [q[g] for g in own], own.index(f), 0)
        if step < 1:
            old = q[f].clamp(min=self.least).log()
            total = old + step * (total - old)
        return torch.softmax(total, 0)

    def from_past(self, q: list[Tensor], f: int, rule: str) -> Tensor:
        before = [q[g][:, :-1] for g in self.model.B_factors[f]]
        if f in self.moves:
            message = self.moves[f].forward(before[0], rule, self.least)
        elif rule == "variational":
            message = _averaged(self.log_tables[f], before, None, 1)
        else:
            message = _averaged(self.tables[f], before, None, 1).clamp(min=self.least).log()
        message = torch.where(self.opening[1:], self.priors[f][:, 1:], message)
        message = torch.cat((self.priors[f][:, :1], message), 1)
        return message if rule == "variational" else message * self.half()

    def half(self) -> Tensor:
        """The weight of marginal messages from the past [T, *b]: half where there is one from the future as well."""
        ends = torch.ones_like(self.opening[:1])
        return torch.where(torch.cat((self.opening[1:], ends)), 1.0, 0.5).to(self.model.dtype)

    def from_future(self, q: list[Tensor], f: int, rule: str) -> Tensor:
        """[S_f, T - 1, *b]: nothing tells the last time of what comes after it."""
        total = torch.zeros_like(q[f][:, 1:])
        for child, own in enumerate(self.model.B_factors):
            if f not in own:
                continue
            before, after = [q[g][:, :-1] for g in own], q[child][:, 1:].unsqueeze(1)
            if child in self.moves:
                part = self.moves[child].backward(after.squeeze(1), rule, self.least)
            elif rule == "variational":
                part = (_averaged(self.log_tables[child], before, own.index(f), 1) * after).sum(0)
            else:
                table = _averaged(self.tables[child], before, own.index(f), 1)
                normal = table / table.sum(1, keepdim=True).clamp(min=self.least)
                part = 0.5 * (normal * after).sum(0).clamp(min=self.least).log()
            total = total + part
        return total.masked_fill(self.opening[1:], 0.0)

    def accuracy(self, q: list[Tensor]) -> Tensor:
        parts = [
            _averaged(x, [q[g] for g in own], None, 0)
            for own, x in zip(self.model.A_factors, self.likelihoods, strict=True)
        ]
        return sum_of(parts).sum(0)

    def complexity(self, q: list[Tensor]) -> Tensor:
        tiny = torch.finfo(self.model.dtype).tiny
        return sum_of(
            [(x * (x.clamp(min=tiny).log() - self.from_past(q, f, "variational"))).sum((0, 1)) for f, x in enumerate(q)]
        )

    def cost(self, q: list[Tensor]) -> Tensor:
        return self.complexity(q) - self.accuracy(q)

    def window(self, q: list[Tensor], terms: bool) -> Window:
        complexity, accuracy = self.complexity(q), self.accuracy(q)
        absent = complexity.new_full((), math.nan).expand(complexity.shape)
        shown = (complexity, accuracy) if terms else (absent, absent)
        return Window(tuple(x.movedim(0, -1) for x in q), complexity - accuracy, *shown)


class _Moves(NamedTuple):
    """How a factor of many states moves by itself, by tables that all agents share: agents of one setting together are a
    product of matrices."""

    plain: Tensor
    """B [V, S', S] by setting."""
    logs: Tensor
    normal: Tensor
    """B normalised over where it leads from."""
    groups: list[Tensor]
    """Of every setting, the places in [T - 1, *b] that have it."""

    @classmethod
    def of(cls, model: GenerativeModel, f: int, actions: Tensor, least: float) -> _Moves:
        table, setting = filtering.transitions(model, f, actions)
        flat = torch.zeros_like(actions).reshape(-1) if setting is None else setting.reshape(-1)
        return cls(
            table,
            table.clamp(min=least).log(),
            table / table.sum(-1, keepdim=True).clamp(min=least),
            [(flat == v).nonzero().squeeze(-1) for v in range(len(table))],
        )

    def forward(self, q: Tensor, rule: str, least: float) -> Tensor:
        if rule == "variational":
            return self.product(self.logs, q)
        return self.product(self.plain, q).clamp(min=least).log()

    def backward(self, q: Tensor, rule: str, least: float) -> Tensor:
        if rule == "variational":
            return self.product(self.logs.mT, q)
        return 0.5 * self.product(self.normal.mT, q).clamp(min=least).log()

    def product(self, tables: Tensor, x: Tensor) -> Tensor:
        flat = x.reshape(len(x), -1)
        out = torch.empty_like(flat)
        for table, here in zip(tables, self.groups, strict=True):
            out.index_copy_(1, here, table @ flat.index_select(1, here))
        return out.view(x.shape)


def _alone(model: GenerativeModel, f: int) -> bool:
    return model.B_factors[f] == (f,) and model.sizes[f] >= _MANY and model.B[f].ndim == 2 + len(model.B_controls[f])


def _averaged(table: Tensor, weights: Sequence[Tensor], keep: int | None, head: int) -> Tensor:
    """The average over weights [S_i, ...] of a table [head axes, S_1, ..., S_k, ...]: head axes stay, and the keep-th."""
    axis = head
    for i, w in enumerate(weights):
        if i == keep:
            axis += 1
            continue
        rest = len(weights) - i - 1
        table = (table * w.reshape(len(w), *[1] * rest, *w.shape[1:])).sum(axis)
    return table
