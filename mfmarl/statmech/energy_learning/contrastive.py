r"""The gradient of an RBM's log-likelihood, exactly and from Markov chains.

$$ \frac{\partial \log p(v)}{\partial \theta} = -\frac{\partial F(v)}{\partial \theta}
   + \Big\langle \frac{\partial F}{\partial \theta} \Big\rangle_{\text{model}}, \qquad
   -\frac{\partial F}{\partial W_{ij}} = v_i\, P(h_j = 1 | v) $$

The second average is what costs: exact by enumeration; over chains of k sweeps from the data (CD-k, Hinton 2002,
Neural Computation 14), biased, towards the likelihood as k grows; over chains that go on from step to step
(persistent: Tieleman 2008, ICML); over chains that exchange states with hotter ones (Desjardins et al. 2010, AISTATS).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from mfmarl.errors import ConfigError
from mfmarl.random import Key
from mfmarl.statmech.energies.restricted import RBM
from mfmarl.statmech.sampling import block, tempering


class Gradient(NamedTuple):
    """Of the mean log-likelihood: add it to the parameters."""

    weights: Tensor
    """[V, H]."""
    visible: Tensor
    """[V]."""
    hidden: Tensor
    """[H]."""


def statistics(rbm: RBM, v: Tensor, weight: Tensor | None = None) -> Gradient:
    """<-dF/dtheta> over visible states [n, V], weighted alike or by `weight` [n] that sums to 1."""
    hidden = rbm.hidden_given(v)
    if weight is None:
        return Gradient(v.mT @ hidden / len(v), v.mean(0), hidden.mean(0))
    return Gradient(v.mT @ (weight.unsqueeze(-1) * hidden), weight @ v, weight @ hidden)


def difference(data: Gradient, model: Gradient) -> Gradient:
    return Gradient(*(a - b for a, b in zip(data, model, strict=True)))


def exact(rbm: RBM, data: Tensor) -> Gradient:
    """The gradient of the mean log-likelihood of data [n, V], by enumerating the smaller layer (at most 25 units)."""
    log_z_slope = _log_partition_gradient(rbm)
    return difference(statistics(rbm, data), log_z_slope)


def contrastive_divergence(rbm: RBM, data: Tensor, ids: Tensor, key: Key, steps: int = 1) -> tuple[Gradient, Tensor]:
    """CD-k from data [n, V] with ids int64 [n]: the gradient, and where the chains ended [n, V].

    Hidden units of the data and of the last step enter by their probabilities, those in between by draws; visible
    ones by draws throughout (Hinton 2010, "A practical guide to training RBMs", section 3).
    """
    phases = from_data(rbm, data, ids, key, steps)
    return gradient(phases), phases.model


def persistent(
    rbm: RBM, data: Tensor, chains: Tensor, ids: Tensor, key: Key, steps: int = 1
) -> tuple[Gradient, Tensor]:
    """As `contrastive_divergence`, from chains of hidden units [m, H] (ids [m]) that go on where they were.

    The chains come back. What is kept is the hidden layer: its law given the visible one is known already.
    """
    phases, chains = from_chains(rbm, data, chains, ids, key, steps)
    return gradient(phases), chains


class Phases(NamedTuple):
    """Visible states of the data [n, V] and the model [m, V], and P(h = 1) given either, [n, H] and [m, H]."""

    data: Tensor
    positive: Tensor
    model: Tensor
    negative: Tensor


def gradient(phases: Phases) -> Gradient:
    """The difference of the statistics of the two phases, the weights' by one product."""
    data, positive, model, negative = phases
    scaled = torch.cat([positive / len(data), negative / -len(model)])
    return Gradient(
        torch.cat([data, model]).mT @ scaled, data.mean(0) - model.mean(0), positive.mean(0) - negative.mean(0)
    )


def from_data(rbm: RBM, data: Tensor, ids: Tensor, key: Key, steps: int = 1) -> Phases:
    """The phases of contrastive divergence."""
    if steps < 1:
        raise ConfigError(f"Contrastive divergence needs one step at least, not {steps}.")
    positive = negative = rbm.hidden_given(data)
    v = data
    for step in range(steps):
        first, second = _coins(rbm, ids, key.fold("data", step))
        v = block.toss(rbm.visible_given(block.toss(negative, second)), first)
        negative = rbm.hidden_given(v)
    return Phases(data, positive, v, negative)


def from_chains(rbm: RBM, data: Tensor, chains: Tensor, ids: Tensor, key: Key, steps: int = 1) -> tuple[Phases, Tensor]:
    """The phases of persistent chains [m, H], and where these are then."""
    if steps < 1:
        raise ConfigError(f"Persistent chains need one step at least, not {steps}.")
    v = negative = chains
    for step in range(steps):
        first, second = _coins(rbm, ids, key.fold("chains", step))
        v = block.toss(rbm.visible_given(chains), first)
        negative = rbm.hidden_given(v)
        chains = block.toss(negative, second)
    return Phases(data, rbm.hidden_given(data), v, negative), chains


def tempered(
    rbm: RBM, data: Tensor, ladder: Tensor, betas: Tensor, ids: Tensor, key: Key, steps: int = 1
) -> tuple[Gradient, Tensor]:
    """As `persistent`, from ladders [R, m, V + H] of joint states at `betas` [R] that go up to 1; ids [m].

    Each step is a sweep of block Gibbs on every rung and a round of swaps between neighbours; the gradient uses the
    rung at beta = 1.
    """
    if len(betas) != len(ladder) or not math.isclose(float(betas[-1]), 1.0) or not bool((betas.diff() > 0).all()):
        raise ConfigError(f"A ladder of {len(ladder)} rungs needs as many betas that go up to 1, not {betas.tolist()}.")
    sweep, machine = block.layers(rbm), rbm.machine
    rungs, chains = ladder.shape[:2]
    own = ids * rungs + torch.arange(rungs, device=ids.device).unsqueeze(-1)
    beta = betas.to(ladder.dtype).unsqueeze(-1).expand(rungs, chains)
    # Even and odd pairs must take turns over the updates too, and an update knows only its key.
    parity = key.fold("parity").value & 1
    for step in range(steps):
        ladder = sweep(ladder, beta, own, key.fold("sweep", step))
        source, _ = tempering.swap(machine(ladder), betas, parity + step, ids, key.fold("swap", step))
        ladder = ladder.gather(0, source.unsqueeze(-1).expand_as(ladder))
    cold = ladder[-1, :, : len(rbm.visible)]
    return difference(statistics(rbm, data), statistics(rbm, cold)), ladder


def _coins(rbm: RBM, ids: Tensor, key: Key) -> list[block.Coins]:
    """For the visible layer and the hidden one."""
    return block.coins(ids, key, rbm.weights.shape, rbm.weights.dtype)


def _log_partition_gradient(rbm: RBM) -> Gradient:
    """d log Z/d theta."""
    with torch.enable_grad():
        parts = [value.detach().requires_grad_(True) for value in (rbm.weights, rbm.visible, rbm.hidden)]
        log_z = RBM(*parts).log_partition()
        return Gradient(*torch.autograd.grad(log_z, parts))
