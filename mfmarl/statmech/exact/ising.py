r"""Exact and mean-field answers for Ising and Potts models, in units of the coupling (k_B = 1, float64).

$$ H = -J \sum_{\langle ij \rangle} s_i s_j - h \sum_i s_i, \quad s_i = \pm 1, \qquad
   H_{\mathrm{Potts}} = -J \sum_{\langle ij \rangle} \delta(k_i, k_j) $$

Square lattice: Onsager 1944 (Phys. Rev. 65, 117), Yang 1952 (Phys. Rev. 85, 808), finite torus: Kaufman 1949
(Phys. Rev. 76, 1232). Everyone with everyone: Curie-Weiss. Random regular graphs: Bethe 1935, exact as N grows
(Dembo and Montanari 2010, Ann. Appl. Probab. 20, 565). Potts: Wu 1982 (Rev. Mod. Phys. 54, 235).
All temperatures must be positive; J is 1 unless it is an argument.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import integrate, special

from mfmarl.errors import ConfigError

Array = NDArray[np.float64]

SQUARE_CRITICAL_TEMPERATURE = 2 / math.log(1 + math.sqrt(2))
"""Onsager: 2.269185314213."""

_COLD = 150.0  # the largest 1/T that is told apart from zero temperature: e^-600 is nothing, e^710 overflows

# <|m|> of the 20 x 20 torus by heat bath; (T, value), standard error at most .007 at T_c, .004 elsewhere.
_TORUS_20 = ((1.6, 0.9796), (2.0, 0.9114), (2.2, 0.785), (2.269185, 0.691), (2.4, 0.460), (2.6, 0.244), (3.0, 0.136))


class Moments(NamedTuple):
    """Per-spin averages of an Ising model in equilibrium."""

    magnetisation: float
    """Signed where a field breaks the symmetry; the branch m >= 0 of an infinite system without one."""
    absolute: float
    """<|m|>; equal to |magnetisation| for infinite systems."""
    correlation: float
    """<s_i s_j> of two neighbours."""


def _positive(temperature: float) -> None:
    if not (temperature > 0 and math.isfinite(temperature)):
        raise ConfigError(f"A temperature must be positive and finite here, not {temperature:g}.")


# ---------------------------------------------------------------------------------- the square lattice


def square_magnetisation(temperature: float) -> float:
    """Yang: m = (1 - sinh(2/T)^-4)^(1/8) below T_c, 0 above."""
    _positive(temperature)
    if temperature >= SQUARE_CRITICAL_TEMPERATURE:
        return 0.0
    return float((1 - np.sinh(2 * min(1 / temperature, _COLD)) ** -4.0) ** 0.125)


def square_energy(temperature: float) -> float:
    """Onsager: energy per site of the infinite lattice, with the complete elliptic integral K of modulus kappa."""
    _positive(temperature)
    two_k = 2 * min(1 / temperature, _COLD)
    excess = 2 * math.tanh(two_k) ** 2 - 1
    # 1 - kappa^2 = excess^2: no cancellation. At T_c the factor vanishes faster than the integral diverges.
    term = 0.0 if abs(excess) < 1e-12 else excess * float(special.ellipkm1(excess * excess)) * 2 / math.pi
    return -(1 + term) / math.tanh(two_k)


def square_free_energy(temperature: float) -> float:
    """Onsager: free energy per site of the infinite lattice."""
    _positive(temperature)
    two_k = 2 * min(1 / temperature, _COLD)
    kappa = 2 * math.sinh(two_k) / math.cosh(two_k) ** 2

    def integrand(angle: float) -> float:
        return math.log((1 + math.sqrt(max(0.0, 1 - (kappa * math.sin(angle)) ** 2))) / 2)

    integral = integrate.quad(integrand, 0, math.pi / 2, epsabs=1e-13, epsrel=1e-12)[0]
    return -max(temperature, 1 / _COLD) * (math.log(2 * math.cosh(two_k)) + integral / math.pi)


def torus_energy(shape: tuple[int, int], temperature: float) -> float:
    """Kaufman: energy per site of a finite torus, both sides at least 3. O(side)."""
    return _kaufman(shape, temperature)[1]


def torus_log_partition(shape: tuple[int, int], temperature: float) -> float:
    """Kaufman: log Z of a finite torus, both sides at least 3."""
    return _kaufman(shape, temperature)[0]


def _kaufman(shape: tuple[int, int], temperature: float) -> tuple[float, float]:
    """log Z and the energy per site, from the four products of Kaufman's eq. 69-71 and their derivatives in K."""
    _positive(temperature)
    m, n = shape
    k = min(1 / temperature, _COLD)
    critical = 1 / SQUARE_CRITICAL_TEMPERATURE
    if abs(k - critical) < 1e-9:
        k = critical + 1e-9  # gamma_0 = 0 there: the fourth product is 0 times a divergent logarithmic derivative
    sinh, cosh = math.sinh(2 * k), math.cosh(2 * k)
    angle = np.arange(2 * n) * math.pi / n
    gamma, slope = np.empty(2 * n), np.empty(2 * n)
    gamma[0], slope[0] = 2 * k + math.log(math.tanh(k)), 2 * (1 + 1 / sinh)
    gamma[1:] = np.arccosh(cosh * cosh / sinh - np.cos(angle[1:]))
    slope[1:] = 2 * cosh * (1 - 1 / sinh**2) / np.sinh(gamma[1:])
    logs, slopes, signs = [], [], []
    for part in (slice(1, None, 2), slice(0, None, 2)):
        x, dx = m * gamma[part] / 2, m * slope[part] / 2
        grow, shrink = np.abs(x), np.exp(-2 * np.abs(x))
        logs += [np.sum(grow + np.log1p(shrink)), np.sum(grow + np.log1p(-shrink))]
        slopes += [np.sum(dx * np.tanh(x)), np.sum(dx / np.tanh(x))]
        signs += [1.0, float(np.prod(np.sign(x)))]
    # Not scipy's logsumexp: where the two largest cancel each other, as here in the disordered phase, it answers NaN.
    top = max(logs)
    terms = np.array(signs) * np.exp(np.array(logs) - top)
    weight = terms / terms.sum()
    log_z = m * n / 2 * math.log(2 * sinh) + float(top) + math.log(terms.sum()) - math.log(2)
    derivative = m * n * cosh / sinh + float(weight @ np.array(slopes))
    return log_z, -derivative / (m * n)


def square_correlation_length(temperature: float) -> float:
    """Decay length of correlations along an axis of the infinite lattice (McCoy and Wu 1973); infinite at T_c."""
    _positive(temperature)
    k = 1 / temperature
    inverse = -math.log(math.tanh(k)) - 2 * k  # T > T_c
    inverse = inverse if inverse > 0 else -2 * inverse  # half as long below
    return math.inf if inverse == 0 else 1 / inverse


def torus_magnetisation(shape: tuple[int, int], temperature: float) -> tuple[float, str] | None:
    """<|m|> of a finite torus where it is known, with its source; None where it is not.

    Yang's value where the smaller side is at least 4 correlation lengths (corrections below a standard error of
    any simulation we know of); the 20 x 20 torus at tabulated temperatures otherwise (Monte Carlo).
    """
    if temperature < SQUARE_CRITICAL_TEMPERATURE and min(shape) >= 4 * square_correlation_length(temperature):
        return square_magnetisation(temperature), "Yang 1952 (Phys. Rev. 85, 808), infinite lattice"
    if tuple(shape) == (20, 20):
        for tabulated, value in _TORUS_20:
            if abs(tabulated - temperature) < 1e-3:
                return value, "heat-bath Monte Carlo of the 20 x 20 torus"
    return None


# ------------------------------------------------------------------------------ everyone with everyone


def curie_weiss(temperature: float, field: float = 0.0, coupling: float = 1.0) -> float:
    """m = tanh((J m + h)/T), the branch of the sign of h (m >= 0 without a field): H = -J M^2/(2N) - h M, N infinite."""
    _positive(temperature)
    sign = -1.0 if field < 0 else 1.0
    if field == 0 and coupling <= temperature:
        return 0.0

    def gap(m: float) -> float:
        return m - math.tanh((coupling * m + abs(field)) / temperature)

    low, high = 1e-14, 1.0
    if coupling > 0 and gap(low) > 0:
        return 0.0
    if coupling <= 0:
        low = 0.0
    for _ in range(200):
        middle = (low + high) / 2
        # The wanted root is the largest one: below it the tanh is above the line.
        low, high = (middle, high) if gap(middle) < 0 else (low, middle)
    return sign * high


def curie_weiss_finite(num_spins: int, temperature: float, field: float = 0.0, coupling: float = 1.0) -> Moments:
    """The sum over all magnetisations: H = -(J/2N) M^2 - h M, exact at any N. O(N).

    Spins that meet with strength K/(N-1) per pair are this model with J = K N/(N-1), up to a constant.
    """
    _positive(temperature)
    n = num_spins
    up = np.arange(n + 1)
    total = 2.0 * up - n
    log_weight = special.gammaln(n + 1) - special.gammaln(up + 1) - special.gammaln(n - up + 1)
    log_weight = log_weight + (coupling * total**2 / (2 * n) + field * total) / temperature
    weight = np.exp(log_weight - special.logsumexp(log_weight))
    square = float(weight @ total**2)
    correlation = (square - n) / (n * (n - 1)) if n > 1 else 0.0
    return Moments(float(weight @ total) / n, float(weight @ np.abs(total)) / n, correlation)


def potts_mean_field(states: int, inverse_temperature: float, start: Array | None = None) -> Array:
    """x = softmax(K x), the shares of q states where everyone meets everyone, reached from `start` (default: ordered).

    First order for q >= 3: the ordered branch exists above the spinodal, the uniform one is stable for K < q.
    """
    x = np.eye(states)[-1] if start is None else np.asarray(start, dtype=np.float64)
    for _ in range(100_000):
        new = special.softmax(inverse_temperature * x)
        if np.abs(new - x).max() < 1e-14:
            break
        x = new
    return np.asarray(x)


def potts_critical_temperature(states: int) -> float:
    """T_c = 1/ln(1 + sqrt q) of the square lattice with J delta per link (q = 2: half of Ising's, since ss = 2 delta - 1)."""
    if states < 2:
        raise ConfigError(f"A Potts model needs at least 2 states, not {states}.")
    return 1 / math.log(1 + math.sqrt(states))


# ------------------------------------------------------------------------------------- rings and trees


def ring(num_spins: int, temperature: float, field: float = 0.0) -> Moments:
    """One-dimensional ring of N spins by transfer matrix; `absolute` is not known in closed form (NaN)."""
    _positive(temperature)
    k, b = 1 / max(temperature, 1 / _COLD), field / max(temperature, 1 / _COLD)
    energies = np.array([[k + b, -k], [-k, k - b]])
    transfer = np.exp(energies - energies.max())
    values, vectors = np.linalg.eigh(transfer)
    spin = vectors.T @ np.diag([1.0, -1.0]) @ vectors
    ratio = values / values.max()
    z = (ratio**num_spins).sum()
    m = (np.diag(spin) * ratio**num_spins).sum() / z
    pair = np.einsum("ij,ji,i,j->", spin, spin, ratio ** (num_spins - 1), ratio) / z
    return Moments(float(m), math.nan, float(pair))


def bethe(degree: int, temperature: float, field: float = 0.0) -> Moments:
    r"""A z-regular tree: u = atanh(tanh(1/T) tanh((z-1)u + h/T)), m = tanh(z u + h/T).

    Exact for random z-regular graphs as N grows (ferromagnet, branch of the sign of h; m >= 0 without one).
    """
    _positive(temperature)
    t, b = math.tanh(1 / temperature), abs(field) / temperature
    u = 1.0
    if b == 0 and (degree - 1) * t <= 1:
        u = 0.0
    else:
        for _ in range(1_000_000):
            new = math.atanh(min(t * math.tanh((degree - 1) * u + b), 1 - 1e-16))
            if abs(new - u) < 1e-15:
                break
            u = new
    m = math.tanh(degree * u + b)
    cavity = math.tanh((degree - 1) * u + b)
    correlation = (t + cavity * cavity) / (1 + t * cavity * cavity)
    sign = -1.0 if field < 0 else 1.0
    return Moments(sign * m, m, correlation)


def bethe_critical_temperature(degree: int) -> float:
    """T_c = 2/ln(z/(z-2)); 0 for z <= 2."""
    return 0.0 if degree <= 2 else 2 / math.log(degree / (degree - 2))


def bethe_free_energy(degree: int, temperature: float, field: float = 0.0) -> float:
    """Bethe free energy per spin at `bethe`'s fixed point: a site's part less half of every link's."""
    temperature = max(temperature, 1 / _COLD)
    k, b = 1 / temperature, abs(field) / temperature
    u = (math.atanh(min(bethe(degree, temperature, abs(field)).absolute, 1 - 1e-16)) - b) / degree
    cavity = (degree - 1) * u + b
    toward = [math.log(math.cosh(k * s + cavity) / math.cosh(cavity)) for s in (1, -1)]
    site = special.logsumexp([b + degree * toward[0], -b + degree * toward[1]])
    link = math.log((math.exp(k) * math.cosh(2 * cavity) + math.exp(-k)) / (2 * math.cosh(cavity) ** 2))
    return -temperature * float(site - degree / 2 * link)
