r"""Self-consistent equations x = f(x): one solver for all of them, and what its derivative says of the solution.

$$ x \leftarrow x + \alpha\,(f(x) - x), \qquad J = \partial f/\partial x, \qquad
   \text{stable:}\ \max \operatorname{Re} \operatorname{eig} J < 1, \qquad
   \chi = (1 - J)^{-1}\, \partial f/\partial \text{field} $$

A crowd that answers by Gibbs to energies which its own shares p set is p = softmax(-E(p)/T): a logit (quantal
response) equilibrium (McKelvey and Palfrey 1995), the minimum of <E> - T S where E is a gradient. Its J is
-(diag p - p p^T) E'(p)/T, its susceptibility dp/dE = -(1 - J)^{-1} (diag p - p p^T)/T. Where 1 is an eigenvalue, a
branch ends (spinodal) or splits (critical point). Anderson 1965 (J. ACM 12, 547) for the acceleration. The last axis
is x; leading axes are a batch, each with a step of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from mfmarl.errors import ConfigError, NumericFault
from mfmarl.statmech import check, gibbs

Map = Callable[[Tensor], Tensor]
"""f: [*b, n] -> [*b, n], each row of its own."""

_PATIENCE = 50  # a spiral inwards may widen for a few steps: progress is judged over so many
_SAME_WAY = 0.9  # cosine above which it still goes where it went then: slow, as near criticality, but no circle
_SMALLEST = 1e-3


class FixedPoint(NamedTuple):
    """Where the steps led."""

    point: Tensor
    """x [*b, n]."""
    residual: Tensor
    """max |f(x) - x| [*b]."""
    converged: Tensor
    """[*b] bool."""


class Equilibrium(NamedTuple):
    """A crowd's shares that reproduce themselves, and how it would answer to a push."""

    shares: Tensor
    """p [*b, A]."""
    free_energy_slope: Tensor
    """E(p) + T log p [*b, A]: equal for all actions at equilibrium."""
    growth: Tensor
    """The largest real part of the eigenvalues of J [*b]: stable below 1, and critical slowing 1/(1 - growth)."""
    susceptibility: Tensor
    """dp_a/dE_b [*b, A, A]: rows sum to 0."""
    converged: Tensor
    """[*b] bool."""


def solve(
    update: Map,
    start: Tensor,
    *,
    share: float = 0.5,
    steps: int = 2_000,
    tolerance: float = 1e-12,
    memory: int = 0,
) -> FixedPoint:
    """x = update(x), from `start` [*b, n] by steps of `share` of the way, halved where they go round in circles.

    Plain steps end in a stable solution whose basin holds `start`. A `memory` of a few earlier steps (Anderson) is
    much faster near criticality, but may leave the basin. Nothing is raised: look at `converged`.
    """
    if not 0 < share <= 1 or steps < 1:
        raise ConfigError(f"A solver takes a share in (0, 1] of the way, for 1 step or more: not {share:g}, {steps}.")
    with torch.no_grad():
        x = start.detach().clone()
        part = torch.full((*x.shape[:-1], 1), share, dtype=x.dtype, device=x.device)
        before = torch.full(x.shape[:-1], torch.inf, dtype=x.dtype, device=x.device)
        direction = last = torch.zeros_like(x)
        kept: list[tuple[Tensor, Tensor]] = []
        for step in range(steps):
            away = update(x) - x
            residual = away.abs().amax(-1)
            if bool((residual < tolerance).all()) or not bool(torch.isfinite(residual).all()):
                break
            if step % _PATIENCE == _PATIENCE - 1:
                alike = torch.minimum(_cosine(away, direction), _cosine(away, last))
                circles = ((residual > 0.95 * before) & (alike < _SAME_WAY)).unsqueeze(-1)
                part = torch.where(circles, (part / 2).clamp(min=min(_SMALLEST, share)), part)
                before, direction = residual, away
            new = x + part * away
            if memory:
                kept = [*kept[-memory:], (x, away)]
                new = torch.where((residual < tolerance).unsqueeze(-1), new, _anderson(kept, part, new))
            x, last = new, away
        residual = (update(x) - x).abs().amax(-1)
    return FixedPoint(x, residual, residual < tolerance)


def _cosine(one: Tensor, other: Tensor) -> Tensor:
    return torch.cosine_similarity(one, other, dim=-1, eps=1e-300)


def _anderson(kept: Sequence[tuple[Tensor, Tensor]], part: Tensor, plain: Tensor) -> Tensor:
    """The step that would be best were f linear in what the last steps have spanned."""
    if len(kept) < 3:
        return plain
    points = torch.stack([point for point, _ in kept], -1)
    aways = torch.stack([away for _, away in kept], -1)
    moved, changed = points.diff(dim=-1), aways.diff(dim=-1)
    gram = changed.mT @ changed
    ridge = 1e-10 * gram.diagonal(dim1=-2, dim2=-1).amax(-1).clamp(min=1e-300)
    gram = gram + ridge[..., None, None] * torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
    weight = torch.linalg.solve(gram, changed.mT @ aways[..., -1:])
    new = plain - ((moved + part.unsqueeze(-1) * changed) @ weight).squeeze(-1)
    # A residual that has doubled says that the past misleads.
    worse = aways[..., -1].abs().amax(-1) > 2 * aways[..., -2].abs().amax(-1)
    return torch.where(worse.unsqueeze(-1) | ~torch.isfinite(new), plain, new)


def jacobian(update: Map, point: Tensor) -> Tensor:
    """J_ab = d f_a/d x_b [*b, n, n] by automatic differentiation, all rows of the batch at once."""
    with torch.enable_grad():
        x = point.detach().clone().requires_grad_()
        value = update(x)
        if not value.requires_grad:  # a constant
            return x.new_zeros(*x.shape, x.shape[-1]).detach()
        # Rows do not meet, so the slope of their sum is every row's own.
        slopes = [
            torch.autograd.grad(value[..., a].sum(), x, retain_graph=True, materialize_grads=True)[0]
            for a in range(x.shape[-1])
        ]
    return torch.stack(slopes, -2)


def growth(update: Map, point: Tensor) -> Tensor:
    """The largest real part of J's eigenvalues [*b]: below 1, small steps lead back to the point; above, away."""
    return torch.linalg.eigvals(jacobian(update, point)).real.amax(-1)


def contraction_rate(update: Map, point: Tensor) -> Tensor:
    """The spectral radius of J [*b]: by this factor full steps (share 1) shrink an error; from 1 on they diverge."""
    return torch.linalg.eigvals(jacobian(update, point)).abs().amax(-1)


def softmax_equilibrium(
    energy: Map,
    temperature: float,
    start: Tensor,
    *,
    share: float = 0.5,
    steps: int = 20_000,
    tolerance: float = 1e-12,
) -> Equilibrium:
    """p = softmax(-energy(p)/T), of shares [*b, A] and energies [*b, A], from `start`, with stability and response."""
    check.temperature(temperature, positive=True)
    check.finite(start, "The start of an equilibrium")

    def update(p: Tensor) -> Tensor:
        return gibbs.probabilities(energy(p), temperature)

    p, _, converged = solve(update, start, share=share, steps=steps, tolerance=tolerance)
    slopes = jacobian(update, p)
    spread = torch.diag_embed(p) - p.unsqueeze(-1) * p.unsqueeze(-2)
    one = torch.eye(p.shape[-1], dtype=p.dtype, device=p.device)
    try:
        response = -torch.linalg.solve(one - slopes, spread / temperature)
    except torch.linalg.LinAlgError:
        response = torch.full_like(spread, torch.inf)  # exactly at criticality
    level = energy(p).detach() + temperature * p.clamp(min=1e-300).log()
    return Equilibrium(p, level, torch.linalg.eigvals(slopes).real.amax(-1), response, converged)


def follow(
    update: Callable[[Tensor, float], Tensor],
    parameters: Sequence[float],
    start: Tensor,
    *,
    nudge: float = 1e-9,
    share: float = 0.5,
    steps: int = 50_000,
    tolerance: float = 1e-11,
) -> Tensor:
    """The branch [P, *b, n] of x = update(x, parameter) that slow driving from `start` stays on: each solution starts
    the next. `nudge` x the first unit vector is added each time, or a symmetric solution would be kept where it has
    become unstable. Raises NumericFault, naming the parameter, where no solution is reached.
    """
    x, branch = start, []
    for value in parameters:
        away = torch.zeros_like(x)
        away[..., 0] = nudge

        def at(point: Tensor, value: float = value) -> Tensor:
            return update(point, value)

        found = solve(at, x + away, share=share, steps=steps, tolerance=tolerance)
        if not bool(found.converged.all()):
            raise NumericFault(
                f"No solution reached at parameter {value:g}: a step still moves by {float(found.residual.max()):.1g}."
            )
        x = found.point
        branch.append(x)
    return torch.stack(branch)


def critical_parameter(
    update: Callable[[Tensor, float], Tensor], point: Tensor, low: float, high: float, iterations: int = 60
) -> float:
    """Where the solution `point` [n] (the same for all parameters) turns unstable: growth = 1, by bisection.

    Raises ConfigError unless it is stable at one end of [low, high] and unstable at the other.
    """

    def excess(value: float) -> float:
        return float(growth(lambda x: update(x, value), point)) - 1

    ends = excess(low), excess(high)
    if ends[0] * ends[1] > 0:
        raise ConfigError(f"The solution does not change its stability between {low:g} and {high:g}.")
    for _ in range(iterations):
        middle = (low + high) / 2
        low, high = (middle, high) if (excess(middle) > 0) == (ends[0] > 0) else (low, middle)
    return (low + high) / 2
