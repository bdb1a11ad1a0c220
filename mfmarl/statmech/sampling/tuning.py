r"""Tuning Hamiltonian Monte Carlo while it warms up: step size, length of trajectories, masses.

$$ \log \varepsilon_{t+1} = \mu - \frac{\sqrt t}{\gamma (t + t_0)} \sum_{s \le t} (\delta - a_s), \qquad
   \mathrm{ChEES} = \tfrac14 E\big[(|x' - \bar x|^2 - |x - \bar x|^2)^2\big] $$

Step size by dual averaging: Hoffman and Gelman 2014 (JMLR 15, 1593, algorithms 4 and 5). Length by ascent on the
change in the estimator of the expected square, here per unit of length and in the metric of the masses: Hoffman, Radul
and Sountsov 2021 (AISTATS, PMLR 130, 3907). Masses from the spread of all chains in windows that double, as in Stan.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from mfmarl.errors import ConfigError, NumericFault
from mfmarl.random import Key
from mfmarl.statmech import check
from mfmarl.statmech.energies.energy import Energy
from mfmarl.statmech.sampling.chains import chain_ids
from mfmarl.statmech.sampling.hamiltonian import Metric, Transition, Tuned, transition

Mass = Literal["unit", "diagonal", "dense"]

_TO_THE_TOP = 2.2467 / (math.pi / 2)
"""In the slowest direction of a Gaussian, of width 1 and with trajectories of all lengths up to T, ChEES is proportional
to 1/2 - sin(2 T)/(4 T). Its first maximum, T = 2.2467 (tan 2T = 2T), decorrelates x and x^2 at the least cost, but it has
a maximum for every further turn, and noise leads the ascent from one to the next. ChEES/T has one that matters, T =
pi/2: the ascent is on this, and its end is lengthened."""


class _StepSize:
    """Dual averaging of the log step size towards a mean acceptance."""

    def __init__(self, step: float, target: float) -> None:
        self.target, self.centre = target, math.log(10 * step)
        self.count, self.gap, self.now, self.mean = 0, 0.0, math.log(step), 0.0

    def update(self, acceptance: float) -> None:
        self.count += 1
        self.gap += (self.target - acceptance - self.gap) / (self.count + 10)
        self.now = self.centre - math.sqrt(self.count) / 0.05 * self.gap
        self.mean += self.count**-0.75 * (self.now - self.mean)


class _Length:
    """Ascent on log(ChEES/length) by Adam, in the logarithm of the longest trajectory."""

    def __init__(self, length: float) -> None:
        self.log, self.count, self.slope, self.square = math.log(length), 0, 0.0, 0.0
        self.mean = self.log

    def shift(self, by: float) -> None:
        self.log += by
        self.mean += by

    def update(self, metric: Metric, x: Tensor, moved: Transition, centre: Tensor, time: float, least: float) -> None:
        """`time`: of the trajectories just run; `least`: one step, below which no length goes."""
        weight = torch.where(moved.divergent, 0.0, moved.acceptance).flatten().double()
        if float(weight.sum()) < 1e-3:
            return
        ends = torch.where(moved.divergent.unsqueeze(-1), x, moved.proposal)
        momentum = torch.where(moved.divergent.unsqueeze(-1), 0.0, moved.momentum)
        gain = (metric.square(ends - centre) - metric.square(x - centre)).flatten().double()
        speed = ((ends - centre) * momentum).sum(-1).flatten().double()
        criterion = float((weight * gain.square()).sum() / weight.sum()) / 4
        slope = time * float((weight * gain * speed).sum() / weight.sum()) / max(criterion, 1e-300) - 1
        self.count += 1
        self.slope += 0.1 * (slope - self.slope)
        self.square += 0.05 * (slope * slope - self.square)
        scale = math.sqrt(self.square / (1 - 0.95**self.count)) + 1e-12
        self.log = max(self.log + 0.05 * self.slope / (1 - 0.9**self.count) / scale, math.log(least))
        # The average of the last hundred or so: with few chains the ascent itself is noisy.
        self.mean += max(0.02, 1 / self.count) * (self.log - self.mean)


class _Spread:
    """The (co)variance of all states since the last window."""

    def __init__(self, n: int, mass: Mass) -> None:
        self.dense = mass == "dense"
        self.count, self.total = 0, torch.zeros(n, dtype=torch.float64)
        self.squares = torch.zeros((n, n) if self.dense else (n,), dtype=torch.float64)

    def update(self, x: Tensor) -> None:
        wide = x.reshape(-1, x.shape[-1]).double().cpu()
        self.count += len(wide)
        self.total += wide.sum(0)
        self.squares += wide.mT @ wide if self.dense else wide.square().sum(0)

    def inverse_mass(self) -> Tensor:
        """Drawn a little towards a small unit matrix, as in Stan."""
        n, mean = self.count, self.total / self.count
        if not self.dense:
            return (self.squares - n * mean * mean) / (n - 1) * (n / (n + 5)) + 1e-3 * 5 / (n + 5)
        spread = (self.squares - n * torch.outer(mean, mean)) / (n - 1) * (n / (n + 5))
        return (spread + spread.mT) / 2 + 1e-3 * 5 / (n + 5) * torch.eye(len(mean), dtype=torch.float64)


def _widest(metric: Metric, covariance: Tensor) -> float:
    """The largest standard deviation of `covariance` ([n] or [n, n]) in the coordinates of the metric."""
    root = metric.root.double().cpu()
    if not metric.dense and covariance.ndim == 1:
        return float((covariance * root.square()).max().sqrt())
    root = root if metric.dense else root.diag()
    covariance = covariance if covariance.ndim == 2 else covariance.diag()
    return math.sqrt(float(torch.linalg.eigvalsh(root @ covariance @ root.mT)[-1]))


def _first_step(energy: Energy, metric: Metric, x: Tensor, beta: float, ids: Tensor, key: Key) -> float:
    """Doubled or halved until one leapfrog is accepted about half the time."""
    step, rising = 1.0, None
    for i in range(100):
        accept = float(transition(energy, metric, step, 1, x, beta, ids, key.fold(i)).acceptance.mean())
        if rising is None:
            rising = accept > 0.5
        elif rising != (accept > 0.5):
            return step
        step *= 2.0 if rising else 0.5
    raise NumericFault("No HMC step size fits this energy: its gradient is 0, or not finite, at the start.")


def windows(steps: int) -> list[int]:
    """The sweeps after which the masses are estimated anew: stretches that double, from 15 % on.

    The last 50 sweeps (a quarter of less than 200) are left to the step size.
    """
    end, last, length = round(0.15 * steps), steps - min(50, steps // 4), max(10, round(0.05 * steps))
    ends = []
    while end + 3 * length <= last:
        end += length
        ends.append(end)
        length *= 2
    return [*ends, last]


def _even(i: int) -> float:
    """Van der Corput's sequence 1/2, 1/4, 3/4, 1/8, ...: it fills (0, 1) more evenly than independent draws."""
    answer, unit = 0.0, 0.5
    while i:
        answer += unit * (i & 1)
        i >>= 1
        unit /= 2
    return answer


def warm_up(
    energy: Energy,
    x: Tensor,
    beta: float,
    key: Key,
    steps: int = 500,
    *,
    mass: Mass = "diagonal",
    target: float = 0.8,
    max_steps: int = 1024,
    ids: Tensor | None = None,
) -> tuple[Tensor, Tuned]:
    """Runs all chains [*b, n] together for `steps` sweeps while it tunes: their states afterwards, and the settings.

    `mass`: what the masses are made of ("dense": the whole covariance); `target`: mean acceptance; `max_steps`: the
    most leapfrogs of a sweep. Here, and only here, chains learn from each other; the fewer they are (below about 8),
    the more `steps` the length needs. Raises NumericFault where no step size works.
    """
    if mass not in ("unit", "diagonal", "dense"):
        raise ConfigError(f"Masses are 'unit', 'diagonal' or 'dense', not {mass!r}.")
    if steps < 50 or not 0 < target < 1 or max_steps < 1:
        raise ConfigError(
            f"Warming up needs 50 sweeps, a target between 0 and 1 and a step at least, not {steps}, {target:g}, {max_steps}."
        )
    check.inverse_temperature(beta)
    ids = chain_ids(x.shape[:-1], x.device) if ids is None else ids
    n, count = x.shape[-1], x[..., 0].numel()
    metric = Metric(torch.ones(n, dtype=x.dtype, device=x.device))
    size = _StepSize(_first_step(energy, metric, x, beta, ids, key.fold("first")), target)
    length, spread = _Length(math.exp(size.now)), _Spread(n, mass)
    ends, begin = windows(steps), round(0.15 * steps)
    centre, fresh = x.reshape(-1, n).mean(0), count / (count + 50)
    moved: Transition | None = None
    for i in range(steps):
        step, fraction = math.exp(size.now), _even(i + 1)
        leaps = min(max_steps, max(1, math.ceil(fraction * math.exp(length.log) / step)))
        moved = transition(energy, metric, step, leaps, x, beta, ids, key.fold("warm-up", i), moved)
        size.update(float(moved.acceptance.mean()))
        length.update(metric, x, moved, centre, leaps * step, step)
        length.log = min(length.log, math.log(max_steps * step))
        x = moved.x
        centre = centre + fresh * (x.reshape(-1, n).mean(0) - centre)
        if mass == "unit" or i < begin:
            continue
        spread.update(x)
        if i + 1 in ends:
            inverse = spread.inverse_mass()
            # The widest direction has width 1 in the new metric: the length shrinks or grows with it.
            length.shift(-math.log(_widest(metric, inverse)))
            metric, spread = Metric(inverse.to(x)), _Spread(n, mass)
            size = _StepSize(_first_step(energy, metric, x, beta, ids, key.fold("again", i)), target)
    step, longest = math.exp(size.mean), _TO_THE_TOP * math.exp(length.mean)
    return x, Tuned(step, min(max_steps, max(1, round(longest / step))), metric.inverse_mass)
