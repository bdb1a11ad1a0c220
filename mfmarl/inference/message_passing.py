r"""Beliefs about a window of time in which every factor is believed in apart from the others and from its own past.

$$ F[q] = \sum_{t, f} \Big( \langle \ln q^f_t \rangle - \langle \ln B^f(s_t \mid s^{pa}_{t-1}, u_{t-1}) \rangle \Big)
        - \sum_{t, m} \langle \ln A^m(o_t \mid s^{pa}_t) \rangle \ge -\ln p(o_{1:T}), \qquad B_1 = D $$

"variational": each belief's logarithm is the sum of the averages of all terms of F that it occurs in (variational
message passing: Winn and Bishop 2005, JMLR 6, 661). One factor after the other, even times and then odd ones, F never
rises: beliefs of one factor at times two apart share no term ("sequential"); all at once it may ("parallel", as pymdp).
"marginal": messages are logarithms of averages, each transition counted half from either side (marginal message
passing: Parr, Markovic, Kiebel and Friston 2019, Sci. Rep. 9, 1889, and SPM's spm_MDP_VB_X); it minimises another
functional than F and ends above its least value, yet nearer to the exact marginals where states persist.

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
    problem = _Problem(model, observations, actions, first, soft, floor, check)
    q = problem.start()
    if schedule == "parallel":
        for _ in range(count):
            q = [problem.moved(q, f, rule, step) for f in range(len(q))]
        return problem.window(q, terms)
    if tolerance is None:
        tolerance = 1e-12 if model.dtype == torch.float64 else 1e-6
    last = None
    running = torch.ones(problem.batch, dtype=torch.bool, device=model.device)
    odd = (torch.arange(times, device=model.device) % 2 == 1).reshape(-1, *[1] * len(problem.batch))
    for _ in range(count):
        for f in range(len(q)):
            for here in (~odd, odd) if times > 1 else (~odd,):
                q[f] = torch.where((here & running).unsqueeze(-1), problem.moved(q, f, rule, step), q[f])
        value = problem.cost(q)
        if last is not None:
            running = running & ((last - value).abs() > tolerance * (1 + value.abs()))
            if not bool(running.any()):
                break
        last = value
    return problem.window(q, terms)


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
    """What a window's messages are made of: looked up once."""

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
        self.likelihoods = filtering.log_likelihoods(model, observations, soft, floor, check=check)
        begin = tuple(model.D if first is None else first)
        self.times = self.likelihoods[0].shape[0]
        self.batch = torch.broadcast_shapes(
            actions.shape[1:],
            *[d.shape[:-1] for d in (*model.D, *begin)],
            *[b.shape[: b.ndim - 1 - len(own) - len(ctl)] for b, own, ctl in zip(model.B, model.B_factors, model.B_controls, strict=True)],
            *[x.shape[1 : x.ndim - len(own)] for x, own in zip(self.likelihoods, model.A_factors, strict=True)],
        )  # fmt: skip
        #: Where an episode begins, [T, *b]: at the first time, and behind an action -1.
        opening = torch.ones(1, *self.batch, dtype=torch.bool, device=model.device)
        self.opening = torch.cat((opening, (actions < 0).expand(self.times - 1, *self.batch)))
        # Tables by action [T - 1, *b, S', S_pa, ...]: axes of the model's own broadcast against those of agents.
        taken = actions.clamp(min=0)
        self.tables = [model.of_action(f, taken) for f in range(len(model.sizes))]
        self.log_tables = [x.clamp(min=self.least).log() for x in self.tables]
        #: ln D [T, *b, S_f], and of the first time what is expected of it.
        self.priors = [
            torch.cat(
                (b.expand(1, *self.batch, b.shape[-1]), d.expand(self.times - 1, *self.batch, d.shape[-1]))
            ).clamp(min=self.least).log()
            for b, d in zip(begin, model.D, strict=True)
        ]  # fmt: skip

    def start(self) -> list[Tensor]:
        return [
            torch.full((self.times, *self.batch, size), 1 / size, dtype=self.model.dtype, device=self.model.device)
            for size in self.model.sizes
        ]

    def moved(self, q: list[Tensor], f: int, rule: str, step: float) -> Tensor:
        """Factor f's beliefs at all times, from the others' messages."""
        total = self.seen(q, f) + self.from_past(q, f, rule) + self.from_future(q, f, rule)
        if step < 1:
            old = q[f].clamp(min=self.least).log()
            total = old + step * (total - old)
        return torch.softmax(total, -1)

    def seen(self, q: list[Tensor], f: int) -> Tensor:
        total = torch.zeros_like(q[f])
        for own, x in zip(self.model.A_factors, self.likelihoods, strict=True):
            if f in own:
                total = total + _kept(x, [q[g] for g in own], own.index(f))
        return total

    def from_past(self, q: list[Tensor], f: int, rule: str) -> Tensor:
        before = [q[g][:-1] for g in self.model.B_factors[f]]
        if rule == "variational":
            message = _behind(self.log_tables[f], before)
        else:
            message = _behind(self.tables[f], before).clamp(min=self.least).log()
        message = torch.cat((torch.zeros_like(q[f][:1]), message))
        message = torch.where(self.opening.unsqueeze(-1), self.priors[f], message)
        return message if rule == "variational" else message * self.half().unsqueeze(-1)

    def half(self) -> Tensor:
        """The weight of marginal messages from the past [T, *b]: half where there is one from the future as well."""
        ends = torch.ones_like(self.opening[:1])
        return torch.where(torch.cat((self.opening[1:], ends)), 1.0, 0.5).to(self.model.dtype)

    def from_future(self, q: list[Tensor], f: int, rule: str) -> Tensor:
        total = torch.zeros_like(q[f][1:])
        for child, own in enumerate(self.model.B_factors):
            if f not in own:
                continue
            others = [q[g][:-1] for g in own]
            if rule == "variational":
                part = _kept_pair(self.log_tables[child], q[child][1:], others, own.index(f))
            else:
                table = _pair(self.tables[child], others, own.index(f))
                normal = table / table.sum(-1, keepdim=True).clamp(min=self.least)
                part = 0.5 * (normal * q[child][1:].unsqueeze(-1)).sum(-2).clamp(min=self.least).log()
            total = total + part
        total = total.masked_fill(self.opening[1:].unsqueeze(-1), 0.0)
        return torch.cat((total, torch.zeros_like(q[f][:1])))

    def accuracy(self, q: list[Tensor]) -> Tensor:
        parts = [
            _behind(x, [q[g] for g in own], 0) for own, x in zip(self.model.A_factors, self.likelihoods, strict=True)
        ]
        return sum_of([x.sum(0) for x in parts])

    def complexity(self, q: list[Tensor]) -> Tensor:
        parts = [(torch.xlogy(x, x) - x * self.from_past(q, f, "variational")).sum((0, -1)) for f, x in enumerate(q)]
        return sum_of(parts)

    def cost(self, q: list[Tensor]) -> Tensor:
        return self.complexity(q) - self.accuracy(q)

    def window(self, q: list[Tensor], terms: bool) -> Window:
        complexity, accuracy = self.complexity(q), self.accuracy(q)
        absent = complexity.new_full((), math.nan).expand(complexity.shape)
        return Window(tuple(q), complexity - accuracy, *((complexity, accuracy) if terms else (absent, absent)))


def _behind(table: Tensor, weights: Sequence[Tensor], head: int = 1) -> Tensor:
    """The average over weights [*b, S_i] of a table [*b, head axes, S_1, ..., S_k]: head axes stay."""
    for before in reversed(range(len(weights))):
        w = weights[before]
        table = (table * w.reshape(*w.shape[:-1], *[1] * (head + before), w.shape[-1])).sum(-1)
    return table


def _kept(table: Tensor, weights: Sequence[Tensor], keep: int, head: int = 0) -> Tensor:
    """The same but for the keep-th axis of states, which stays: [*b, head axes, S_keep]."""
    table = _behind(table, weights[keep + 1 :], head + keep + 1)
    for before in reversed(range(keep)):
        w = weights[before]
        table = (table * w.reshape(*w.shape[:-1], *[1] * (head + before), w.shape[-1], 1)).sum(-2)
    return table


def _pair(table: Tensor, parents: Sequence[Tensor], keep: int) -> Tensor:
    """[*b, S', S_keep] of a table of next states and parents [*b, S', S_pa, ...], averaged over the other parents."""
    return _kept(table, parents, keep, 1)


def _kept_pair(table: Tensor, after: Tensor, parents: Sequence[Tensor], keep: int) -> Tensor:
    """[*b, S_keep]: averaged over next states too."""
    return (_pair(table, parents, keep) * after.unsqueeze(-1)).sum(-2)
