r"""Dynamic programming on expected free energy, for an agent that knows where it is: one table for everybody.

$$ g_h(s, u) = g_1(s, u) + \delta \sum_{s'} B(s' \mid s, u)\, V_{h-1}(s'), \qquad
   V = \tfrac1\gamma \log \sum_u E(u)\, e^{\gamma g}, \; \max_u g, \; \text{or} \; \sum_u Q(u)\, g $$

with g_1(s, u) the expected free energy, sign changed, of the belief B(. | s, u) that follows certainty (Da Costa et al.
2023, "Reward maximization through discrete active inference", Neural Computation 35, 807; Paul et al. 2023, "On
efficient computation in active inference", arXiv 2307.00504). Where every outcome tells the state it is sophisticated
inference, at O(T U S^2) for a model instead of (U K)^T for each agent: soft value iteration under the free-energy
back-up, value iteration under `max`.

Of beliefs that are not certain, `plan` takes the mean of the table, q @ g: as if after this action the state were known
(QMDP; Littman, Cassandra and Kaelbling 1995). Under `max` and expected utility that is an upper bound, and it never
pays for a look. delta is a discount, 1 in the finite horizon unless given.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from mfmarl.errors import ConfigError, NumericFault
from mfmarl.inference import expected_free_energy
from mfmarl.inference.model import GenerativeModel
from mfmarl.inference.objective import Objective, Plan
from mfmarl.inference.planning.layout import check_beliefs, check_precision, habits, lifted
from mfmarl.inference.planning.sophisticated import BUDGET, Backup, back_up, check_backup

_CHUNK = 1 << 22  # numbers of one-step values that are worked out at once


class Tables(NamedTuple):
    """What states and actions are worth, habits left out; the first axis is time: 0 with all steps ahead."""

    value: Tensor
    """g [T, *p, S, U]."""
    state: Tensor
    """V [T, *p, S]."""


def fully_observed(model: GenerativeModel) -> bool:
    """Whether every outcome tells the joint state: no two states can show the same."""
    flat = model.joint()
    alike: Tensor | None = None
    for a in flat.A:
        possible = (a > 0).to(flat.dtype)
        same = (possible.mT @ possible) > 0
        alike = same if alike is None else alike & same
    assert alike is not None
    return not bool((alike & ~torch.eye(model.num_states, dtype=torch.bool, device=model.device)).any())


def step_values(model: GenerativeModel, objective: Objective = Objective(), t: int = 0) -> Tensor:  # noqa: B008
    """g_1 [*p, S, U] of acting in a known joint state."""
    flat = model.joint()
    check_learned(objective)
    moves = transitions(flat)  # [*p, S, U, S']
    ways = expected_free_energy.ways_of_showing(lifted(flat, 2), objective, t)
    rows = max(1, _CHUNK // (moves.numel() // moves.shape[-3] + 1))
    parts = [
        expected_free_energy.worth_of_showing(ways, (moves[..., start : start + rows, :, :],), objective.state_weight)
        for start in range(0, moves.shape[-3], rows)
    ]
    return parts[0] if len(parts) == 1 else torch.cat(parts, -2)


def tables(
    model: GenerativeModel,
    depth: int,
    gamma: float | Tensor = 1.0,
    objective: Objective = Objective(),  # noqa: B008
    backup: Backup = "free_energy",
    t: int = 0,
    discount: float = 1.0,
    ahead: Tensor | None = None,
) -> Tables:
    """Values of `depth` actions from now, over joint states; gamma is a number or [*p], `ahead` [*p, S] what follows the
    last of them. O(T U S^2).

    Raises ConfigError for a depth below 1, and where parameters are to be learned: that is no matter of states.
    """
    if depth < 1:
        raise ConfigError(f"Planning needs a depth of at least 1 action, not {depth}.")
    _check(gamma, backup, discount)
    flat = model.joint()
    moves, log_habit, rate = transitions(flat), _habits(flat), _wide(gamma)
    once = None if flat.timed else step_values(flat, objective)
    values: list[Tensor] = []
    states: list[Tensor] = []
    for step in range(depth - 1, -1, -1):
        g = step_values(flat, objective, t + step) if once is None else once
        if ahead is not None:
            g = g + discount * (moves @ ahead[..., None, :, None]).squeeze(-1)
        ahead = back_up(g, rate, backup, log_habit)
        values.append(g)
        states.append(ahead)
    shape = torch.broadcast_shapes(*(g.shape for g in values))
    return Tables(
        torch.stack([g.expand(shape) for g in reversed(values)]),
        torch.stack([v.expand(shape[:-1]) for v in reversed(states)]),
    )


def stationary(
    model: GenerativeModel,
    gamma: float | Tensor = 1.0,
    objective: Objective = Objective(),  # noqa: B008
    backup: Backup = "free_energy",
    discount: float = 0.95,
    tolerance: float = 1e-10,
    iterations: int = 100_000,
) -> Tables:
    """Values without a last step, discounted: [1, *p, S, U] and [1, *p, S], to `tolerance` in V.

    Preferences are those of the last time where they are timed. Raises ConfigError for a discount of 1 and more,
    NumericFault where values have not settled: `expectation` is no contraction, and need not.
    """
    _check(gamma, backup, discount)
    if discount >= 1:
        raise ConfigError(f"Without a last step the discount must lie below 1, not {discount}.")
    flat = model.joint()
    last = flat.C[0].shape[-2] - 1 if flat.timed else 0
    reward, moves = step_values(flat, objective, last), transitions(flat)
    log_habit, rate = _habits(flat), _wide(gamma)
    v = back_up(reward, rate, backup, log_habit)
    for _ in range(iterations):
        g = reward + discount * (moves @ v[..., None, :, None]).squeeze(-1)
        after = back_up(g, rate, backup, log_habit)
        moved = float((after - v).abs().max())
        v = after
        # The rest of a geometric series is at most discount / (1 - discount) times its last term.
        if moved * discount <= tolerance * (1 - discount):
            return Tables(g.unsqueeze(0), v.unsqueeze(0))
    raise NumericFault(
        f"Values of states still move by {moved:.3g} after {iterations} sweeps: use the back-up 'free_energy' or 'max', "
        "a smaller discount, or more iterations."
    )


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
    known: Tables | None = None,
    look: bool = False,
) -> Plan:
    """What every first action is worth, [*b, U], from beliefs [*b, S_f]; exact where they are certain.

    `known` are tables made before, which save the work: their first time is read. `look`: the first step is valued by
    the belief itself, with what it would tell, and only then is the state taken to be known.
    """
    del counts, budget  # nothing is learned of parameters here, and a table is small
    check_beliefs(model, believed)
    flat = model.joint()
    log_habit = habits(flat)
    if known is None:
        known = tables(flat, depth, gamma, objective, backup, t)
    q = expected_free_energy.outer(believed)
    if look:
        ahead = expected_free_energy.contract(q, transitions(flat).flatten(-2)).unflatten(-1, (-1, model.num_states))
        ways = expected_free_energy.ways_of_showing(lifted(flat, 1), objective, t)
        value = expected_free_energy.worth_of_showing(ways, (ahead,), objective.state_weight)
        if len(known.state) > 1:
            value = value + expected_free_energy.contract(ahead, known.state[1][..., None, :, None]).squeeze(-1)
    else:
        value = expected_free_energy.contract(q, known.value[0])
    if log_habit is not None:
        value = value + log_habit / _wide(gamma)
    return Plan(value)


def transitions(flat: GenerativeModel) -> Tensor:
    """B of a model of one factor, by the state and action that it follows: [*p, S, U, S']."""
    return flat.of_action(0).movedim(-1, -3)


def _habits(flat: GenerativeModel) -> Tensor | None:
    log_habit = habits(flat)
    return log_habit.unsqueeze(-2) if log_habit is not None and log_habit.ndim > 1 else log_habit


def _wide(gamma: float | Tensor) -> float | Tensor:
    """gamma [*p] against [*p, S]."""
    return gamma.unsqueeze(-1) if isinstance(gamma, Tensor) and gamma.ndim else gamma


def _check(gamma: float | Tensor, backup: str, discount: float) -> None:
    check_precision(gamma)
    check_backup(backup)
    if not 0 <= discount <= 1:
        raise ConfigError(f"A discount lies in [0, 1], not {discount}.")


def check_learned(objective: Objective) -> None:
    """Raises ConfigError where information on parameters counts: a table of states knows nothing of counts."""
    if objective.parameter_information != "none":
        raise ConfigError(
            "Tables over states hold nothing of what is learned of parameters: use parameter_information='none', or "
            "planning.sophisticated."
        )
