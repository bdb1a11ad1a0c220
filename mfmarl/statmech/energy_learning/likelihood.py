r"""How likely an RBM finds data: exactly, by annealed importance sampling, and by the pseudo-likelihood.

Annealed importance sampling (Neal 2001; for RBMs Salakhutdinov and Murray 2008, "On the quantitative analysis of deep
belief networks", ICML, section 3) goes from independent visible units with biases b_A to the machine, hidden units
summed out at every step:

$$ p^*_k(v) = e^{(1 - \beta_k) b_A v + \beta_k b v} \prod_j \big(1 + e^{\beta_k (c + v W)_j}\big), \qquad
   \log Z = \log Z_A + \log \Big\langle \prod_k \frac{p^*_k(v_{k-1})}{p^*_{k-1}(v_{k-1})} \Big\rangle, \qquad
   Z_A = 2^H \prod_i (1 + e^{b_{A,i}}) $$

The mean weight is unbiased, so its logarithm is too low on average, and the log-likelihood too high.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, softplus

from mfmarl import random
from mfmarl.errors import ConfigError
from mfmarl.random import Key
from mfmarl.statmech import importance
from mfmarl.statmech.energies.restricted import RBM
from mfmarl.statmech.sampling import block
from mfmarl.statmech.sampling.chains import chain_ids


class LogPartition(NamedTuple):
    """log Z with its standard error, and what it rests on (0-dim; weights [m])."""

    value: Tensor
    standard_error: Tensor
    effective_sample_size: Tensor
    log_weights: Tensor


def log_likelihood(rbm: RBM, v: Tensor, log_partition: Tensor | float | None = None) -> Tensor:
    """log p(v) [*b] of visible states [*b, V], with log Z given or by enumeration."""
    log_z = rbm.log_partition() if log_partition is None else log_partition
    return -rbm.free_energy(v) - log_z


def base_biases(data: Tensor, pseudo_count: float = 1.0) -> Tensor:
    """b_A [V]: log-odds of each unit in data [n, V], with `pseudo_count` units of either kind added."""
    mean = (data.sum(0) + pseudo_count) / (len(data) + 2 * pseudo_count)
    return torch.logit(mean)


def annealed_importance_sampling(
    rbm: RBM, key: Key, *, chains: int = 100, steps: int = 1000, base: Tensor | None = None, ids: Tensor | None = None
) -> LogPartition:
    """log Z from `chains` runs of `steps` sweeps each, beta even from 0 to 1, from biases `base` (default 0).

    The error is that of the mean of the chains' weights, to first order: trust it where the effective sample size is
    a good share of the chains. Weights are computed in float64.
    """
    if steps < 1 or chains < 2:
        raise ConfigError(f"Annealing needs 2 chains and 1 step at least, not {chains} and {steps}.")
    b, c, weights = rbm.visible, rbm.hidden, rbm.weights
    base = torch.zeros_like(b) if base is None else base.to(b.dtype)
    ids = chain_ids((chains,), b.device) if ids is None else ids
    v = (random.uniform(key.fold("base"), ids, len(b)).to(b.dtype) < torch.sigmoid(base)).to(b.dtype)
    log_weights = torch.zeros(len(ids), dtype=torch.float64, device=b.device)
    tilt = b - base
    for step in range(1, steps + 1):
        before, beta = (step - 1) / steps, step / steps
        field = c + v @ weights
        gain = (v @ tilt) / steps + (softplus(beta * field) - softplus(before * field)).sum(-1)
        log_weights += gain.double()
        if step == steps:
            break
        h = block.bernoulli(torch.sigmoid(beta * field), ids, key.fold("hidden", step))
        v = block.bernoulli(
            torch.sigmoid((1 - beta) * base + beta * (b + h @ weights.mT)), ids, key.fold("visible", step)
        )
    start = len(c) * math.log(2) + softplus(base.double()).sum()
    value, error = importance.log_mean_weight(log_weights)
    return LogPartition(start + value, error, importance.effective_sample_size(log_weights), log_weights + start)


def pseudo_log_likelihood(rbm: RBM, v: Tensor) -> Tensor:
    """sum_i log p(v_i | the others) [*b] of visible states [*b, V], exactly: V free energies in one pass each.

    An upper hand on nothing (it is not a bound), but cheap to follow: Besag 1975. Memory [*b, H] at a time.
    """
    field = rbm.hidden + v @ rbm.weights
    plain = softplus(field).sum(-1)
    total = torch.zeros_like(plain)
    for site in range(v.shape[-1]):
        flip = 1 - 2 * v[..., site]
        other = softplus(field + flip.unsqueeze(-1) * rbm.weights[site]).sum(-1)
        # F(v) - F(v with unit i flipped).
        total = total + logsigmoid(plain - other - flip * rbm.visible[site])
    return total


def sampled_pseudo_log_likelihood(rbm: RBM, v: Tensor, ids: Tensor, key: Key) -> Tensor:
    """The same from one unit per row, drawn at random, times V: unbiased, for following a training, [n] of [n, V]."""
    site = random.integers(key, ids, v.shape[-1])
    rows = torch.arange(len(v), device=v.device)
    flipped = v.clone()
    flipped[rows, site] = 1 - flipped[rows, site]
    return v.shape[-1] * logsigmoid(rbm.free_energy(flipped) - rbm.free_energy(v))
