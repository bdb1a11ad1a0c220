r"""Mean field of a wide random tanh network: how variances and correlations travel through its layers.

$$ q_{l+1} = \sigma_w^2 \int Dz\, \tanh^2(\sqrt{q_l}\, z) + \sigma_b^2, \qquad
   \chi = \sigma_w^2 \int Dz\, \operatorname{sech}^4(\sqrt{q^*}\, z) $$

Neurons of a layer are alike and independent as the width grows: the self-consistent crowd of this package (Sompolinsky,
Crisanti and Sommers 1988; Poole et al. 2016; Schoenholz et al. 2017). chi < 1: inputs grow alike (order); chi > 1:
they grow apart (chaos); on the edge, chi = 1, gradients neither vanish nor explode. The same integral as the overlap
of a spin glass.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor

from mfmarl.errors import ConfigError
from mfmarl.statmech.exact.quadrature import gaussian_average, normal_nodes


def variance_map(variance: Tensor, weight_scale: float, bias_scale: float) -> Tensor:
    """q of the next layer's inputs [*b] from q [*b]; scales are standard deviations, sigma_w/sqrt(width) per weight."""
    root = variance.clamp(min=0).sqrt().unsqueeze(-1)
    return weight_scale**2 * gaussian_average(lambda z: torch.tanh(root * z) ** 2) + bias_scale**2


@lru_cache(256)
def fixed_variance(weight_scale: float, bias_scale: float) -> float:
    """q*: where deep layers settle, whatever the input."""
    if weight_scale < 0 or bias_scale < 0:
        raise ConfigError("The scales of weights and biases are standard deviations: at least 0.")
    if bias_scale == 0 and weight_scale <= 1:
        return 0.0

    # The map is concave in q: above 0 it has one fixed point, below which it lies above the line.
    def grows(q: float) -> bool:
        return float(variance_map(torch.tensor(q, dtype=torch.float64), weight_scale, bias_scale)) > q

    return _bisect(grows, 1e-300, weight_scale**2 + bias_scale**2)


def gradient_growth(weight_scale: float, bias_scale: float, variance: float | None = None) -> float:
    """chi: the factor per layer of a squared gradient, and of a small squared difference of two inputs, at q*."""
    q = fixed_variance(weight_scale, bias_scale) if variance is None else variance
    return weight_scale**2 * float(gaussian_average(lambda z: torch.cosh(math.sqrt(q) * z) ** -4.0))


def correlation_map(correlation: Tensor, weight_scale: float, bias_scale: float, nodes: int = 201) -> Tensor:
    """The next layer's correlation [*b] of two inputs with correlation [*b] now, both of variance q*."""
    q = fixed_variance(weight_scale, bias_scale)
    z, weight = normal_nodes(nodes)
    c = correlation.unsqueeze(-1).unsqueeze(-1).clamp(-1, 1)
    first = torch.tanh(math.sqrt(q) * z).unsqueeze(-1)
    second = torch.tanh(math.sqrt(q) * (c * z.unsqueeze(-1) + (1 - c * c).sqrt() * z))
    return (weight_scale**2 * ((first * second) @ weight @ weight) + bias_scale**2) / q


def edge_of_chaos(bias_scale: float) -> float:
    """sigma_w at which chi = 1: 1 without biases, more with them."""
    low, high = 1.0, 1.0
    while gradient_growth(high, bias_scale) < 1:
        high *= 2
    return _bisect(lambda scale: gradient_growth(scale, bias_scale) < 1, low, high)


def depth_scale(weight_scale: float, bias_scale: float) -> float:
    """Layers over which a small difference of two inputs changes by e: 1/|ln chi|, infinite on the edge."""
    chi = gradient_growth(weight_scale, bias_scale)
    return math.inf if chi == 1 else 1 / abs(math.log(chi))


def _bisect(below: Callable[[float], bool], low: float, high: float) -> float:
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if below(middle) else (low, middle)
    return (low + high) / 2
