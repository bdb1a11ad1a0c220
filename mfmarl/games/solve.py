"""To run a solver: iterate, look at the exploitability when asked, keep the best policy, stop, say why."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from mfmarl.errors import ConfigError, NumericFault
from mfmarl.games import exploitability as measures
from mfmarl.games.flow import check_policy, flow, uniform
from mfmarl.games.game import MeanFieldGame
from mfmarl.games.solver import Solver, positive

Row = dict[str, Any]


@dataclass(frozen=True)
class Solution:
    """What a solver came to. Of a batch, numbers in rows are lists, and every entry has its own best policy."""

    policy: Tensor  # [T, *b, G, S, A], the best that was looked at
    last: Tensor  # [T, *b, G, S, A], that of the last iteration looked at
    exploitability: Tensor
    """Of `policy`, [*b]: regularised, if the solver pays an entropy bonus; of a planner, minus its value."""
    rows: list[Row]
    """One for each look: iteration, exploitability, value, seconds; regularised, free_energy or potential where there is one."""
    stopped: Literal["tolerance", "iterations", "time", "interrupted", "diverged"]
    told: str = ""
    """Where something went wrong: what, and what to do."""

    @property
    def iterations(self) -> int:
        return int(self.rows[-1]["iteration"]) if self.rows else 0


def looks(iterations: int, every: int) -> Iterator[int]:
    """At which iterations to look: every so many, or (0) at 0, 1, 2, ... and then ever more rarely, and at the last."""
    k = 0
    while k < iterations:
        yield k
        k += every or max(1, k // 8)
    yield iterations


def solve(
    game: MeanFieldGame,
    solver: Solver,
    iterations: int = 1000,
    tolerance: float = 1e-8,
    every: int = 0,
    policy: Tensor | None = None,
    batch: Sequence[int] = (),
    dtype: torch.dtype = torch.float64,
    device: torch.device | str = "cpu",
    seconds: float = float("inf"),
    on_row: Callable[[Row], None] | None = None,
) -> Solution:
    """Run a solver from `policy` (default: uniform, with that batch) until every entry's exploitability is below the
    tolerance (of regularised agents, their regularised one), or iterations or seconds are spent.

    Ctrl-C ends it where it is, with what was found. A solver that leaves the finite numbers ends as `diverged`.
    Raises ConfigError, and NumericFault or EnvironmentFault for rules that are none.
    """
    if iterations < 1:
        raise ConfigError(f"iterations must be at least 1, not {iterations}.")
    if every < 0:
        raise ConfigError(f"every must be at least 0, not {every}.")
    first = uniform(game, batch, dtype, device) if policy is None else policy
    check_policy(game, first)
    started = time.monotonic()
    rows: list[Row] = []
    best = last = first
    least = torch.full(first.shape[1:-3], torch.inf, dtype=first.dtype, device=first.device)
    stopped: Any = "iterations"
    told = ""
    with torch.no_grad():
        flow(game, first, check=True)  # rules that are none are told before anything is done
        state = solver.begin(game, first)
        due = looks(iterations, every)
        look = next(due)
        k = 0
        try:
            while True:
                if k == look:
                    last = solver.policy(game, state)
                    score, row = _look(game, solver, last, k, time.monotonic() - started)
                    better = score < least
                    best = torch.where(better.reshape(*better.shape, 1, 1, 1), last, best)
                    least = torch.where(better, score, least)
                    rows.append(row)
                    if on_row is not None:
                        on_row(row)
                    goal = row.get("regularised", row["exploitability"])
                    if not solver.cooperative and bool((torch.as_tensor(goal) <= tolerance).all()):
                        stopped = "tolerance"
                        break
                    if k == iterations:
                        break
                    look = next(due)
                if time.monotonic() - started > seconds:
                    stopped = "time"
                    break
                k += 1
                state = solver.step(game, state, k)
        except KeyboardInterrupt:
            stopped, told = "interrupted", f"Interrupted after iteration {k}; what was found until then is kept."
        except NumericFault as fault:
            if not rows:
                raise
            stopped, told = "diverged", f"{fault} {_remedy(solver)}"
    if stopped == "iterations" and not solver.cooperative:
        told = _unsettled(solver, rows)
    return Solution(best, last, least, rows, stopped, told)


def _look(game: MeanFieldGame, solver: Solver, policy: Tensor, k: int, seconds: float) -> tuple[Tensor, Row]:
    if not bool(torch.isfinite(policy).all()):
        raise NumericFault(f"{solver.name}: the policy of iteration {k} holds NaN.")
    gap = measures.gap(game, policy, check=False)
    value = gap.value.sum(-1)
    row: Row = {"iteration": k, "exploitability": _plain(gap.exploitability), "value": _plain(value)}
    score = -value if solver.cooperative else gap.exploitability
    bonus = solver.entropy_bonus
    if positive(bonus):
        score = measures.regularised(game, policy, bonus)
        row["regularised"] = _plain(score)
    potential = measures.potential(game, gap.flow)
    if potential is not None:
        row["potential"] = _plain(potential)
        row["free_energy"] = _plain(-potential - bonus * measures.entropy(game, gap.flow))
    row["seconds"] = round(seconds, 4)
    return score, row


def _plain(x: Tensor) -> Any:
    return x.tolist()


def _remedy(solver: Solver) -> str:
    return f"{solver.name} left the finite numbers: take smaller steps, or another solver (omd with a small rate is the safest)."


def _unsettled(solver: Solver, rows: Sequence[Row]) -> str:
    """A sentence where the last half of the curve did not come down."""
    curve = [torch.as_tensor(row.get("regularised", row["exploitability"])).max().item() for row in rows]
    half = len(curve) // 2
    low = curve[-1] < max(1e-6, 1e-4 * curve[0])
    if solver.rests_elsewhere or len(curve) < 8 or curve[-1] < 0.9 * min(curve[: half + 1]) or low:
        return ""
    others = " or ".join(name for name in ("omd", "fp", "sequential") if name != solver.name)
    return (
        f"{solver.name} did not settle: the exploitability was {min(curve):.4g} at best and is {curve[-1]:.4g} at the end. "
        f"Damp it, take smaller steps, or use {others}."
    )
