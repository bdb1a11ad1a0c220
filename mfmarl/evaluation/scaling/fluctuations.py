r"""How much a population's averages fluctuate, and how fast that falls with N.

$$ \sigma_N^2 = \mathrm{Var}\Big[\tfrac{1}{N} \sum_i x_i\Big]
             = \tfrac{1}{N} \Big( \mathrm{Var}\,x_i + \sum_{k \ne i} \mathrm{Cov}(x_i, x_k) \Big) \approx \frac{c^2}{N} $$

as long as correlations are of finite range (or of strength 1/N): sd ~ c N^{-1/2}, and slower at critical points. The
trained players play on, frozen, from where their evaluation ended: populations are then as settled as the run left them.
The spread is over copies that share no noise, at one moment, so that what all copies do alike in the course of an episode
is no fluctuation; its error knows that successive moments are correlated.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from mfmarl.errors import ConfigError
from mfmarl.games.flow import flow
from mfmarl.games.game import Crowd, MeanFieldGame
from mfmarl.games.reference import means
from mfmarl.learning.build import Built
from mfmarl.learning.episode import Episode
from mfmarl.learning.limit import limit_policy
from mfmarl.population.simulation import Simulation
from mfmarl.statmech.sampling.diagnostics import mean_and_error

PLAYED = 1e7
"""Steps of agents that all runs of one size and agent play together."""
DEAREST = 4e7
"""And at most: a size whose least would take more is left out."""
FEWEST, MOST = 16, 256
"""Steps that a run plays at least, or not at all; and at most."""
_MANY = 32  # copies from which on their own spread tells the error of what they average to
_ACTING = 0.05  # share of agents that must act in a step for its mean reward to be a population's
_TABLE = 50_000  # times, groups, states and actions up to which the limit is looked at
_SPAN = np.linspace(-4.0, 2.0, 601)  # exponents that a signed power law is looked for among
_Z = 1.959963984540054
_CHI = _Z**2
_MISFIT = 1.5  # above which a line does not fit

Series = dict[str, Tensor]


class Spread(NamedTuple):
    """Of a population's average at one moment: its mean over moments and copies, and its standard deviation."""

    mean: float
    mean_error: float
    value: float
    """Standard deviation over copies."""
    error: float
    """Its standard error."""
    samples: float
    """Moments times copies less one, worth independent ones."""


class PowerLaw(NamedTuple):
    """y = coefficient N^exponent."""

    coefficient: float
    exponent: float
    low: float
    high: float
    """95 % interval of the exponent."""
    points: int
    first: float
    """The smallest size in the fit."""
    misfit: float
    """Square root of chi^2 per degree of freedom: above 1 the points lie farther from the line than their errors say,
    and the interval has been widened by it; NaN without a degree of freedom."""


# ------------------------------------------------------------------------------------------------- playing


@torch.no_grad()
def play_on(episode: Episode, steps: int) -> Series:
    """What each of so many further steps measures, [T, E] float64: how many were `acting`, the `reward` per agent that did,
    and the measures."""
    found: dict[str, list[Tensor]] = {}
    for _ in range(steps):
        before, _, after, now = episode.play()
        acted = before.acting.sum(1, dtype=torch.float64)
        reward = after.reward.sum(1, dtype=torch.float64) / acted.clamp(min=1)
        for name, value in {"reward": reward, "acting": acted, **episode.env.measure()}.items():
            found.setdefault(name, []).append(value.to(torch.float64).cpu())
        episode.go_on(after, now)
    return {name: torch.stack(values) for name, values in found.items() if len(values) == steps}


def of_everybody(series: Series, num_agents: int) -> Series:
    """What is an average over the population: of a series, all that is finite, without `acting`, and without `reward`
    where only a handful act in a step."""
    few = float(series["acting"].mean()) < _ACTING * num_agents
    left_out = {"acting", "reward"} if few else {"acting"}
    return {n: x for n, x in series.items() if n not in left_out and bool(torch.isfinite(x).all())}


def length(num_agents: int, copies: int, runs: int, horizon: int | None = None) -> tuple[int, int]:
    """(steps that a run plays on, how many of the runs do), so that all together play about `PLAYED` steps of agents.

    Whole episodes where they have a common length. (0, 0) where even one run would be too dear.
    """
    each = num_agents * copies
    least = FEWEST if horizon is None else horizon * math.ceil(FEWEST / horizon)
    runs = min(runs, int(DEAREST / (each * least)))
    if runs < 1:
        return 0, 0
    steps = int(min(MOST, max(least, PLAYED / (each * runs))))
    return (steps if horizon is None else max(least, steps // horizon * horizon)), runs


def spread(x: Tensor) -> Spread:
    """Of a series [T, E] of T moments in E copies that share no noise.

    The variance is that over copies at each moment, averaged over moments: unbiased whatever all copies do alike. Raises
    ConfigError for fewer than 2 copies or 8 moments.
    """
    steps, copies = x.shape
    if copies < 2 or steps < 8:
        raise ConfigError(f"Fluctuations want 2 copies and 8 moments at least, not {copies} and {steps}.")
    x = x.to(torch.float64)
    away = (x - x.mean(1, keepdim=True)).square() * (copies / (copies - 1))
    # Copies' squares hang together through the mean taken off; of few, only the moments count as samples.
    squares = away if copies >= _MANY else away.mean(1, keepdim=True)
    variance, error = (float(v) for v in mean_and_error(squares))
    if copies < _MANY:
        error = max(error, variance * math.sqrt(2 / (steps * (copies - 1))))
    mean, mean_error = (float(v) for v in mean_and_error(x))
    sd = math.sqrt(max(0.0, variance))
    worth = 2 * (variance / error) ** 2 if error > 0 else math.inf
    return Spread(mean, mean_error, sd, error / (2 * sd) if sd > 0 else 0.0, worth)


def pool(found: Sequence[Spread]) -> Spread:
    """Several runs' as one: variances are averaged, and where runs differ by more than their errors, that is the error."""
    variance = np.array([s.value**2 for s in found])
    own = math.sqrt(sum((2 * s.value * s.error) ** 2 for s in found)) / len(found)
    sd = math.sqrt(variance.mean())
    error = max(own, _between(variance))
    mean = np.array([s.mean for s in found])
    mean_error = max(math.sqrt(sum(s.mean_error**2 for s in found)) / len(found), _between(mean))
    samples = float(sum(s.samples for s in found))
    return Spread(float(mean.mean()), mean_error, sd, error / (2 * sd) if sd > 0 else 0.0, samples)


def _between(values: np.ndarray) -> float:
    return float(values.std(ddof=1) / math.sqrt(len(values))) if len(values) > 1 else 0.0


# ------------------------------------------------------------------------------------------------ exponents


def power_law(sizes: Sequence[float], values: Sequence[float], errors: Sequence[float]) -> PowerLaw | None:
    """Of numbers above 0 that are known to some percent: weighted least squares of their logarithms.

    None for fewer than two sizes. The interval is that of the errors given, widened by the misfit where that is above 1.
    """
    n, y, e = (np.asarray(v, dtype=np.float64) for v in (sizes, values, errors))
    kept = (y > 0) & (e > 0) & np.isfinite(y) & np.isfinite(e)
    if len(set(n[kept].tolist())) < 2:
        return None
    x, z, weight = np.log(n[kept]), np.log(y[kept]), (y[kept] / e[kept]) ** 2
    centre = (weight * x).sum() / weight.sum()
    square = (weight * (x - centre) ** 2).sum()
    slope = float((weight * (x - centre) * z).sum() / square)
    level = float((weight * z).sum() / weight.sum() - slope * centre)
    misfit = _misfit(float((weight * (z - level - slope * x) ** 2).sum()), len(x) - 2)
    half = _Z / math.sqrt(square) * max(1.0, misfit if math.isfinite(misfit) else 1.0)
    return PowerLaw(math.exp(level), slope, slope - half, slope + half, len(x), float(n[kept].min()), misfit)


Law = Callable[[Sequence[float], Sequence[float], Sequence[float]], PowerLaw | None]


def at_large_sizes(
    law: Law, sizes: Sequence[float], values: Sequence[float], errors: Sequence[float]
) -> PowerLaw | None:
    """The law of the large sizes: as long as three are left, the smallest is dropped while the line does not fit.

    What N does at small N (whole numbers, the next power of 1/N) is no part of an exponent; `first` says from where.
    """
    order = np.argsort(sizes)
    n, y, e = (np.asarray(v, dtype=np.float64)[order] for v in (sizes, values, errors))
    found = law(n.tolist(), y.tolist(), e.tolist())
    while found is not None and len(n) > 3 and found.misfit > _MISFIT:
        n, y, e = n[1:], y[1:], e[1:]
        found = law(n.tolist(), y.tolist(), e.tolist())
    return found


def signed_power_law(sizes: Sequence[float], values: Sequence[float], errors: Sequence[float]) -> PowerLaw | None:
    """Of numbers of any sign with errors that may exceed them: least squares of y = c N^a, for every a the best c.

    Numbers that are 0 within their errors count like others: leaving them out would bend the law. The interval holds
    the exponents whose chi^2 is within 3.84 (times the misfit's square) of the least. None for fewer than two sizes, where
    y = 0 fits as well, and where no exponent between -4 and 2 stands out.
    """
    n, y, e = (np.asarray(v, dtype=np.float64) for v in (sizes, values, errors))
    kept = (e > 0) & np.isfinite(y) & np.isfinite(e)
    if len(set(n[kept].tolist())) < 2:
        return None
    n, y, weight = n[kept], y[kept], e[kept] ** -2
    middle = math.exp(np.log(n).mean())
    shape = (n / middle) ** _SPAN[:, None]
    c = (weight * shape * y).sum(1) / (weight * shape**2).sum(1)
    chi = (weight * (y - c[:, None] * shape) ** 2).sum(1)
    best = int(chi.argmin())
    misfit = _misfit(float(chi[best]), len(n) - 2)
    allowed = _CHI * max(1.0, misfit if math.isfinite(misfit) else 1.0) ** 2
    # Without a law there are two numbers less: 0 must be farther off than chance would bring it.
    if (weight * y**2).sum() - chi[best] < allowed + 2 or best in (0, len(_SPAN) - 1):
        return None
    inside = np.flatnonzero(chi <= chi[best] + allowed)
    if inside[0] == 0 or inside[-1] == len(_SPAN) - 1:
        return None
    exponent = float(_SPAN[best])
    # Where the interval ends, between two exponents that were tried.
    low, high = float(_SPAN[inside[0] - 1]), float(_SPAN[inside[-1] + 1])
    return PowerLaw(float(c[best]) * middle**-exponent, exponent, low, high, len(n), float(n.min()), misfit)


def _misfit(chi: float, freedom: int) -> float:
    return math.sqrt(chi / freedom) if freedom > 0 else math.nan


# ---------------------------------------------------------------------------------------- what theory knows


def exact(built: Built, temperature: float) -> dict[str, tuple[float, str]]:
    """The exact standard deviations at one moment, with their source, by the name of the measured number; often empty.

    An environment says its own by an optional rule `fluctuations(temperature, independent)` that returns them as
    `reference` does. Of a mean-field game whose agents move and choose independently of each other, they follow from
    the players' policy, to leading order in 1/N.
    """
    env = built.env
    if not isinstance(env, Simulation):
        return {}
    alone = all(p.agent.field.is_nothing for p in built.players)
    # What theory says of learners is not said of players that do not learn.
    learned = any(p.agent.memory != "none" for p in built.players)
    told = env.env.fluctuations(temperature, alone) if learned else {}
    if told:
        return {name: (known.value, known.source) for name, known in told.items()}
    if isinstance(env.env, MeanFieldGame) and alone:
        try:
            policy = limit_policy(env.env, built.players)
        except ConfigError:
            return {}
        source = "independent agents: the multinomial law of the players' own policy, to leading order in 1/N"
        return {name: (value, source) for name, value in of_independent(env.env, policy).items()}
    return {}


def of_independent(game: MeanFieldGame, policy: Tensor) -> dict[str, float]:
    r"""Standard deviations at one moment of N agents that do not heed each other, to leading order in 1/N.

    $$ \sigma_x^2 = \sum_g \tfrac{1}{N_g} \mathrm{Var}_{L_g}\big[\partial x / \partial L_g(s, a)\big] $$

    averaged over times. Their states and actions are independent draws, so that counts are multinomial about the flow L
    of the policy [T, G, S, A]. Empty for games in which the crowd moves or shows itself to the agents, with common noise,
    or paid at the end.
    """
    last = type(game).terminal is not MeanFieldGame.terminal
    if game.crowd_moves or game.sight == "crowd" or game.tree is not None or last or _large(game):
        return {}
    path = flow(game, policy)
    sizes = torch.tensor(game.group_sizes, dtype=torch.float64)
    variances: dict[str, float] = {}
    for t in range(len(path.mu)):
        with torch.enable_grad():
            joint = path.joint[t].detach().requires_grad_()
            crowd = Crowd(joint.sum(-1), counted=joint)
            share = sizes / sizes.sum()
            paid = (joint * game.paid(t, crowd)).sum((-2, -1)) @ share
            mu = path.kernels[t].carry(path.joint[t]).detach().requires_grad_()
            values = {"reward": (paid, joint), **{k: (v, mu) for k, v in game.measures(mu).items()}}
            for name, (value, of) in values.items():
                slope = torch.autograd.grad(value, of, allow_unused=True, retain_graph=True)[0]
                slope = torch.zeros_like(of) if slope is None else slope
                variances[name] = variances.get(name, 0.0) + _multinomial(of.detach(), slope, sizes) / len(path.mu)
    return {k: math.sqrt(v) for k, v in variances.items() if math.isfinite(v)}


def _multinomial(shares: Tensor, slope: Tensor, sizes: Tensor) -> float:
    """sum_g Var[slope] / N_g, of shares [G, ...]."""
    p, g = shares.flatten(1), slope.flatten(1)
    g = torch.where(p > 0, g, 0.0)  # what never happens does not fluctuate, whatever its logarithm's slope
    return float(((p * g.square()).sum(1) - (p * g).sum(1).square()).clamp(min=0).div(sizes).sum())


def in_the_limit(built: Built) -> dict[str, float]:
    """What the players would get in a crowd without end: `reward` per agent and step and the measures; often empty."""
    env = built.env
    if not (isinstance(env, Simulation) and isinstance(env.env, MeanFieldGame)) or _large(env.env):
        return {}
    try:
        return means(env.env, flow(env.env, limit_policy(env.env, built.players)))
    except ConfigError:
        return {}  # players without a policy in the limit, or whose crowd never comes to rest


def _large(game: MeanFieldGame) -> bool:
    times = game.horizon or 1 if game.tree is None else game.tree.nodes
    return times * game.num_groups * game.num_states * game.num_actions > _TABLE
