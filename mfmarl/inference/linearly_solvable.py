r"""Linearly solvable control: who pays for states, and for moving otherwise than the world would by itself.

$$ v(s) = \min_u\; q(s) + T\, KL[u(\cdot|s) \,\|\, p(\cdot|s)] + \langle v(s') \rangle_u
   = q(s) - T \log \sum_{s'} p(s'|s)\, e^{-v(s')/T} $$

In the desirability z = exp(-v / T) that is linear, z = exp(-q / T) P z: a product for a finite horizon, a linear system
where paths end (first exit), the principal eigenvector for the average cost; discounted it is z = exp(-q / T) P z^delta.
The optimal transitions are u*(s'|s) ~ p(s'|s) z(s') (Kappen 2005, Phys. Rev. Lett. 95, 200201; Todorov 2006,
"Linearly-solvable Markov decision problems"; 2009, PNAS 106, 11478). It is KL control, a free energy: v is minus T times
a log-partition function over paths.

Where actions decide the next state with certainty, and p is what habits over actions make of it, v is minus the value of
soft value iteration with these habits. `embed` makes of any finite problem one of this kind whose transitions u = P(.|s, a)
cost what action a does (Todorov 2009, supplementary methods): its solution approximates.

Costs and values are in the units of q; T is a number, positive. Tables may lead with any batch axes [*b]; rows of P are
where one comes from. Everything is worked out in logarithms, where desirabilities underflow.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from mfmarl.errors import ConfigError, NumericFault

_TOLERANCE = 1e-5  # a row's sum may be off by rounding in float32
_SWEEPS = 20_000


class Solution(NamedTuple):
    """What states cost at best."""

    value: Tensor
    """v [*b, S], or [*b, T + 1, S] of a finite horizon: minus T log z."""
    average: Tensor | None = None
    """The cost per step [*b] that is left where there is no end; v is then relative to it."""


class Embedded(NamedTuple):
    """A linearly solvable problem in which actions cost what they did."""

    cost: Tensor
    """q [*b, S]."""
    passive: Tensor
    """P [*b, S, S]."""
    residual: Tensor
    """[*b, S]: by how much the cost of the worst action is off. 0 where actions lead to as many places as there are
    actions, or more."""


def backward(cost: Tensor, passive: Tensor, log_z: Tensor, temperature: float = 1.0, discount: float = 1.0) -> Tensor:
    """log z [*b, S] now, of log z after a step: -q / T + log P z^delta."""
    return -cost / temperature + _log_product(passive, discount * log_z)


def finite_horizon(
    cost: Tensor, passive: Tensor, steps: int, temperature: float = 1.0, terminal: Tensor | None = None
) -> Solution:
    """Values [*b, T + 1, S] of `steps` moves and where they end: `cost` [*b, S] (or [*b, T, S]) of every state that is
    left, `terminal` [*b, S] of the last one (0 by default)."""
    _check(cost, passive, temperature)
    if steps < 0:
        raise ConfigError(f"A horizon is a number of moves, at least 0, not {steps}.")
    timed = cost.ndim == passive.ndim
    if timed and cost.shape[-2] != steps:
        raise ConfigError(f"Costs in time must be of {steps} steps, not {cost.shape[-2]}.")
    shape = torch.broadcast_shapes((cost[..., 0, :] if timed else cost).shape, passive.shape[:-1])
    log_z = cost.new_zeros(shape) if terminal is None else (-terminal / temperature).expand(shape)
    found = [log_z]
    for t in range(steps - 1, -1, -1):
        log_z = backward(cost[..., t, :] if timed else cost, passive, log_z, temperature)
        found.append(log_z.expand(shape))
    return Solution(-temperature * torch.stack(found[::-1], -2))


def first_exit(cost: Tensor, passive: Tensor, ends: Tensor, temperature: float = 1.0) -> Solution:
    """Values [*b, S] until a state of `ends` bool [*b, S] is reached, where its own cost is paid and nothing after.

    (I - e^{-q/T} P_NN) z_N = e^{-q/T} P_NE z_E, solved, and polished in logarithms. Raises ConfigError where no path
    ends, NumericFault where costs are negative enough that it pays never to end.
    """
    _check(cost, passive, temperature)
    ends = ends.expand(cost.shape)
    if not bool(ends.any(-1).all()):
        raise ConfigError("A first exit needs at least one state that ends the path.")
    last = -cost / temperature
    # Costs relative to the least one at an end, so that z is of order 1 where paths end.
    shift = torch.where(ends, last, -torch.inf).amax(-1, keepdim=True)
    weight = torch.where(ends, torch.zeros_like(last), last.exp())
    matrix = torch.eye(cost.shape[-1], dtype=cost.dtype, device=cost.device) - weight.unsqueeze(-1) * passive
    right = torch.where(ends, (last - shift).exp(), torch.zeros_like(last))
    z, info = torch.linalg.solve_ex(matrix, right.unsqueeze(-1))
    z = z.squeeze(-1)
    if bool((info != 0).any()) or bool((z < -1e-9 * z.abs().amax(-1, keepdim=True)).any()):
        raise NumericFault("It pays never to end: paths that do not end cost less than nothing; raise their costs.")
    log_z = torch.where(ends, last, z.clamp(min=torch.finfo(z.dtype).tiny).log() + shift)
    log_z = log_z.masked_fill(~_reaching(passive, ends), -torch.inf)
    # What the solution has rounded away, far from every end, is found sweep by sweep.
    for _ in range(_SWEEPS):
        after = torch.where(ends, last, backward(cost, passive, log_z, temperature))
        known = log_z.isfinite()
        moved = float(torch.where(known, after - log_z, torch.zeros_like(log_z)).abs().max())
        log_z = after
        if moved <= 1e-13 * (1 + float(log_z[known].abs().max())):
            return Solution(-temperature * log_z)
    raise NumericFault(f"Values still move by {moved * temperature:.3g}: paths hardly end; raise the costs of states.")


def _reaching(passive: Tensor, ends: Tensor) -> Tensor:
    """From which states a path can lead to an end, bool [*b, S]."""
    found = ends
    while True:
        more = found | ((passive > 0) & found.unsqueeze(-2)).any(-1)
        if torch.equal(more, found):
            return found
        found = more


def average_cost(
    cost: Tensor, passive: Tensor, temperature: float = 1.0, tolerance: float = 1e-11, iterations: int = 100_000
) -> Solution:
    """Without end: the least cost per step, c = -T log of the principal eigenvalue of e^{-q/T} P, and values [*b, S]
    relative to it with mean 0.

    By power iteration of M / lambda + I in logarithms, which settles where M alone would go round in circles. Raises
    NumericFault where it does not settle: states that cannot reach each other have costs of their own.
    """
    _check(cost, passive, temperature)
    log_z = torch.zeros(torch.broadcast_shapes(cost.shape, passive.shape[:-1]), dtype=cost.dtype, device=cost.device)
    growth = log_z
    for _ in range(iterations):
        pushed = backward(cost, passive, log_z, temperature)
        growth = pushed - log_z  # its extremes enclose log lambda (Collatz and Wielandt)
        if float((growth.amax(-1) - growth.amin(-1)).max()) <= tolerance:
            value = -temperature * log_z
            return Solution(value - value.mean(-1, keepdim=True), -temperature * growth.mean(-1))
        log_z = torch.logaddexp(pushed, log_z + growth.amax(-1, keepdim=True))
        log_z = log_z - log_z.amax(-1, keepdim=True)
    raise NumericFault(
        f"Average costs of states still differ by {float((growth.amax(-1) - growth.amin(-1)).max()) * temperature:.3g}: "
        "every state must be reached from every other, or use a finite horizon or a discount."
    )


def discounted(
    cost: Tensor,
    passive: Tensor,
    temperature: float = 1.0,
    discount: float = 0.95,
    tolerance: float = 1e-10,
    iterations: int = 100_000,
) -> Solution:
    """Values [*b, S] without end, discounted: z = e^{-q/T} P z^delta, no longer linear but a contraction."""
    _check(cost, passive, temperature)
    if not 0 <= discount < 1:
        raise ConfigError(f"Without an end the discount lies in [0, 1), not {discount}: or use average_cost.")
    log_z = -cost / temperature
    for _ in range(iterations):
        after = backward(cost, passive, log_z, temperature, discount)
        moved = float((after - log_z).abs().max()) * temperature
        log_z = after
        if moved * discount <= tolerance * (1 - discount):
            return Solution(-temperature * log_z)
    raise NumericFault(f"Values still move by {moved:.3g} after {iterations} sweeps: allow more.")


# ------------------------------------------------------------------------------------------------- what follows


def controlled(passive: Tensor, value: Tensor, temperature: float = 1.0, discount: float = 1.0) -> Tensor:
    """The optimal transitions u*(s'|s) ~ p(s'|s) exp(-delta v(s') / T), [*b, S, S]."""
    return torch.softmax(passive.log() - discount * value.unsqueeze(-2) / temperature, -1)


def cost_of(
    cost: Tensor,
    passive: Tensor,
    control: Tensor,
    steps: int,
    temperature: float = 1.0,
    terminal: Tensor | None = None,
) -> Tensor:
    """What any transitions u [*b, S, S] cost over `steps` moves, [*b, S]: q + T KL[u || p] each; infinite where u goes
    where p never does."""
    ratio = torch.where(control > 0, (control / passive).log(), torch.zeros_like(control))
    paid = cost + temperature * (control * ratio).sum(-1)
    value = torch.zeros_like(paid) if terminal is None else terminal.expand_as(paid)
    for _ in range(steps):
        ahead = torch.where(control > 0, control * value.unsqueeze(-2), torch.zeros_like(control)).sum(-1)
        value = paid + ahead
    return value


def residual(
    cost: Tensor,
    passive: Tensor,
    value: Tensor,
    temperature: float = 1.0,
    average: Tensor | None = None,
    discount: float = 1.0,
) -> Tensor:
    """How far values [*b, S] are from solving their equation, [*b]: the largest difference over states."""
    after = -temperature * backward(cost, passive, -value / temperature, temperature, discount)
    shift = 0.0 if average is None else average.unsqueeze(-1)
    return (after - shift - value).abs().amax(-1)


def of_actions(moves: Tensor, habit: Tensor | None = None) -> Tensor:
    """The passive dynamics P [*b, S, S] of acting by habit, [*b, U] or [*b, S, U] (uniform by default), where actions
    move by [*b, S, U, S]."""
    if habit is None:
        return moves.mean(-2)
    rows = habit.unsqueeze(-2) if habit.ndim < moves.ndim - 1 else habit
    return (rows.unsqueeze(-2) @ moves).squeeze(-2)


def certain(moves: Tensor) -> bool:
    """Whether actions decide the next state: [*b, S, U, S] of nothing but 0 and 1."""
    return bool(((moves == 0) | ((moves - 1).abs() < _TOLERANCE)).all())


def energies(paid: Tensor, moves: Tensor, value: Tensor, discount: float = 1.0) -> Tensor:
    """What actions cost at best, E(s, a) [*b, S, U]: now `paid` [*b, S, U], and the value [*b, S] of where they lead."""
    return paid + discount * (moves @ value.unsqueeze(-2).unsqueeze(-1)).squeeze(-1)


def tilt(paid: Tensor, moves: Tensor, temperature: float = 1.0) -> Embedded:
    """The linearly solvable problem of moves that are certain, exactly: e^{-q/T} p(s'|s) = sum over the actions that lead
    from s to s' of e^{-paid / T}. Habits E count as -T log E of what is paid; infinity forbids.

    Its value is the soft one, v(s) = -T log sum_a e^{-(paid + v(s'))/T}.
    """
    _check_moves(paid, moves, temperature)
    if not certain(moves):
        raise ConfigError("Only certain moves make a linear problem by themselves: `embed` those that are not.")
    log_total = torch.logsumexp(-paid / temperature, -1)
    passive = (torch.softmax(-paid / temperature, -1).unsqueeze(-2) @ moves).squeeze(-2)
    return Embedded(-temperature * log_total, passive, torch.zeros_like(log_total))


def embed(paid: Tensor, moves: Tensor, temperature: float = 1.0, inverse: Tensor | None = None) -> Embedded:
    """The linearly solvable problem in which u = P(.|s, a) costs what action a does, paid [*b, S, U], for every a.

    In every state q + T KL[P(.|s, a) || p(.|s)] = paid(s, a) is linear in y(s') = q - T log p(s'|s), and p normalises:
    q = -T log sum exp(-y / T). The least squares of least norm where there is more than one solution, or none.
    `inverse` is `torch.linalg.pinv(moves)`, where it is known already.
    """
    _check_moves(paid, moves, temperature)
    chaos = torch.where(moves > 0, moves * moves.log(), torch.zeros_like(moves)).sum(-1)
    wanted = (paid - temperature * chaos).unsqueeze(-1)
    y = (torch.linalg.pinv(moves) if inverse is None else inverse) @ wanted
    off = (moves @ y - wanted).squeeze(-1).abs().amax(-1)
    reached = (moves > 0).any(-2)
    y = torch.where(reached, y.squeeze(-1), torch.full((), math.inf, dtype=y.dtype, device=y.device))
    log_total = torch.logsumexp(-y / temperature, -1, keepdim=True)
    return Embedded(-temperature * log_total.squeeze(-1), (-y / temperature - log_total).exp(), off)


def _log_product(passive: Tensor, log_z: Tensor) -> Tensor:
    """log P z of log z [*b, S]."""
    top = log_z.amax(-1, keepdim=True)
    top = torch.where(top.isfinite(), top, torch.zeros_like(top))
    pushed = (passive @ (log_z - top).exp().unsqueeze(-1)).squeeze(-1).log() + top
    # Where everything within reach is out of float's range of the best, the sum is taken state by state.
    lost = ~pushed.isfinite()
    if bool(lost.any()):
        exact = torch.logsumexp(passive.log() + log_z.unsqueeze(-2), -1)
        pushed = torch.where(lost, exact, pushed)
    return pushed


def _check(cost: Tensor, passive: Tensor, temperature: float) -> None:
    if not 0 < temperature < math.inf:
        raise ConfigError(f"A temperature is positive and finite, not {temperature}.")
    size = passive.shape[-1]
    if passive.ndim < 2 or passive.shape[-2] != size or cost.shape[-1] != size:
        raise ConfigError(
            f"Passive dynamics must be [states, states] and costs [states], not {list(passive.shape)} and {list(cost.shape)}."
        )
    if not bool(cost.isfinite().all()):
        raise ConfigError("Costs of states must be finite numbers: write a large one for what must not be.")
    if bool((passive < 0).any()) or not bool(((passive.sum(-1) - 1).abs() <= _TOLERANCE).all()):
        raise ConfigError("Every row of the passive dynamics must be a distribution over next states.")


def _check_moves(paid: Tensor, moves: Tensor, temperature: float) -> None:
    if not 0 < temperature < math.inf:
        raise ConfigError(f"A temperature is positive and finite, not {temperature}.")
    if moves.ndim < 3 or moves.shape[-3] != moves.shape[-1] or paid.shape[-2:] != moves.shape[-3:-1]:
        raise ConfigError(
            f"Moves must be [states, actions, states] and what is paid [states, actions], not {list(moves.shape)} and "
            f"{list(paid.shape)}."
        )
    if bool((moves < 0).any()) or not bool(((moves.sum(-1) - 1).abs() <= _TOLERANCE).all()):
        raise ConfigError("Moves must be distributions over next states, from every state by every action.")
