r"""Linear-quadratic games of alike agents: equilibrium and social optimum by Riccati equations, at every N.

$$ x_i' = A x_i + \bar A m + B a_i + w_i, \qquad
   c_i = z_i^\top C z_i + 2 a_i^\top S z_i + a_i^\top R a_i, \qquad z_i = (x_i, m), \quad m = \tfrac1N \sum_j x_j $$

When all others play a_j = -K x_j - H m, what an agent meets is its own state and the mean, and these are closed: with
e = 1/N (0 of infinitely many)

$$ m' = (A + \bar A) m + B\,\big( e\, a_i - K (m - e\, x_i) - (1 - e) H m \big) + \bar w $$

So one agent's problem is a regulator in 2 d dimensions at every N, and the symmetric Nash equilibrium in feedback form
is found stage by stage: with the value z^T P z, U = P_xx + e P_mx and W = P_xm + e P_mm,

$$ (R + \gamma B^\top U B)\, K = S_x + \gamma B^\top U A, \qquad
   (R + \gamma B^\top (U + W) B)\, H = S_m + \gamma B^\top [U \bar A + W (A + \bar A - B K)] $$

The planner, who minimises everybody's mean cost, sees two regulators that do not meet: deviations x_i - m, and m with
the cost C_xx + C_xm + C_mx + C_mm; his rule is the same at every N. Huang, Caines and Malhame 2007 (IEEE TAC 52, 1560);
Bensoussan, Frehse and Yam 2013, chapter 6; Carmona, Fouque and Sun 2015 (arXiv 1308.2172) for finite N and feedback.

Shapes: d states, l actions, T times (1 without a horizon). float64.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import scipy.linalg
from numpy.typing import NDArray

from mfmarl.errors import ConfigError, NumericFault

Array = NDArray[np.floating[Any]]

_STAGES = 100_000  # backward, until a rule without a horizon stands
_STANDS = 1e-14
_SQUARES = 60  # doublings of a sum over all times


@dataclass(frozen=True, eq=False)
class LinearQuadratic:
    """The game. Matrices left out are zero. Costs are of z = (x, m), in this order."""

    own: Array
    """A, [d, d]: what one's own state becomes."""
    control: Array
    """B, [d, l]."""
    cost: Array
    """C, symmetric [2 d, 2 d]."""
    effort: Array
    """R, symmetric and positive [l, l]."""
    crowd: Array = None  # type: ignore[assignment]
    """The pull of the mean, [d, d]."""
    cross: Array = None  # type: ignore[assignment]
    """S, [l, 2 d]."""
    terminal: Array = None  # type: ignore[assignment]
    """Cost of z after the last step, [2 d, 2 d]."""
    noise: Array = None  # type: ignore[assignment]
    """Covariance [d, d] of each agent's own noise."""
    common: Array = None  # type: ignore[assignment]
    """Covariance [d, d] of the noise that all share."""
    mean: Array = None  # type: ignore[assignment]
    """Mean of the first states, [d]."""
    spread: Array = None  # type: ignore[assignment]
    """Their covariance, [d, d]."""
    discount: float = 1.0
    horizon: int | None = None

    def __post_init__(self) -> None:
        d, l = np.shape(self.control)  # noqa: E741
        shapes: dict[str, tuple[int, ...]] = {
            "own": (d, d), "control": (d, l), "cost": (2 * d, 2 * d), "effort": (l, l), "crowd": (d, d),
            "cross": (l, 2 * d), "terminal": (2 * d, 2 * d), "noise": (d, d), "common": (d, d), "mean": (d,),
            "spread": (d, d),
        }  # fmt: skip
        for name, shape in shapes.items():
            given = getattr(self, name)
            table = np.zeros(shape) if given is None else np.asarray(given, dtype=np.float64)
            if table.shape != shape or not np.isfinite(table).all():
                raise ConfigError(f"{name} of a linear-quadratic game must be finite and of shape {list(shape)}.")
            if name in ("cost", "effort", "terminal", "noise", "common", "spread") and not np.allclose(table, table.T):
                raise ConfigError(f"{name} of a linear-quadratic game must be symmetric.")
            object.__setattr__(self, name, table)
        if np.linalg.eigvalsh(self.effort).min() <= 0:
            raise ConfigError(
                "effort of a linear-quadratic game must be positive: actions that cost nothing have no end."
            )
        if self.horizon is None and not 0 < self.discount < 1:
            raise ConfigError(
                f"A linear-quadratic game without a horizon needs a discount in (0, 1), not {self.discount:g}."
            )

    @property
    def d(self) -> int:
        return len(self.control)


class Rule(NamedTuple):
    """a = -K x - H m at every time: on a deviation from the mean it acts by K, on the mean by K + H."""

    own: Array  # K, [T, l, d]
    crowd: Array  # H, [T, l, d]


class Worth(NamedTuple):
    """The cost to go of an agent at z = (x, m): z^T P_t z + constant_t."""

    matrix: Array  # P, [T + 1, 2 d, 2 d] (the same twice without a horizon)
    constant: Array  # [T + 1]


class Moments(NamedTuple):
    """Second moments of N agents."""

    deviation: Array  # E (x_i - m)(x_i - m)^T, [T + 1, d, d]
    mean: Array  # E m m^T, [T + 1, d, d]


def rule(own: Any, crowd: Any) -> Rule:
    """A rule from matrices [l, d], or numbers, that hold at all times."""
    one, other = np.atleast_2d(np.asarray(own, dtype=np.float64)), np.atleast_2d(np.asarray(crowd, dtype=np.float64))
    return Rule(one[None], other[None])


def nash(game: LinearQuadratic, agents: float = math.inf) -> Rule:
    """The symmetric feedback equilibrium of so many agents; `math.inf`: the mean-field game.

    Without a horizon: the limit of long horizons. Raises NumericFault where a best response does not exist or the
    limit is not reached.
    """
    e = _one_of(agents)
    p = game.terminal if game.horizon is not None else np.zeros_like(game.cost)
    gains = []
    for stage in range(game.horizon or _STAGES):
        k, h = _stage(game, p, e)
        p = _valued(game, p, k, h)
        if not np.isfinite(p).all() or abs(p).max() > 1e12:
            raise NumericFault("The Riccati equation of this game grows without bound: it has no equilibrium.")
        if game.horizon is not None:
            gains.append((k, h))
        elif stage and abs(k - gains[0][0]).max() + abs(h - gains[0][1]).max() <= _STANDS * (1 + abs(k).max()):
            return Rule(k[None], h[None])
        else:
            gains = [(k, h)]
    if game.horizon is None:
        raise NumericFault(
            "The equilibria of longer and longer horizons come to no limit: the coupling to the mean is too strong "
            "for a stationary equilibrium; give the game a horizon."
        )
    return Rule(np.stack([k for k, _ in gains[::-1]]), np.stack([h for _, h in gains[::-1]]))


def planner(game: LinearQuadratic) -> Rule:
    """The rule that minimises the mean cost of all, of any number of agents."""
    d = game.d
    k = _regulator(game, game.own, game.cost[:d, :d], game.cross[:, :d], game.terminal[:d, :d])
    both = _regulator(
        game, game.own + game.crowd, _of_mean(game.cost), game.cross[:, :d] + game.cross[:, d:], _of_mean(game.terminal)
    )
    return Rule(k, both - k)


def check_rule(game: LinearQuadratic, chosen: Rule) -> None:
    """Raises ConfigError for gains of the wrong shape, NumericFault for gains that are not finite."""
    d, l = game.control.shape  # noqa: E741
    times = game.horizon or 1
    for name, gain in zip(Rule._fields, chosen, strict=True):
        if np.shape(gain) not in ((1, l, d), (times, l, d)):
            raise ConfigError(
                f"{name} of a rule for this game is [{times}, {l}, {d}] or [1, {l}, {d}], not {list(np.shape(gain))}."
            )
        if not np.isfinite(gain).all():
            raise NumericFault(
                f"{name} of the rule is not finite at time {int(np.argwhere(~np.isfinite(gain))[0, 0])}."
            )


def worth(game: LinearQuadratic, chosen: Rule, agents: float = math.inf) -> Worth:
    """The cost to go of an agent that plays a rule among others who do."""
    e = _one_of(agents)
    check_rule(game, chosen)
    if game.horizon is None:
        k, h = chosen.own[0], chosen.crowd[0]
        p = _forever(_closed(game, k, h), _spent(game, k, h), game.discount)
        return _standing(game, p, e)
    matrices = [game.terminal]
    for t in range(game.horizon - 1, -1, -1):
        matrices.append(_valued(game, matrices[-1], *_at(chosen, t)))
    return _timed(game, np.stack(matrices[::-1]), e)


def best(game: LinearQuadratic, chosen: Rule, agents: float = math.inf) -> tuple[Worth, Array]:
    """The least cost to go of one agent when all others play a rule, and its gains on z, [T, l, 2 d] (a = -gain z)."""
    e = _one_of(agents)
    check_rule(game, chosen)
    if game.horizon is None:
        f, g = _faced(game, *_at(chosen, 0), e)
        scale = math.sqrt(game.discount)
        try:
            p = scipy.linalg.solve_discrete_are(scale * f, scale * g, game.cost, game.effort, s=game.cross.T)
        except (np.linalg.LinAlgError, ValueError) as fault:
            raise NumericFault(
                "Nobody can answer this rule best at a finite cost: the mean that it makes grows too fast."
            ) from fault
        return _standing(game, p, e), _answer(game, p, f, g)[None]
    matrices, gains = [game.terminal], []
    for t in range(game.horizon - 1, -1, -1):
        f, g = _faced(game, *_at(chosen, t), e)
        gain = _answer(game, matrices[-1], f, g)
        after = game.discount * f.T @ matrices[-1] @ f + game.cost
        matrices.append(_symmetric(after - gain.T @ (game.cross + game.discount * g.T @ matrices[-1] @ f)))
        gains.append(gain)
    return _timed(game, np.stack(matrices[::-1]), e), np.stack(gains[::-1])


def expected(game: LinearQuadratic, value: Worth, agents: float = math.inf) -> float:
    """The mean of a cost to go over the first states, independent and alike."""
    e = _one_of(agents)
    square = np.outer(game.mean, game.mean)
    joint = np.block([[square + game.spread, square + e * game.spread], [square + e * game.spread] * 2])
    return float(np.tensordot(value.matrix[0], joint) + value.constant[0])


def cost(game: LinearQuadratic, chosen: Rule, agents: float = math.inf) -> float:
    """What an agent expects to pay from the start, discounted, when all play the rule."""
    return expected(game, worth(game, chosen, agents), agents)


def exploitability(game: LinearQuadratic, chosen: Rule, agents: float = math.inf) -> float:
    """What one agent expects to save by leaving a rule that all others keep: exact, at any number of agents."""
    return cost(game, chosen, agents) - expected(game, best(game, chosen, agents)[0], agents)


def moments(game: LinearQuadratic, chosen: Rule, agents: int, steps: int, shake: Array | None = None) -> Moments:
    """Second moments along a run of N agents from the first states; `shake` [T, l, l] is the covariance of actions
    drawn around the rule."""
    check_rule(game, chosen)
    e = 1 / agents
    z = (1 - e) * game.spread
    m = np.outer(game.mean, game.mean) + e * game.spread
    deviations, means = [z], [m]
    for t in range(steps):
        k, h = _at(chosen, t)
        own = game.noise if shake is None else game.noise + game.control @ _of(shake, t) @ game.control.T
        one = game.own - game.control @ k
        both = game.own + game.crowd - game.control @ (k + h)
        z = one @ z @ one.T + (1 - e) * own
        m = both @ m @ both.T + e * own + game.common
        deviations.append(z)
        means.append(m)
    return Moments(np.stack(deviations), np.stack(means))


def spending(game: LinearQuadratic, chosen: Rule, t: int) -> tuple[Array, Array]:
    """What a step at t costs: the forms [d, d] on deviations and on the mean of which its mean over all is the sum."""
    d, (k, h) = game.d, _at(chosen, t)
    whole = _spent(game, k, h)
    return whole[:d, :d], _of_mean(whole)


def settled(
    game: LinearQuadratic, chosen: Rule, agents: int, forms: tuple[Array, Array], shake: Array | None = None
) -> float:
    """The stationary mean of forms on deviations and on the mean; infinite where there is none."""
    e = 1 / agents
    k, h = _at(chosen, 0)
    own = game.noise if shake is None else game.noise + game.control @ _of(shake, 0) @ game.control.T
    one, both = game.own - game.control @ k, game.own + game.crowd - game.control @ (k + h)
    try:
        deviation, mean = _forever(one, forms[0], 1.0), _forever(both, forms[1], 1.0)
    except NumericFault:
        return math.inf
    return float(np.tensordot(deviation, (1 - e) * own) + np.tensordot(mean, e * own + game.common))


def trembling(game: LinearQuadratic, chosen: Rule, temperature: float, agents: float = math.inf) -> Array:
    """The covariance [T, l, l] of Gibbs agents, p(a) ~ exp(-Q(a)/T), who know what their rule is worth:
    T/2 (R + gamma B~^T P B~)^-1. Their mean action is the rule itself, at any temperature."""
    e = _one_of(agents)
    matrices = worth(game, chosen, agents).matrix
    felt = np.vstack([game.control, e * game.control])
    return np.stack(
        [
            temperature / 2 * np.linalg.inv(game.effort + game.discount * felt.T @ matrices[t + 1] @ felt)
            for t in range(game.horizon or 1)
        ]
    )


# --------------------------------------------------------------------------------------------- one stage


def _one_of(agents: float) -> float:
    if not agents >= 1:
        raise ConfigError(f"agents must be at least 1, not {agents:g}.")
    return 1 / agents


def _of(table: Array, t: int) -> Array:
    return table[min(t, len(table) - 1)]


def _at(chosen: Rule, t: int) -> tuple[Array, Array]:
    return _of(chosen.own, t), _of(chosen.crowd, t)


def _symmetric(p: Array) -> Array:
    return (p + p.T) / 2


def _of_mean(form: Array) -> Array:
    """A form of (x, m) where x = m."""
    d = len(form) // 2
    return np.asarray(form[:d, :d] + form[:d, d:] + form[d:, :d] + form[d:, d:])


def _stage(game: LinearQuadratic, p: Array, e: float) -> tuple[Array, Array]:
    """Gains K and H that are best against themselves, given the cost to go after the step."""
    d, a, b, gamma = game.d, game.own, game.control, game.discount
    u, w = p[:d, :d] + e * p[d:, :d], p[:d, d:] + e * p[d:, d:]
    curvature = game.effort + gamma * b.T @ (u + e * w) @ b
    if np.linalg.eigvalsh(_symmetric(curvature)).min() <= 0:
        raise NumericFault("An agent's cost has no minimum in its action: this game has no equilibrium.")
    k = np.linalg.solve(game.effort + gamma * b.T @ u @ b, game.cross[:, :d] + gamma * b.T @ u @ a)
    pull = u @ game.crowd + w @ (a + game.crowd - b @ k)
    h = np.linalg.solve(game.effort + gamma * b.T @ (u + w) @ b, game.cross[:, d:] + gamma * b.T @ pull)
    return k, h


def _closed(game: LinearQuadratic, k: Array, h: Array) -> Array:
    """z' = M z when all play the gains."""
    a, b = game.own, game.control
    return np.block([[a - b @ k, game.crowd - b @ h], [np.zeros_like(a), a + game.crowd - b @ (k + h)]])


def _spent(game: LinearQuadratic, k: Array, h: Array) -> Array:
    """The cost of a step as a form of z."""
    gain = np.hstack([k, h])
    crossed = gain.T @ game.cross
    return np.asarray(game.cost - crossed - crossed.T + gain.T @ game.effort @ gain)


def _valued(game: LinearQuadratic, p: Array, k: Array, h: Array) -> Array:
    m = _closed(game, k, h)
    return _symmetric(_spent(game, k, h) + game.discount * m.T @ p @ m)


def _faced(game: LinearQuadratic, k: Array, h: Array, e: float) -> tuple[Array, Array]:
    """z' = F z + G a for one agent among others who play the gains."""
    a, b = game.own, game.control
    mean = np.hstack([e * b @ k, a + game.crowd - b @ (k + (1 - e) * h)])
    return np.vstack([np.hstack([a, game.crowd]), mean]), np.vstack([b, e * b])


def _answer(game: LinearQuadratic, p: Array, f: Array, g: Array) -> Array:
    curvature = game.effort + game.discount * g.T @ p @ g
    if np.linalg.eigvalsh(_symmetric(curvature)).min() <= 0:
        raise NumericFault("Nobody can answer this rule best: the cost has no minimum in one agent's action.")
    return np.asarray(np.linalg.solve(curvature, game.cross + game.discount * g.T @ p @ f))


def _regulator(game: LinearQuadratic, a: Array, c: Array, s: Array, last: Array) -> Array:
    """Gains [T, l, d] of a plain regulator with the game's control, effort, discount and horizon."""
    p = last if game.horizon is not None else np.zeros_like(c)
    b = game.control
    gains: list[Array] = []
    for _ in range(game.horizon or _STAGES):
        curvature = game.effort + game.discount * b.T @ p @ b
        if np.linalg.eigvalsh(_symmetric(curvature)).min() <= 0:
            raise NumericFault("The mean cost of all has no minimum: the planner could go on for ever.")
        felt = s + game.discount * b.T @ p @ a
        gain = np.linalg.solve(curvature, felt)
        p = _symmetric(c + game.discount * a.T @ p @ a - gain.T @ felt)
        if game.horizon is None and gains and abs(gain - gains[-1]).max() <= _STANDS * (1 + abs(gain).max()):
            return gain[None]
        gains.append(gain)
    if game.horizon is None:
        raise NumericFault("The planner's Riccati equation comes to no limit; give the game a horizon.")
    return np.stack(gains[::-1])


def _forever(m: Array, form: Array, discount: float) -> Array:
    """sum_t gamma^t M^t' form M^t, by doubling; modes that the form does not see may grow."""
    total, step = form, math.sqrt(discount) * m
    for _ in range(_SQUARES):
        more = step.T @ total @ step
        if not np.isfinite(more).all() or abs(more).max() > 1e30:
            break
        total = _symmetric(total + more)
        if abs(more).max() <= 1e-17 * (1 + abs(total).max()):
            return total
        step = step @ step
    raise NumericFault("Under this rule costs grow faster than the discount: it has no finite worth.")


def _constants(game: LinearQuadratic, matrix: Array, e: float) -> float:
    """What the noise of one step adds to the cost to go after it."""
    shared = e * game.noise + game.common
    joint = np.block([[game.noise + game.common, shared], [shared, shared]])
    return float(np.tensordot(matrix, joint))


def _standing(game: LinearQuadratic, p: Array, e: float) -> Worth:
    constant = game.discount / (1 - game.discount) * _constants(game, p, e)
    return Worth(np.stack([p, p]), np.array([constant, constant]))


def _timed(game: LinearQuadratic, matrices: Array, e: float) -> Worth:
    constants = [0.0]
    for matrix in matrices[:0:-1]:
        constants.append(game.discount * (constants[-1] + _constants(game, matrix, e)))
    return Worth(matrices, np.array(constants[::-1]))
