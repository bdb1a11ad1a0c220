r"""Whether stochastic gradient descent has come to rest: a fluctuation-dissipation relation that any loss obeys.

$$ E[\theta \cdot g] = \frac{1 + \mu}{2\, lr} E |\Delta \theta|^2, \qquad v' = \mu v + g, \quad \Delta \theta = -lr\, v' $$

in torch's convention, once the law of theta is stationary, whatever the noise of the minibatch gradients g. Proof:
|theta|^2 and theta . v do not change on average. Yaida 2019 (Fluctuation-dissipation relations for stochastic gradient
descent, ICLR, eq. FDR1'; his velocity is lr v here).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from mfmarl.errors import ConfigError
from mfmarl.statmech.sampling.diagnostics import Estimate, mean_and_error


class Balance(NamedTuple):
    """Both sides of Yaida's relation; equal once stochastic gradient descent is stationary."""

    force: Tensor
    """theta . g"""
    motion: Tensor
    """(1 + mu) lr |v|^2/2 = (1 + mu)/(2 lr) |change of theta|^2"""


def balance(theta: Tensor, gradient: Tensor, velocity: Tensor, lr: float, momentum: float = 0.0) -> Balance:
    """Of weights, their minibatch gradients and torch's momentum buffers, [..., n] each: [...] each.

    The buffer v = mu v + g moves the weights by -lr v; `velocity` is that of the step before or after.
    """
    return Balance((theta * gradient).sum(-1), (1 + momentum) * lr / 2 * velocity.square().sum(-1))


def sgd_balance(optimizer: torch.optim.SGD) -> Balance:
    """Of a torch optimiser, between `backward()` and `step()`, once it has made a step: two numbers.

    Collect them over many steps; `stationary` judges. Weight decay counts as part of the gradient. Raises ConfigError
    for Nesterov's momentum, dampening, `maximize`, and for rates or momenta that differ between groups.
    """
    groups = optimizer.param_groups
    lr, momentum = groups[0]["lr"], groups[0]["momentum"]
    if any(
        g["nesterov"] or g["dampening"] or g["maximize"] or (g["lr"], g["momentum"]) != (lr, momentum) for g in groups
    ):
        raise ConfigError(
            "Yaida's relation is for plain SGD with one rate and one momentum: no Nesterov, no dampening."
        )
    force, motion = 0.0, 0.0
    for group in groups:
        for parameter in group["params"]:
            if parameter.grad is None:
                continue
            theta = parameter.detach().double()
            slope = parameter.grad.double() + group["weight_decay"] * theta
            speed = slope
            if momentum:
                buffer = optimizer.state[parameter].get("momentum_buffer")
                if buffer is None:
                    raise ConfigError("The optimiser has no momentum yet: take a step before its balance is read.")
                speed = buffer.double()
            force += float((theta * slope).sum())
            motion += float(speed.square().sum())
    wide = torch.float64
    return Balance(torch.tensor(force, dtype=wide), torch.tensor((1 + momentum) * lr / 2 * motion, dtype=wide))


class Stationarity(NamedTuple):
    """What `stationary` found."""

    force: Estimate
    motion: Estimate
    z: float
    """Of the difference of the two, which share their noise: beyond 5 the descent is still going somewhere."""


def stationary(force: Tensor, motion: Tensor) -> Stationarity:
    """Whether the two sides of the balance, [steps, *chains] each, agree within the error of their difference."""
    difference = mean_and_error(force.double() - motion.double())
    z = float(difference.value / difference.error.clamp(min=1e-300))
    return Stationarity(mean_and_error(force), mean_and_error(motion), z)
