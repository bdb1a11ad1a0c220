r"""Linear regression, whose posterior, evidence and free energy are Gaussian integrals.

Bayesian (Bishop 2006, eq. 3.50-3.86): y = X w + noise of variance s^2, w ~ N(0, 1/lambda). At power beta of the
likelihood ("power posterior", Friel and Pettitt 2008)

$$ A_\beta = \lambda + \beta X^\top X/s^2, \quad m_\beta = A_\beta^{-1} \beta X^\top y/s^2, \qquad
   \log Z(1) = \int_0^1 \langle \log p(y | w) \rangle_\beta \, d\beta $$

As statistical mechanics of H = |X w - y|^2 (+ penalty |w|^2): with A = X^T X + penalty,

$$ F(\beta) = L_{min} - \frac{d}{2 \beta} \log\frac{\pi}{\beta} + \frac{1}{2 \beta} \log\det A, \qquad
   U(\beta) = L_{min} + \frac{d}{2 \beta} $$

identically, not only at low temperature: F reaches L_min as beta -> infinity no faster than log(beta)/beta.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from mfmarl.errors import ConfigError
from mfmarl.statmech import check


def ridge(inputs: Tensor, targets: Tensor, penalty: float = 0.0) -> Tensor:
    """argmin |X w - y|^2 + penalty |w|^2, [d]. Raises ConfigError where a direction is free and has no penalty."""
    return torch.linalg.solve(_stiffness(inputs, targets, penalty), inputs.mT @ targets)


def least_loss(inputs: Tensor, targets: Tensor, penalty: float = 0.0) -> Tensor:
    """min |X w - y|^2 + penalty |w|^2, []."""
    w = ridge(inputs, targets, penalty)
    return (inputs @ w - targets).square().sum() + penalty * w.square().sum()


def free_energy(inputs: Tensor, targets: Tensor, beta: float | Tensor, penalty: float = 0.0) -> Tensor:
    """F = -log Z/beta [*beta] of H = |X w - y|^2 + penalty |w|^2; L_min at beta = inf."""
    check.inverse_temperature(beta)
    beta = torch.as_tensor(beta, dtype=inputs.dtype)
    a = _stiffness(inputs, targets, penalty)
    d = inputs.shape[-1]
    shift = (torch.linalg.slogdet(a).logabsdet - d * (math.pi / beta).log()) / (2 * beta)
    return least_loss(inputs, targets, penalty) + torch.where(torch.isinf(beta), 0.0, shift)


def mean_energy(inputs: Tensor, targets: Tensor, beta: float | Tensor, penalty: float = 0.0) -> Tensor:
    """U = L_min + d/(2 beta) [*beta]: equipartition."""
    check.inverse_temperature(beta)
    beta = torch.as_tensor(beta, dtype=inputs.dtype)
    return least_loss(inputs, targets, penalty) + inputs.shape[-1] / (2 * beta)


@dataclass(frozen=True, eq=False)
class LinearRegression:
    """The conjugate Gaussian model of targets [n] given inputs [n, d]."""

    inputs: Tensor
    """[n, d]."""
    targets: Tensor
    """[n]."""
    noise_variance: float = 1.0
    """s^2."""
    prior_precision: float = 1.0
    """lambda."""

    def __post_init__(self) -> None:
        _check_data(self.inputs, self.targets)
        for name, value in (("noise's variance", self.noise_variance), ("prior's precision", self.prior_precision)):
            if not 0 < value < math.inf:
                raise ConfigError(f"A {name} must be finite and above 0, not {value:g}.")

    def precision(self, beta: float = 1.0) -> Tensor:
        """A_beta [d, d]."""
        check.inverse_temperature(beta)
        gram = self.inputs.mT @ self.inputs
        return beta / self.noise_variance * gram + self.prior_precision * torch.eye(len(gram)).to(gram)

    def posterior(self, beta: float = 1.0) -> tuple[Tensor, Tensor]:
        """Mean [d] and covariance [d, d]."""
        covariance = torch.linalg.inv(self.precision(beta))
        return covariance @ (self.inputs.mT @ self.targets) * (beta / self.noise_variance), covariance

    def log_joint(self, weights: Tensor) -> Tensor:
        """log p(y, w) [*b] of weights [*b, d]: minus it is an Energy."""
        d = self.inputs.shape[-1]
        prior = d / 2 * math.log(self.prior_precision / (2 * math.pi))
        return self.log_likelihood(weights) + prior - self.prior_precision / 2 * weights.square().sum(-1)

    def log_likelihood(self, weights: Tensor) -> Tensor:
        """log p(y | w), [*b]."""
        rest = (weights @ self.inputs.mT - self.targets).square().sum(-1)
        return -rest / (2 * self.noise_variance) - len(self.targets) / 2 * math.log(2 * math.pi * self.noise_variance)

    def mean_log_likelihood(self, beta: float) -> Tensor:
        """<log p(y | w)> at power beta, []: the integrand of thermodynamic integration."""
        mean, covariance = self.posterior(beta)
        spread = ((self.inputs @ covariance) * self.inputs).sum()
        return self.log_likelihood(mean) - spread / (2 * self.noise_variance)

    def log_evidence(self, beta: float = 1.0) -> Tensor:
        """log of the integral of p(w) p(y | w)^beta, []; the log evidence at beta = 1, 0 at beta = 0."""
        mean, _ = self.posterior(beta)
        d = self.inputs.shape[-1]
        log_det = torch.linalg.slogdet(self.precision(beta)).logabsdet
        fit = beta * self.log_likelihood(mean) - self.prior_precision / 2 * mean.square().sum()
        return fit + (d * math.log(self.prior_precision) - log_det) / 2

    def predict(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance (the noise's included) of new targets, each [m], at inputs [m, d]."""
        mean, covariance = self.posterior()
        return inputs @ mean, self.noise_variance + ((inputs @ covariance) * inputs).sum(-1)

    @cached_property
    def _spectrum(self) -> tuple[Tensor, Tensor]:
        values, vectors = torch.linalg.eigh(self.inputs.mT @ self.inputs / self.noise_variance)
        along = vectors.mT @ (self.inputs.mT @ self.targets) / self.noise_variance
        return values.clamp(min=0), along.square()

    def evidence_slope(self, precision: float | Tensor) -> Tensor:
        """d log evidence/d log lambda [*b]: (d - lambda (|m|^2 + tr A^-1))/2; 0 where the prior fits the data best."""
        values, along = self._spectrum
        precision = torch.as_tensor(precision, dtype=values.dtype).unsqueeze(-1)
        a = values + precision
        return (1 - precision * (along / a.square() + 1 / a)).sum(-1) / 2

    def best_prior(self, low: float = 1e-8, high: float = 1e8) -> float:
        """The lambda in [low, high] of greatest evidence (empirical Bayes); an end where the evidence rises to it."""
        if not 0 < low < high < math.inf:
            raise ConfigError(f"Precisions to choose from must be 0 < low < high, not {low:g} and {high:g}.")
        grid = torch.logspace(math.log10(low), math.log10(high), 2001, dtype=torch.float64)
        slope = self.evidence_slope(grid)
        values = torch.stack([self._at(float(x)).log_evidence() for x in grid[::20]])
        candidates = [low, high, float(grid[::20][values.argmax()])]
        for k in ((slope[:-1] > 0) & (slope[1:] <= 0)).nonzero().flatten().tolist():
            a, b = float(grid[k]), float(grid[k + 1])
            for _ in range(100):
                middle = math.sqrt(a * b)
                a, b = (middle, b) if float(self.evidence_slope(middle)) > 0 else (a, middle)
            candidates.append(math.sqrt(a * b))
        return max(candidates, key=lambda x: float(self._at(x).log_evidence()))

    def _at(self, precision: float) -> LinearRegression:
        return LinearRegression(self.inputs, self.targets, self.noise_variance, precision)


def _check_data(inputs: Tensor, targets: Tensor) -> None:
    if inputs.ndim != 2 or targets.shape != inputs.shape[:1]:
        raise ConfigError(f"Regression needs inputs [n, d] and targets [n], not {[*inputs.shape]}, {[*targets.shape]}.")
    check.finite(inputs, "The inputs")
    check.finite(targets, "The targets")


def _stiffness(inputs: Tensor, targets: Tensor, penalty: float) -> Tensor:
    """X^T X + penalty, [d, d]."""
    _check_data(inputs, targets)
    if not 0 <= penalty < math.inf:
        raise ConfigError(f"A penalty must be finite and at least 0, not {penalty:g}.")
    gram = inputs.mT @ inputs
    free = inputs.shape[-1] - int(torch.linalg.matrix_rank(inputs))
    if not penalty and free:
        raise ConfigError(
            f"The data leave {free} of {inputs.shape[-1]} directions free, so the partition function diverges: "
            "give a prior (a penalty above 0)."
        )
    return gram + penalty * torch.eye(len(gram)).to(gram)
